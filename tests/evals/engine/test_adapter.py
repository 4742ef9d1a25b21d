"""LoRA adapters: merged into what a plain computation says, by the command line as well; or refused, never dropped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evals.config import EngineConfig
from evals.engine import adapter
from evals.engine.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from evals.engine.checkpoint import read_network
from evals.types import UserError
from orchestrator.inputs.models import resolve_model
from orchestrator.inputs.preflight import check_adapter
from orchestrator.settings.config import Provenance, RunConfig, fingerprint, resolve
from support.command import DEMO, in_process

MODEL = str(DEMO / "model")
PAIR = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
SETTINGS = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
}
SETTINGS |= {"base_model_name_or_path": MODEL, "bias": "none", "inference_mode": True}
CPU = (
    "--num-gpus",
    0,
    "--inline",
    "--sampler.kind",
    "greedy",
    "--data",
    "demo",
    "--limit",
    2,
    "--task.max-new-tokens",
    8,
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where peft is installed, for what is refused before it is imported."""
    monkeypatch.setattr(adapter, "find_spec", lambda _: object())


def lora(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **settings: Any) -> str:
    """An adapter of the embedded model, with other settings or more tensors."""
    torch.manual_seed(0)
    folder.mkdir()
    pairs = {}
    for layer in range(6):
        for name, out in (("q", 256), ("v", 128)):
            pairs[PAIR.format(layer, name, "A")] = torch.randn(4, 256) / 4
            pairs[PAIR.format(layer, name, "B")] = torch.randn(out, 4) / 4
    save_file(pairs | (tensors or {}), folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(SETTINGS | settings))
    return str(folder)


@pytest.mark.parametrize(("settings", "scale"), [({}, 2.0), ({"use_rslora": True}, 4.0), ({"lora_alpha": 2}, 0.5)])
def test_a_merge_is_w_plus_scale_b_a_in_float32(settings: dict[str, Any], scale: float, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters are merged by peft")
    folder = lora(tmp_path / "lora", **settings)
    base, pairs = load_file(f"{MODEL}/model.safetensors"), load_file(f"{folder}/{ADAPTER_WEIGHTS}")
    merged = read_network(MODEL, EngineConfig(), torch.float32, folder).state_dict()
    rounded = read_network(MODEL, EngineConfig(), torch.bfloat16, folder).state_dict()
    for layer in range(6):
        for name in "qkv":
            weight = f"model.layers.{layer}.self_attn.{name}_proj.weight"
            expected = base[weight].float()
            if name != "k":
                expected = (
                    expected + scale * pairs[PAIR.format(layer, name, "B")] @ pairs[PAIR.format(layer, name, "A")]
                )
            torch.testing.assert_close(merged[weight], expected, rtol=0, atol=1e-6)
            assert torch.equal(rounded[weight], merged[weight].to(torch.bfloat16))
    assert merged.keys() == rounded.keys()


def test_a_place_without_a_tensor_is_no_merge(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters are merged by peft")
    folder = lora(tmp_path / "lora", target_modules=["q_proj", "v_proj", "k_proj"])
    with pytest.raises(UserError, match=r"cannot be merged: it lacks \S+k_proj\.lora_A"):
        read_network(MODEL, EngineConfig(), torch.float32, folder)


def ids(run: Path) -> list[list[int]]:
    rows = map(json.loads, (run / "records.jsonl").read_text().splitlines())
    return [row["token_ids"] for row in sorted(rows, key=lambda row: row["problem_id"])]


def test_a_run_with_an_adapter_is_another_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Named, beside its base, or as the model itself: the same answers, which are not the base's."""
    pytest.importorskip("peft", reason="adapters are merged by peft")
    folder = lora(tmp_path / "lora")
    beside = shutil.copytree(MODEL, tmp_path / "beside")
    for file in Path(folder).iterdir():
        shutil.copy(file, beside)
    flags = {
        "base": ("--model", MODEL),
        "named": ("--model", MODEL, "--engine.adapter", folder),
        "alone": ("--model", folder),
        "beside": ("--model", beside, "--engine.adapter", beside),
    }
    runs = {name: tmp_path / "runs" / name for name in flags}
    for name, given in flags.items():
        assert in_process("run", *given, *CPU, "--run-dir", runs[name]) == 0
        assert (f"The adapter {given[-1]} is merged into" in capfd.readouterr().err) == (name != "base")
    answers = {name: ids(run) for name, run in runs.items()}
    assert answers["named"] == answers["alone"] == answers["beside"] != answers["base"]
    told = {name: json.loads((run / "run.json").read_text()) for name, run in runs.items()}
    assert told["named"]["provenance"]["adapter"]["sha256"] == resolve_model(folder).adapter.digest  # type: ignore[union-attr]
    assert told["named"]["fingerprint"] == told["alone"]["fingerprint"] != told["base"]["fingerprint"]
    assert "adapter" not in told["base"]["provenance"]
    assert f"adapter {folder}" in (runs["named"] / "report.md").read_text().replace("\n  ", " ")


def test_without_an_adapter_the_fingerprint_is_as_it_was() -> None:
    config = resolve(RunConfig(model="m", data="d"), 0)
    assert fingerprint(config, Provenance("1", "2")) == fingerprint(config, Provenance("1", "2", adapter=None))
    assert fingerprint(config, Provenance("1", "2")) != fingerprint(config, Provenance("1", "2", adapter="3"))


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "has peft_type 'PROMPT_TUNING', which the engine does not merge"),
    "IA3": ({"peft_type": "IA3"}, "has peft_type 'IA3'"),
    "no kind": ({"peft_type": None}, "has peft_type None"),
    "a classifier": ({"task_type": "SEQ_CLS"}, "has task_type 'SEQ_CLS'"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
    "tokens": ({"trainable_token_indices": [5]}, "sets trainable_token_indices"),
    "biases": ({"bias": "all"}, "has bias 'all'"),
    "a changed base": ({"init_lora_weights": "pissa_niter_4"}, "has init_lora_weights 'pissa_niter_4'"),
    "after a call": ({"alora_invocation_tokens": [1]}, "sets alora_invocation_tokens"),
    "the future": ({"unheard_of": True}, "sets unheard_of"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.usefixtures("installed")
def test_kinds_that_cannot_be_merged_are_refused(name: str, tmp_path: Path) -> None:
    settings, message = KINDS[name]
    folder = lora(tmp_path / "lora", **settings)
    with pytest.raises(UserError, match=message + ".*; merge it by the library that trained it"):
        resolve_model(MODEL, engine=EngineConfig(adapter=folder))


Q = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "an embedding": ({"base_model.model.lm_head.weight": torch.ones(1024, 256)}, "lm_head.weight, which is no part of"),
    "half a pair": ({f"{Q[:-6]}o_proj.lora_A.weight": torch.ones(4, 256)}, r"is incomplete at \S+o_proj"),
    "another size": (
        {f"{Q}.lora_A.weight": torch.ones(4, 512)},
        r"is for another base: it changes \S+q_proj by \[256, 512\], whose shape is \[256, 256\] there",
    ),
    "another depth": (
        {f"{Q.replace('.0.', '.9.')}.lora_{part}.weight": torch.ones(shape) for part, shape in
         (("A", (4, 256)), ("B", (256, 4)))},
        r"is for another base: it changes model\.layers\.9\..*, which is not there; name its own base",
    ),
    "a tied head": (
        {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 256),
         "base_model.model.lm_head.lora_B.weight": torch.ones(1024, 4)},
        r"changes lm_head, which shares its weights with the embedding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_would_be_lost_are_refused(name: str, tmp_path: Path) -> None:
    tensors, message = TENSORS[name]
    with pytest.raises(UserError, match=message):
        check_adapter(MODEL, lora(tmp_path / "lora", tensors), EngineConfig())


def test_a_tokenizer_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = Path(lora(tmp_path / "lora"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{MODEL}/{name}", folder)
    check_adapter(MODEL, str(folder), EngineConfig())
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UserError, match=r"has a chat template of its own, unlike the base's; take its file out"):
        check_adapter(MODEL, str(folder), EngineConfig())
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"NFC"', '"NFD"'))
    with pytest.raises(UserError, match=r"has a tokenizer\.json of its own"):
        check_adapter(MODEL, str(folder), EngineConfig())


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer_config.json", {"eos_token": "<|pad|>"}, "an EOS token"),
        ("tokenizer_config.json", {"eos_token": {"content": "<|pad|>"}}, "an EOS token"),
        ("generation_config.json", {"eos_token_id": [0, 1]}, "EOS ids"),
    ],
)
def test_an_end_of_its_own_is_refused(file: str, content: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = Path(lora(tmp_path / "lora"))
    shutil.copy(f"{MODEL}/{file}", folder)
    check_adapter(MODEL, str(folder), EngineConfig())
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"has {words} of its own, unlike the base's; take its file out of the folder"):
        check_adapter(MODEL, str(folder), EngineConfig())


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("settings", [{"r": "8"}, {"r": 0}, {"lora_alpha": "16"}])
def test_ranks_and_scales_are_numbers(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"adapter_config\.json is damaged \(r is .*, lora_alpha .*\); download it again"
    ):
        resolve_model(lora(tmp_path / "lora", **settings))


def test_an_adapter_that_nobody_named_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shutil.copytree(MODEL, tmp_path / "model")
    shutil.copy(f"{lora(tmp_path / 'lora')}/{ADAPTER_CONFIG}", model)
    message = r"Beside the model in \S+ there is an adapter .*; name the folder as the adapter.*\(engine\.adapter\)"
    for call in (resolve_model, lambda folder: read_network(folder, EngineConfig(), torch.float32, None)):
        with pytest.raises(UserError, match=message):
            call(str(model))
    monkeypatch.setattr(adapter, "find_spec", lambda _: None)
    told = r"holds an adapter, which peft merges, and peft is not installed; pip install 'powersample\[adapters\]', or"
    with pytest.raises(UserError, match=told):
        resolve_model(str(tmp_path / "lora"))


@pytest.mark.usefixtures("installed")
def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    gone = lora(tmp_path / "gone", base_model_name_or_path="/no/such/base")
    with pytest.raises(
        UserError, match=r"gone is an adapter, and its base cannot be used: There is no model folder /no"
    ):
        resolve_model(gone)
    with pytest.raises(UserError, match=r"is an adapter and names no base; name both \(model, engine\.adapter\)"):
        resolve_model(lora(tmp_path / "none", base_model_name_or_path=None))
    with pytest.raises(UserError, match=r"is an adapter itself; name its base"):
        resolve_model(gone, engine=EngineConfig(adapter=gone))
    with pytest.raises(UserError, match=r"There is no adapter_config\.json in \S+, so it is no adapter"):
        resolve_model(MODEL, engine=EngineConfig(adapter=MODEL))
    (Path(gone) / ADAPTER_CONFIG).write_text("[]")
    with pytest.raises(UserError, match=r"adapter_config\.json is damaged .*; download it again"):
        resolve_model(gone)


@pytest.mark.usefixtures("installed")
def test_an_adapter_is_identified_by_its_own_files(tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora")
    found = resolve_model(folder)
    assert found.adapter is not None
    assert (found.folder, found.digest) == (MODEL, resolve_model(MODEL).digest)
    (Path(folder) / "README.json").write_text("{}")
    assert resolve_model(MODEL, engine=EngineConfig(adapter=folder)).adapter == found.adapter
    lora(tmp_path / "other", r=5)
    assert resolve_model(str(tmp_path / "other")).adapter.digest != found.adapter.digest  # type: ignore[union-attr]

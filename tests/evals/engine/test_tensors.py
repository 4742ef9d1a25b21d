"""Checkpoints whose tensors are not those of their configuration: refused by their headers, or by the first load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from evals.config import EngineConfig
from evals.engine.checkpoint import read_model, read_network, skeleton
from evals.engine.model_support import check_architecture
from evals.engine.tensors import check_finite, check_tensors
from evals.types import UserError
from orchestrator.inputs.weight_files import check_weights
from support.command import DEMO, run
from support.tiny_models import FAMILIES, SIZES, make

WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Any]


def saved(folder: Path, family: str = "llama", change: Change = lambda _: None, **config: Any) -> str:
    """A family's tiny model with its tensors changed, and other settings in its config.json."""
    make(family).network.save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return str(folder)


def check(folder: str) -> None:
    """What the preflight does with a folder's weights."""
    check_architecture(folder)
    check_tensors(folder, check_weights(Path(folder), False), skeleton(folder, False))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_fits_its_own_configuration(family: str, tmp_path: Path) -> None:
    """Also by the names that the library gives the tensors of a file, which may be others than it has in memory."""
    folder = saved(tmp_path, family)
    check(folder)
    network = read_network(folder, EngineConfig(), torch.float32, None)
    ours, theirs = network.state_dict(), make(family).network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def older(tensors: Tensors) -> None:
    """What older versions of the library saved beside the weights."""
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.position_ids"] = torch.arange(9)


def masks(tensors: Tensors) -> None:
    """GPT-2 as it is on the hub: without a prefix, with its causal masks."""
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    tensors["h.1.attn.masked_bias"] = torch.tensor(-1e4)


@pytest.mark.parametrize(("family", "change"), [("llama", older), ("gpt2", masks)])
def test_what_older_versions_saved_is_harmless(family: str, change: Change, tmp_path: Path) -> None:
    folder = saved(tmp_path, family, change)
    check(folder)
    assert read_network(folder, EngineConfig(), torch.float32, None) is not None


def scaled(tensors: Tensors) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def beside(name: str, value: torch.Tensor | None = None) -> Change:
    value = torch.ones(1) if value is None else value
    return lambda tensors: tensors.update({name: value})


def packed(tensors: Tensors) -> None:
    name = "model.layers.0.self_attn.q_proj"
    tensors |= {f"{name}.qweight": torch.ones(4, 32, dtype=torch.int32), f"{name}.scales": torch.ones(1, 32)}
    del tensors[f"{name}.weight"]


def moved(old: str, new: str) -> Change:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


PROJ = "model.layers.0.self_attn.q_proj"
QUANTISED = r"is quantised \({}.*; choose it in bfloat16, or dequantise it first"
OTHER = r"are not those of its config\.json: {}"
REFUSED: dict[str, tuple[Change, dict[str, Any], str]] = {
    "float8": (scaled, {}, QUANTISED.format(r"its tensor model\.layers\.1\.mlp\.up_proj\.weight is F8_E4M3")),
    "a scale": (beside(f"{PROJ}.weight_scale"), {}, QUANTISED.format(rf"it has {re.escape(PROJ)}\.weight_scale")),
    "a block scale": (beside(f"{PROJ}.weight_scale_inv"), {}, QUANTISED.format("it has .*weight_scale_inv")),
    "the scale of keys": (beside("model.layers.0.self_attn.k_scale"), {}, QUANTISED.format("it has .*k_scale")),
    "bitsandbytes": (beside(f"{PROJ}.weight.absmax"), {}, QUANTISED.format("it has .*absmax")),
    "packed": (packed, {}, QUANTISED.format("its tensor .*qweight is I32")),
    "bytes": (
        beside(f"{PROJ}.weight", torch.ones(1, dtype=torch.uint8)),
        {},
        QUANTISED.format(".*q_proj.weight is U8"),
    ),
    "fewer layers": (
        lambda _: None,
        {"num_hidden_layers": 2},
        OTHER.format(r"model\.layers\.2\.\S+ and 8 others are without a place in LlamaForCausalLM; download both"),
    ),
    "more layers": (
        lambda _: None,
        {"num_hidden_layers": 4},
        r"incomplete: model\.layers\.3\.\S+ and 8 others are missing",
    ),
    "a smaller vocabulary": (
        lambda _: None,
        {"vocab_size": 60},
        OTHER.format(r"(lm_head|model\.embed_tokens)\.weight is \[61, 32\] and should be \[60, 32\]"),
    ),
    "other heads": (lambda _: None, {"num_key_value_heads": 1}, OTHER.format(r"\S+k_proj.weight is \[16, 32\]")),
    "twice": (
        beside("embed_tokens.weight", torch.ones(61, 32)),
        {},
        OTHER.format(r".*embed_tokens\.weight is without"),
    ),
    "a method": (
        lambda _: None,
        {"quantization_config": {"quant_method": "modelopt"}},
        QUANTISED.format("quantization_config of its config.json says `modelopt`") + ", or, if its weights are plain",
    ),
    "a method of the library": (
        lambda _: None,
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
        QUANTISED.format("quantization_config .* says `fp8`"),
    ),
    "no method": (
        lambda _: None,
        {"quantization_config": {}},
        QUANTISED.format("quantization_config .* says no method"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_that_do_not_fit_are_refused_by_their_headers(name: str, tmp_path: Path) -> None:
    change, config, message = REFUSED[name]
    folder = saved(tmp_path / "model", change=change, **config)
    with pytest.raises(UserError, match=message) as refused:
        check(folder)
    assert folder in str(refused.value)
    assert "\n" not in str(refused.value)


LOADED: dict[str, tuple[str, Change, dict[str, Any], str]] = {
    "an unknown name": (
        "llama",
        beside("model.adapter.gate"),
        {},
        OTHER.format("model.adapter.gate is without a place"),
    ),
    "another name": (
        "llama",
        moved("lm_head.weight", "head.weight"),
        {},
        OTHER.format("head.weight is without a place"),
    ),
    "fewer experts": ("mixtral", lambda _: None, {"num_local_experts": 3}, r"(cannot be loaded|are not those)"),
    "a scale of an expert": (
        "mixtral",
        beside("model.layers.0.block_sparse_moe.experts.0.w1.weight_scale"),
        {},
        "is quantised .*weight_scale",
    ),
    "nothing at all": ("llama", lambda tensors: tensors.clear(), {}, r"are incomplete: .* are missing; download both"),
    "a missing part": (
        "llama",
        lambda t: t.pop("model.norm.weight"),
        {},
        r"are incomplete: model\.norm\.weight is missing",
    ),
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("name", LOADED)
def test_what_only_a_load_shows_is_one_sentence_as_well(
    name: str, pickled: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    family, change, config, message = LOADED[name]
    folder = saved(tmp_path / "model", family, change, **config)
    if pickled:
        torch.save(load_file(tmp_path / "model" / WEIGHTS), tmp_path / "model/pytorch_model.bin")
        (tmp_path / "model" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=message) as refused:
        read_model(folder, EngineConfig(allow_pickle=pickled), "cpu")
    assert folder in str(refused.value)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == "", "the library's table is for nobody"


@pytest.mark.parametrize(
    ("value", "what"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")]
)
def test_weights_that_are_not_finite_are_named(value: float, what: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, change=lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][3].fill_(value))
    with pytest.raises(UserError, match=rf"hold {what} as float32, first in model\.layers\.1\.mlp\.up_proj\.weight; "):
        check_finite(folder, read_network(folder, EngineConfig(), torch.float32, None))


def test_weights_beyond_float16_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, change=lambda tensors: tensors["model.norm.weight"].fill_(1e6))
    with pytest.raises(UserError, match=r"infinity as float16, first in model\.norm.*set engine\.dtype to bfloat16"):
        check_finite(folder, read_network(folder, EngineConfig(), torch.float16, None))


@pytest.mark.parametrize(
    "error", [RuntimeError("a\nb"), KeyError("su"), AttributeError(), Exception("anything at all")]
)
def test_whatever_the_library_raises_is_one_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path)

    def broken(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", broken)
    with pytest.raises(UserError, match=r"The model in \S+ cannot be loaded: [^\n]+\.$") as refused:
        read_network(folder, EngineConfig(), torch.float32, None)
    assert refused.value.__cause__ is error


DAMAGED: dict[str, Any] = {
    "a list": [], "null": None, "a text": "x", "no model type": {"hidden_size": 8},
    "a rope": {"rope_scaling": {"type": "su", "factor": 4.0}}, "a rope that is a text": {"rope_scaling": "x"},
    "an activation": {"hidden_act": "nonsense"}, "no heads": {"num_attention_heads": 0}, "a size": {"hidden_size": -32},
    "a vocabulary": {"vocab_size": -1}, "layers": {"num_hidden_layers": "three"}, "a type": {"dtype": "float7"},
    "architectures": {"architectures": "LlamaForCausalLM"}, "a map": {"auto_map": ["x"]},
    "padding": {"pad_token_id": 999}, "kinds of layers": {"layer_types": ["full_attention"]},
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_configuration_is_one_sentence(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, content = saved(tmp_path / "model"), DAMAGED[name]
    whole = SIZES | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    if isinstance(content, dict):
        content = content if "hidden_size" in content and len(content) == 1 and name[0] == "n" else whole | content
    (tmp_path / "model/config.json").write_text(json.dumps(content))
    capfd.readouterr()
    with pytest.raises(UserError, match=r"^[^\n]+; [^\n]+$") as refused:
        check(folder)
    assert folder in str(refused.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("place", ["--inline", pytest.param("--no-dashboard", marks=pytest.mark.ray)])
def test_a_load_that_fails_ends_a_run_at_once(place: str, tmp_path: Path) -> None:
    """With Ray as without: by one worker's first try, in one sentence, with exit code 2."""
    model = shutil.copytree(DEMO / "model", tmp_path / "model")
    tensors = load_file(model / WEIGHTS)
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    ended = run(
        *("--model", model, "--data", "demo", "--limit", 1, "--num-gpus", 0, "--num-workers", 1, place),
        *("--sampler.kind", "greedy", "--task.max-new-tokens", 8, "--run-dir", tmp_path / "run"),
    )
    assert ended.returncode == 2, ended.stderr
    assert "hold NaN as float32, first in model.layers.2.mlp.up_proj.weight; " in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert "started again" not in ended.stderr

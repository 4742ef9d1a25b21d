"""Memory plans: sizes of models without weights, and what the command says."""

from __future__ import annotations

import json
import math
import re
import weakref
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AttentionInterface,
    DeepseekV3Config,
    FalconConfig,
    JambaConfig,
    MambaConfig,
    T5Config,
)

from benchmarks import plan as benchmark
from evals.config import EngineConfig
from evals.engine import memory_forecast
from evals.engine.checkpoint import make_network, random_model, shape_config
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.engine.kv_cache import PAGE
from evals.engine.linears import fuse_linears
from evals.engine.memory_forecast import WORKSPACE_BYTES, ModelSpec, demand, forecast, model_spec, peak
from evals.sizing.shapes import SHAPES
from evals.sizing.slots import plan_slots
from evals.types import UserError
from orchestrator.cli import main
from orchestrator.commands.table import GPUS
from orchestrator.machine import gpus
from orchestrator.settings.merge import build_config
from support.places import ROOT
from support.tiny_models import FAMILIES, configuration, make

GIB = 2**30
CONFIG = EngineConfig()
NOTHING = Namespace()
"""The options of a run that is given none."""


def of_shape(name: str) -> ModelSpec:
    return model_spec(shape_config(SHAPES[name]), "bfloat16", name)


def command(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["plan", *flags, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_without_weights_are_those_with_them(family: str) -> None:
    pair, found = make(family), model_spec(configuration(family), "float32", family)
    kept = [*pair.network.parameters(), *pair.network.buffers()]
    assert found.weight_bytes == sum(tensor.nbytes for tensor in kept)
    assert found.parameters == pair.network.num_parameters()
    assert PAGE * found.kv_token_bytes == pair.model.cache_shape.page_bytes


def test_known_models() -> None:
    llama = of_shape("8b")
    assert llama.parameters == 8_030_261_248
    assert llama.kv_token_bytes == 128 << 10
    assert of_shape("7b").kv_token_bytes == 2 * 28 * 4 * 128 * 2
    assert of_shape("1.5b").parameters == 1_543_714_304


def deepseek() -> DeepseekV3Config:
    return DeepseekV3Config(
        vocab_size=61, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, num_experts_per_tok=6, kv_lora_rank=24,
        q_lora_rank=16, qk_rope_head_dim=8, v_head_dim=8, qk_nope_head_dim=8, n_group=1, topk_group=1,
        first_k_dense_replace=1,
    )  # fmt: skip


def falcon() -> FalconConfig:
    return FalconConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (deepseek(), "its values are not as wide as its keys"),
        (falcon(), "its attention cannot be replaced"),
        (configuration("qwen2", layer_types=["chunked_attention"] * 3), "it has layers of type chunked_attention"),
    ],
    ids=["deepseek", "falcon", "chunked"],
)
def test_models_that_the_engine_cannot_run_are_refused_as_it_refuses_them(config: Any, words: str) -> None:
    with pytest.raises(UserError, match=rf"The model in folder .* cannot be used: {words}"):
        model_spec(config, "bfloat16", "folder")


def test_a_model_that_needs_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(*_: object, **__: object) -> None:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors.")

    monkeypatch.setattr(memory_forecast, "Model", looks)
    words = r"cannot be seen without weights \(Tensor.item\(\) cannot be called on meta tensors\)"
    with pytest.raises(UserError, match=words):
        of_shape("tiny")


@pytest.mark.parametrize("config", [MambaConfig(), JambaConfig(), T5Config()], ids=["mamba", "jamba", "t5"])
def test_models_that_keep_more_than_keys_and_values_are_refused(config: Any) -> None:
    with pytest.raises(UserError, match=r"The model in folder .* no text-only causal language model of attention"):
        model_spec(config, "bfloat16", "folder")


class ChainState(TorchDispatchMode):
    """Bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self.now -= num_bytes


def nothing(module: Any, query: torch.Tensor, key: Any, value: Any, mask: Any, **_: Any) -> tuple[torch.Tensor, None]:
    """Attention as far as memory goes: kernels need no more than their result."""
    return query.new_empty(query.transpose(1, 2).shape), None


@pytest.mark.parametrize("name", ["0.5b", "8b"])
def test_a_prompt_pass_holds_what_the_formula_says(name: str) -> None:
    """The library's own layers on the meta device, fused as the engine does, every allocation counted."""
    AttentionInterface.register("nothing", nothing)
    network = make_network(shape_config(SHAPES[name]), torch.bfloat16, "meta").eval()
    network.requires_grad_(False).set_attn_implementation("nothing")
    ids = torch.zeros(1, 1024, dtype=torch.long, device="meta")

    def run() -> None:
        network.base_model(input_ids=ids, position_ids=ids, use_cache=False, return_dict=True)

    with torch.inference_mode():
        fuse_linears(network, run)
        with ChainState() as live:
            run()
    assert of_shape(name).pass_bytes * 1024 == pytest.approx(live.peak, rel=0.01)


def test_an_evaluation_is_planned_by_the_engines_own_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    found = command(capsys, "--shape", "7b", "--gpu", "a100-40", "--length", "1000", "--num-gpus", "8")
    model, total = of_shape("7b"), round(GPUS["a100-40"] * GIB)
    reading = forecast(model, total, 256, CONFIG)
    plan = plan_slots(reading, demand(model, None, 1000, 2), CONFIG)
    assert 64 < found["batch"] == plan.slots < 256
    assert found["in_flight"] == 8 * plan.slots
    assert found["kv"] == plan.parts["K/V"] == (2 * plan.slots * math.ceil(999 / PAGE) + 1) * PAGE * 57_344
    parts = ("overhead", "weights", "kv", "activations", "graphs", "free", "reserve")
    assert sum(found[name] for name in parts) == found["gpu_memory"] == total
    assert found["available"] == sum(found[name] for name in ("kv", "activations", "graphs", "free"))
    assert 0.79 < found["utilisation"] <= 0.8
    prompts = 4096 * 2 * 4 * (3584 + 18944)
    assert found["peak"] == peak(model, reading, plan, CONFIG)
    assert found["peak"] == WORKSPACE_BYTES + 2 * found["parameters"] + 2 * 4 * 64 + found["kv"] + prompts


def test_every_configuration_is_described_and_the_slots_are_the_planners() -> None:
    text = (ROOT / "docs/configs.md").read_text()
    for file in (ROOT / "configs").glob("*.yaml"):
        assert build_config(NOTHING, {}, file)
        assert re.search(rf"^## {file.stem}$|`{file.stem}`", text, re.MULTILINE), file.stem
    shapes = {name: of_shape(name) for name in ("0.5b", "1.5b", "7b")}
    tables = re.findall(r"`--gpu (\S+)`[^|]*((?:\|.*\n)+)", text)
    assert {gpu for gpu, _ in tables} == {"h100-80", "h200-141", "a100-40", "a6000-48"}
    for gpu, table in tables:
        cells = []
        for name, model in shapes.items():
            reading = forecast(model, round(GPUS[gpu] * GIB), 256, CONFIG)
            plans = [plan_slots(reading, demand(model, None, length, 2), CONFIG) for length in (768, 2304)]
            shown = [f"{plan.slots} ({peak(model, reading, plan, CONFIG) / GIB:.1f} GiB)" for plan in plans]
            cells.append(f"| {name} | {' | '.join(shown)} |")
        assert table.splitlines()[2:] == cells, gpu


def test_a_batch_size_is_an_upper_limit(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--shape", "0.5b", "--gpu", "24", "--batch-size")
    assert command(capsys, *flags, "10")["batch"] == 10
    found = command(capsys, *flags, "5000")
    assert found["batch"] < 5000
    assert "batch: 5000 do not fit" in found["notes"]


def test_float32_logits_take_more() -> None:
    model, config = of_shape("0.5b"), EngineConfig(float32_logits=True, prefill_tokens=16)
    reading = forecast(model, 80 * GIB, 256, config)
    plan = plan_slots(reading, demand(model, 256, 100, 2), config)
    usual = peak(model, reading, plan, config.model_copy(update={"float32_logits": False}))
    assert peak(model, reading, plan, config) - usual == 256 * 151_936 * 2


def test_sequences_are_kept_whole_whatever_the_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration("gemma3").save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        found = command(capsys, "--model", str(name), "--gpu", "80", "--length", "200")
        assert found["kv_per_sequence"] == 200 * found["kv_per_token"] == 200 * 3 * 2 * 2 * 8 * 2


def test_the_gpu_that_is_present(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [gpus.Gpu(0, "GPU-1", "A card", 24 * GIB)])
    found = command(capsys, "--model", "demo")
    assert (found["gpu"], found["gpu_memory"], found["batch"]) == ("A card", 24 * GIB, 256)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpu", "80"], ["no model was named", "--shape"]),
        (["--shape", "7b", "--model", "demo", "--gpu", "80"], ["--model", "not allowed with", "--shape"]),
        (["--shape", "7b"], ["no GPU", "h100-80"]),
        (["--shape", "7b", "--gpu", "h10080"], ["h10080", "did you mean h100-80?"]),
        (["--shape", "70b", "--gpu", "80"], ["70b"]),
        (["--shape", "7b", "--gpu", "v100-16"], ["Not even one slot fits", "14.19 GiB", "higher --target or a short"]),
        (["--model", "demo", "--gpu", "80", "--target", "1.5"], ["--target", "1.5"]),
        (["--model", "demo", "--gpu", "80", "--num-gpus", "0.5"], ["--num-gpus", "0.5"]),
        (["--model", "/no/such/model", "--gpu", "80"], ["/no/such/model", "(--model)"]),
        (["--plan"], ["--plan", "powersample plan --help"]),
    ],
)
def test_mistakes_are_one_sentence(
    flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])
    assert main(["plan", *flags]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert all(word in line for word in words), line
    assert not out


def test_the_benchmark_samples_with_every_slot_busy_and_shows_both_sides() -> None:
    on = Engine.build(prepare(random_model(SHAPES["tiny"], CONFIG, "cpu")), CONFIG, slots=3, max_length=64)
    benchmark.run(on, 3, 64)
    assert on.counters().generated_tokens > 3 * benchmark.NEW_TOKENS, "an answer and two moves for each slot"
    both = {"predicted": 3 * GIB, "measured": 2 * GIB}
    row = dict.fromkeys(("peak", "in_use", "weights", "others", "prompts", "step"), both)
    shown = benchmark.line(
        {"shape": "tiny", "slots": 3, "slots_by_measurement": 4, "execution": "eager", "error": 0.5} | row
    )
    assert shown.startswith(
        "tiny, 3 slots (by measurement 4), eager: error +50.0%; peak 3.00 / 2.00, in_use 3.00 / 2.00"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("slots", [10, None])
def test_the_peak_of_a_run_is_within_10_percent(slots: int | None) -> None:
    alone = not torch.cuda.memory_reserved()  # else an earlier test's memory is in use as well
    (row,) = benchmark.compare("0.5b", [slots], 512, EngineConfig(execution="graphs"))
    assert abs(row["error"]) <= 0.1, row
    assert not alone or row["in_use"]["measured"] <= 1.05 * row["in_use"]["planned"], row

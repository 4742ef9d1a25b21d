"""On a CUDA device: slots by measurement, and memory that other processes take away. `make test-gpu`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.config import EngineConfig, TaskConfig
from evals.engine.checkpoint import load_model
from evals.engine.device import release
from evals.engine.engine import Engine
from evals.evaluate import make_prompt
from evals.rng import RandomKey
from evals.samplers.power import Power
from evals.tasks.task import make_task
from evals.types import Chain, UserError
from orchestrator.cli import main
from orchestrator.inputs.problems import load_problems
from support.pages import audit
from support.places import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEMO = ROOT / "evals/demo"
GIB = 2**30
LENGTH = 400


@pytest.fixture(autouse=True)
def clean() -> Iterable[None]:
    """Every test begins and ends without what others left on the device."""
    release(torch.device("cuda"))
    yield
    release(torch.device("cuda"))


def engine(slots: int | None, max_length: int = LENGTH, **settings: Any) -> Engine:
    usual: dict[str, Any] = {"dtype": "float32", "execution": "graphs"}
    config = EngineConfig(**usual | settings)
    return Engine.build(load_model(str(DEMO / "model"), config, "cuda"), config, slots=slots, max_length=max_length)


def chains(on: Engine, count: int, moves: int = 4) -> list[Chain]:
    task = make_task(TaskConfig(max_new_tokens=96), 0)
    sampler = Power(num_moves=moves)
    prompts = [
        make_prompt(task, problem, on.model.tokenizer)
        for problem in load_problems(str(DEMO / "problems.jsonl")).problems[:count]
    ]
    return [Chain(prompt, sampler.chain(prompt, RandomKey(3, i, 0))) for i, prompt in enumerate(prompts)]


def parts(on: Engine) -> dict[str, float]:
    """The table of the engine's notes, in GiB."""
    rows = [line.rsplit(maxsplit=2) for line in on.notes.splitlines() if line.startswith("  ")]
    return {name.strip(): float(number) for name, number, _ in rows}


@contextmanager
def taken(num_bytes: int) -> Iterator[None]:
    """So much of the device is held, outside of the engine."""
    held = torch.empty(max(num_bytes, 0), dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del held
        release(torch.device("cuda"))


def test_a_small_model_gets_all_slots_that_pay_and_stays_under_its_target() -> None:
    on = engine(None)
    assert on.counters().slots == 256
    table = parts(on)
    total = torch.cuda.mem_get_info()[1] / GIB
    assert sum(table.values()) == pytest.approx(total, abs=0.05)
    assert table["K/V"] > 0
    assert table["activations"] > 0
    on.run(chains(on, 24))
    free, _ = torch.cuda.mem_get_info()
    assert 1 - free / GIB / total <= 0.8
    promised = table["context and others"] + table["weights"] + table["K/V"] + table["activations"] + table["graphs"]
    assert total - free / GIB <= promised + 0.3, on.notes


@pytest.mark.parametrize("execution", ["graphs", "eager"])
def test_slots_follow_what_is_free(execution: str) -> None:
    """With little beyond the first slot's need to spare, a number is lowered, and the run stays within the plan."""
    first = parts(engine(1, execution=execution))
    release(torch.device("cuda"))
    free, total = torch.cuda.mem_get_info()
    fixed = (first["weights"] + first["activations"] + first["graphs"]) * GIB
    share = (total - free + 2 * fixed + GIB) / total
    on = engine(50_000, execution=execution, target_utilisation=share)
    assert 1 <= on.counters().slots < 50_000
    assert on.notes.splitlines()[-1].startswith("Warning: 50000 slots (batch_size) do not fit; going on")
    samples = on.run(chains(on, 8))
    assert len(samples) == 8
    assert not on.take_slot_changes()
    free, _ = torch.cuda.mem_get_info()
    assert total - free <= share * total + 0.3 * GIB, on.notes


def test_a_gpu_that_is_half_full_at_the_start() -> None:
    free, total = torch.cuda.mem_get_info()
    with taken(free - total // 2):
        on = engine(None)
        assert parts(on)["weights"] + parts(on)["context and others"] > 0.49 * total / GIB
        assert on.counters().slots >= 1
        assert len(on.run(chains(on, 4))) == 4
    del on
    release(torch.device("cuda"))
    free, total = torch.cuda.mem_get_info()
    with taken(free - total // 10), pytest.raises(UserError, match=r"Not even one slot fits the GPU: .* may be used"):
        engine(4)


def fill_device() -> list[torch.Tensor]:
    """Take all that is left, down to the smallest block of the allocator."""
    held, size = [], 1 << 34
    while size >= 512:
        try:
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2
    return held


def test_memory_taken_away_while_it_runs() -> None:
    """An allocation from outside leaves nothing: the engine gives back pages, goes on, and answers as if calm."""
    calm = engine(16)
    expected = calm.run(chains(calm, 24))
    del calm
    release(torch.device("cuda"))
    config = EngineConfig(dtype="float32", execution="graphs")
    model = load_model(str(DEMO / "model"), config, "cuda")
    pages = 2 * GIB // model.cache_shape.page_bytes
    on = Engine.build(model, config, slots=16, max_length=LENGTH, num_pages=pages)
    asked = chains(on, 24)
    release(torch.device("cuda"))
    held = fill_device()
    found = on.run(asked)
    events = on.take_slot_changes()
    assert [(event.old, event.new) for event in events] == [(16, 8)]
    assert "out of memory" in events[0].reason
    assert on.counters().slots == 8
    audit(on._pool)
    assert on.counters().kv_pages_used == 0
    same = [a.tokens == b.tokens for a, b in zip(expected, found, strict=True)]
    assert sum(same) >= len(same) - 1  # a tie within rounding may fall either way
    del held


def test_slots_follow_what_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others take the reserve and more, and leave again: fewer slots, then all of them, the same answers."""
    monkeypatch.setattr("evals.sizing.slots.LOOK_SECONDS", 0.0)
    calm = engine(16, target_utilisation=0.5)
    expected = calm.run(chains(calm, 48))
    assert not calm.take_slot_changes()
    calm.close()
    on = engine(16, target_utilisation=0.5)
    free, total = torch.cuda.mem_get_info()
    steps, held, real = iter(range(10**6)), [], on._advance

    def advance() -> None:
        step = next(steps)
        if step == 20:
            held.append(torch.empty(int(free - 0.1 * total), dtype=torch.uint8, device="cuda"))
        if step == 60:
            held.clear()
            release(torch.device("cuda"))
        real()

    monkeypatch.setattr(on, "_advance", advance)
    found = on.run(chains(on, 48))
    changes = on.take_slot_changes()
    assert [(change.old, change.new) for change in changes[:1]] == [(16, 1)], changes
    assert changes[-1].new == on.counters().slots == 16, changes
    assert {change.reason for change in changes} == {"others use the GPU's memory", "there is room for more"}
    audit(on._pool)
    same = [a.tokens == b.tokens for a, b in zip(expected, found, strict=True)]
    assert sum(same) >= len(same) - 1  # a tie within rounding may fall either way


def test_memory_that_never_comes_back_ends_in_one_sentence() -> None:
    on = engine(2)
    asked = chains(on, 3)

    def greedy() -> None:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")

    on._make_decoder = greedy  # type: ignore[method-assign]
    release(torch.device("cuda"))
    held = fill_device()
    with pytest.raises(UserError, match="no memory left for even one slot"):
        on.run(asked)
    assert [event.new for event in on.take_slot_changes()] == [1, 0]
    del held


def test_a_gpu_without_bfloat16_takes_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    model = load_model(str(DEMO / "model"), EngineConfig(), "cuda")
    assert model.cache_shape.dtype == torch.float16
    with pytest.raises(UserError, match=r"has no bfloat16; set engine\.dtype to float16 or auto"):
        load_model(str(DEMO / "model"), EngineConfig(dtype="bfloat16"), "cuda")


def test_the_command_line_takes_auto(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["run", "--inline", "--num-gpus", "1", "--model", "demo", "--data", "demo", "--limit", "16"]
    assert main([*flags, "--batch-size", "auto", "--run-dir", str(tmp_path / "run")]) == 0
    assert "256 slots on cuda" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["memory"]["slots"] == 256

"""On a CUDA device: the same semantics as on the CPU, and the whole run. `make test-gpu`."""

from __future__ import annotations

import json
import random
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

from evals.config import EngineConfig, TaskConfig
from evals.engine.checkpoint import load_model
from evals.engine.engine import Engine
from evals.engine.token_sampling import draw
from evals.evaluate import make_prompt
from evals.rng import RandomKey
from evals.samplers.power import Power
from evals.samplers.single import AtTemperature, Greedy
from evals.tasks.task import make_task
from evals.types import Chain, Problem, Sample, Sampler
from orchestrator.cli import main
from orchestrator.inputs.problems import load_problems
from support.pages import audit
from support.places import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEMO = ROOT / "evals/demo"


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return load_problems(str(DEMO / "problems.jsonl")).problems[:24]


def engine(device: str, dtype: str, slots: int = 8) -> Engine:
    config = EngineConfig(dtype=dtype)  # type: ignore[arg-type]
    return Engine.build(load_model(str(DEMO / "model"), config, device), config, slots=slots, max_length=400)


def samples(on: Engine, problems: list[Problem], sampler: Sampler) -> list[Sample]:
    task = make_task(TaskConfig(max_new_tokens=96), 0)
    prompts = [make_prompt(task, problem, on.model.tokenizer) for problem in problems]
    chains = [Chain(p, sampler.chain(p, RandomKey(3, i, 0))) for i, p in enumerate(prompts)]
    return on.run(chains)


@pytest.mark.parametrize("sampler", [Greedy(), AtTemperature(1.0), Power(4.0, 6)])
def test_float32_tokens_equal_those_of_the_cpu(sampler: Sampler, problems: list[Problem]) -> None:
    ours, theirs = (samples(engine(device, "float32"), problems, sampler) for device in ("cuda", "cpu"))
    same = [a.tokens == b.tokens for a, b in zip(ours, theirs, strict=True)]
    # a tie within rounding may fall either way; more than one in 24 chains of some 500 draws would be an error
    assert sum(same) >= len(same) - 1
    for a, b in zip(ours, theirs, strict=True):
        if a.tokens == b.tokens:
            np.testing.assert_allclose(a.log_q, b.log_q, atol=1e-3)
            np.testing.assert_allclose(a.log_z, b.log_z, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_answers_end_and_pages_come_back(dtype: str, problems: list[Problem]) -> None:
    on = engine("cuda", dtype, slots=16)
    found = samples(on, problems, Power(4.0, 4))
    assert np.mean([sample.ended == "eos" for sample in found]) > 0.8
    assert all((sample.log_z <= 0).all() for sample in found)
    audit(on._pool)
    assert on.counters().kv_pages_used == 0


def test_cancelled_chains_leave_their_pages_and_the_others_answers(problems: list[Problem]) -> None:
    """A thousand at random moments, beside chains that go on."""
    sampler, rng = Power(4.0, 6), random.Random(0)
    expected = samples(engine("cuda", "float32", slots=16), problems, sampler)
    on = engine("cuda", "float32", slots=16)
    task = make_task(TaskConfig(max_new_tokens=96), 0)
    prompts = [make_prompt(task, problem, on.model.tokenizer) for problem in problems]
    kept = [on.submit(Chain(p, sampler.chain(p, RandomKey(3, i, 0)))) for i, p in enumerate(prompts)]
    endless = Power(4.0, 100_000)
    under_way: list[Future[Sample]] = []
    for number in range(1000):
        to = prompts[number % len(prompts)]
        under_way.append(on.submit(Chain(to, endless.chain(to, RandomKey(4, number, 0)))))
        while len(under_way) > 12:
            under_way.pop(rng.randrange(len(under_way))).cancel()
        if number % 3 == 0 and on._take():
            on._step()
    for future in under_way:
        future.cancel()
    while on._take():
        on._step()
    same = [one.result().tokens == other.tokens for one, other in zip(kept, expected, strict=True)]
    assert sum(same) >= len(same) - 1  # a tie within rounding, as above
    assert (on.counters().cancelled_chains, on.counters().kv_pages_used) == (1000, 0)
    audit(on._pool)


def test_draws_equal_the_cpus_up_to_edges() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 50_000, generator=rng)
    alpha = torch.tensor([1.0, 4.0, 0.7, torch.inf], dtype=torch.float64).repeat(16)
    uniform = torch.rand(64, generator=rng, dtype=torch.float64)
    exclude = torch.where(torch.arange(64) % 2 == 0, logits.argmax(-1), torch.tensor(-1))
    cpu = draw(logits, alpha, uniform, exclude)
    gpu = draw(logits.cuda(), alpha.cuda(), uniform.cuda(), exclude.cuda())
    assert (cpu.token == gpu.token.cpu()).sum() >= 63
    same = cpu.token == gpu.token.cpu()
    torch.testing.assert_close(cpu.log_q[same], gpu.log_q.cpu()[same], atol=1e-9, rtol=0)
    torch.testing.assert_close(cpu.log_z[same], gpu.log_z.cpu()[same], atol=1e-9, rtol=0)


def test_the_command_line_runs_on_the_gpu_and_reports_its_memory(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["run", "--inline", "--num-gpus", "1", "--model", "demo", "--data", "demo", "--limit", "16"]
    assert main([*flags, "--run-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["num_records"] == 16
    assert summary["memory"]["kind"] == "device"
    assert summary["memory"]["largest_peak_bytes"] > 0
    assert "device memory" in capsys.readouterr().out

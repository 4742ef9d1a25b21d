"""Benchmarks: their arithmetic, what they time and what they print. Figures of a CPU mean nothing; their shape does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from benchmarks import end_to_end
from evals import evaluate
from evals.config import EngineConfig, TaskConfig
from evals.engine import checkpoint, device
from evals.engine import decoding_speed as measure
from evals.engine.checkpoint import random_model
from evals.engine.decoding_speed import Roofline, generate, roofline, time_decoding, time_generate
from evals.engine.device import IdleClock
from evals.engine.engine import Engine, EngineCounters
from evals.engine.model import Model
from evals.record import Record
from evals.sizing.shapes import SHAPES
from evals.tasks.task import make_task
from evals.types import Problem, Prompt
from orchestrator.cli import main
from orchestrator.commands.table import make_parser
from orchestrator.machine import gpus
from support.made_up import make_record
from support.places import ROOT

SHORT = ["bench", "--context", "40", "--steps", "8"]


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "visible_gpus", lambda: [])


@pytest.fixture
def tiny() -> Model:
    torch.manual_seed(0)
    return random_model(SHAPES["tiny"], EngineConfig(), "cpu")


def test_the_command_ends_with_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--batch", "1,3,auto"]) == 0
    out = capsys.readouterr().out
    assert out.index("roofline") < out.index("generate") < out.index("decoding") < out.index("start to the first token")
    found = json.loads(out.splitlines()[-1])
    assert [row["slots"] for row in found["roofline"]["steps"]] == [1, 3]
    assert [(row["asked"], row["execution"]) for row in found["decode"]] == [(n, "eager") for n in (1, 3, "auto")]
    assert [row["over_generate"] is None for row in found["decode"]] == [False, False, True]
    for row in (*found["decode"], *found["generate"]):
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["slots"] / row["ms"], rel=1e-3)
    assert set(found["start_up"]) == {"imports", "checks", "load", "engine", "first_token", "total"}
    assert found["versions"]["torch"] == torch.__version__


def test_json_alone_and_without_generate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--batch", "2", "--no-generate", "--json", "--model", "demo", "--dtype", "bfloat16"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["bench"], found["dtype"], found["generate"]) == ("demo", "bfloat16", [])


def test_the_last_token_may_be_the_last_of_the_context(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.context_length = 64
    monkeypatch.setattr(checkpoint, "random_model", lambda *_: tiny)
    assert main(["bench", "--context", "59", "--steps", "8", "--batch", "1", "--no-generate"]) == 0
    assert main(["bench", "--context", "60", "--steps", "8", "--batch", "1", "--no-generate"]) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--context", "20"], ["--context 20", "raise"]),
        (["--steps", "-1"], ["--steps", "'-1' is not a whole number from 1"]),
        (["--context", "32718"], ["need 32769 tokens", "32768"]),
        (["--batch", "0,4"], ["--batch", "'0,4'"]),
        (["--batch", "many"], ["--batch", "'many'"]),
        (["--shape", "70b"], ["--shape", "70b"]),
        (["--batches", "3"], ["--batches", "--help"]),
        (["--model", "/no/such/model"], ["/no/such/model"]),
    ],
)
def test_mistakes_are_one_sentence(flags: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line


def test_the_shapes_and_choices_of_the_options_are_those_that_exist() -> None:
    assert all(make_parser(name).options["--shape"].choices == SHAPES for name in ("bench", "plan"))
    fields = EngineConfig.model_fields
    for name in ("dtype", "execution"):
        assert make_parser("bench").options[f"--{name}"].choices == get_args(fields[name].annotation)
    assert ("auto", *(make_parser("plan").options["--dtype"].choices or ())) == get_args(fields["dtype"].annotation)
    assert make_parser("plan").get_default("target") == EngineConfig().target_utilisation


def test_a_tied_embedding_is_read_and_one_that_is_only_looked_up_is_not() -> None:
    read = {}
    for tied in (True, False):
        found = roofline(random_model(SHAPES["tiny"]._replace(tie_word_embeddings=tied), EngineConfig(), "cpu"))
        read[tied] = found.weights
        assert found.weight_bytes == 4 * found.weights
        assert found.kv_bytes == 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head size, float32
        assert min(found.bandwidth, found.arithmetic) > 1e6
    layer = 64 * (64 + 2 * 32) + 64 + 2 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64  # q, k, v with biases, o, MLP, norms
    assert read[True] == read[False] == 2 * layer + 64 + 512 * 64


def test_the_larger_of_memory_and_arithmetic_binds() -> None:
    roof = Roofline(weight_bytes=2000, weights=1000, kv_bytes=10, bandwidth=1e3, arithmetic=1e5)
    assert roof.step_ms(4, 50) == pytest.approx((1e3 * (2 + 2), 1e3 * (0.08 + 2)))
    assert roof.step_ms(400, 50) == pytest.approx((1e3 * (2 + 200), 1e3 * (8 + 200)))


def test_steps_are_timed_from_one_token_to_another_with_all_slots_busy(
    tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int, int]] = []
    engines: list[Engine] = []
    build = Engine.build

    def built(*args: Any, **sizes: Any) -> Engine:
        engines.append(build(*args, **sizes))
        return engines[-1]

    def watching(token_ids: Any, new: int, eos_ids: Any, mark: Any) -> Prompt:
        def see(tokens: Any) -> bool:
            counters, slots = engines[-1].counters(), engines[-1]._runner.scheduler.slots
            seen.append((len(tokens), counters.steps, counters.active_slots, slots[0].position))
            return mark(tokens)

        return Prompt(token_ids, new, eos_ids, mark and see)

    monkeypatch.setattr(Engine, "build", built)
    monkeypatch.setattr(measure, "Prompt", watching)
    done, _ = time_decoding(tiny, EngineConfig(), 5, context=60, steps=10)
    assert (done.slots, done.waits) == (5, None)
    timed = [row for row in seen if measure.WARM_UP < row[0] <= measure.WARM_UP + 10]
    assert timed[-1][1] - timed[0][1] == 9  # a token a step
    assert {row[2] for row in timed} == {5}
    contexts = [row[3] for row in timed]  # the token just drawn saw as many
    assert sum(contexts) / len(contexts) == pytest.approx(60, abs=1)


def test_generate_takes_the_steps_asked_for_and_leaves_the_model_as_it_was(tiny: Model) -> None:
    prompts = measure.random_prompts(tiny, 2, 9)
    before = tiny.plain_logits(prompts[0])
    assert generate(tiny, [prompts[0], prompts[1][:4]], 7, 4.0, ends=False).steps == 7
    found = time_generate(tiny, 2, context=40, steps=5)
    assert found is not None
    assert found.steps == 5
    assert tiny.network.config._attn_implementation == "powersample"
    torch.testing.assert_close(tiny.plain_logits(prompts[0]), before)
    assert time_decoding(tiny, EngineConfig(), 2, context=40, steps=4)[0].ms > 0


def test_generate_without_room_for_its_scores_has_no_figures(
    tiny: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny.network, "generate", no_room)
    monkeypatch.setattr(checkpoint, "random_model", lambda *_: tiny)
    assert main([*SHORT, "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert "out of memory" in out
    found = json.loads(out.splitlines()[-1])
    assert found["generate"][0]["ms"] is found["decode"][0]["over_generate"] is None


class FakeEvent:
    """An event of a stream whose clock the test sets; done once the stream has come so far."""

    now = 0.0
    reached = 0.0

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = float("inf")

    def record(self) -> None:
        self.at = FakeEvent.now

    def query(self) -> bool:
        return self.at <= FakeEvent.reached

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.at - self.at)


def test_gaps_between_pieces_of_work_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    host = SimpleNamespace(now=0.0)
    monkeypatch.setattr(device.time, "perf_counter", lambda: host.now)
    clock = IdleClock(torch.device("cuda"))

    def work(begin: float, end: float, reached: float, enqueuing: float = 0.0) -> None:
        """A piece that the device does from `begin` to `end`, enqueued when it has come to `reached`."""
        FakeEvent.now, FakeEvent.reached = begin, reached
        with clock.work():
            FakeEvent.now = end
            host.now += enqueuing

    work(0, 10, reached=0)
    work(10, 20, reached=5, enqueuing=3)  # in time: enqueued while the device worked
    assert clock.seconds == 0
    work(24, 30, reached=24, enqueuing=2)  # four seconds late, and two more to enqueue
    assert clock.seconds == pytest.approx(4 + 2)
    clock.reset()
    work(100, 110, reached=100, enqueuing=5)  # after a pause
    work(111, 120, reached=105)
    assert clock.seconds == 0  # the device has not come to that gap yet
    work(120, 130, reached=115)
    assert clock.seconds == pytest.approx(1)


def test_on_a_cpu_the_clock_stands_still() -> None:
    clock = IdleClock(torch.device("cpu"))
    with clock.work():
        pass
    assert clock.seconds == 0


def test_a_whole_run_counts_its_own_tokens_and_how_often_another_answer_was_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = EngineCounters(0, 0, 4, 0, 0, 0, 0, 0, 9, 0.0)
    counted = iter([nothing._replace(steps=3, generated_tokens=5, prefilled_tokens=7)])
    after = nothing._replace(steps=103, generated_tokens=665, prefilled_tokens=127)
    engine: Any = SimpleNamespace(
        counters=lambda: next(counted, after), start=lambda: None, take_slot_changes=list, idle=None
    )
    chain = {"moves": 10, "null": 4, "accepted": 3}
    records = [make_record(i, correct=i == 0, chain=chain) for i in range(4)]
    futures = [Future[Record]() for _ in records]
    for future, record in zip(futures, records, strict=True):
        future.set_result(record)
    monkeypatch.setattr(evaluate, "start_sample", lambda problem, *_, **__: futures[problem.problem_id])
    problems, task = [Problem.from_answer(i, "?", "#### 18") for i in range(4)], make_task(TaskConfig(), 0)
    found = end_to_end.sampled(engine, task, problems, end_to_end.parse([]))
    assert (found["steps"], found["generated_tokens"], found["prefilled_tokens"]) == (100, 660, 120)
    assert (found["problems"], found["answer_tokens"]) == (4, 4 * 80)
    assert found["accuracy"] == dict.fromkeys(("strict", "flexible", "numeric"), 0.25)
    assert (found["acceptance"], found["null_moves"]) == (12 / 24, 16 / 40)


def test_a_whole_run_begins_once_one_token_is_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is the last phase of the start, and no part of what is measured."""
    monkeypatch.setattr(end_to_end, "sampled", lambda engine, *_: {"drawn": engine.counters().generated_tokens})
    assert end_to_end.main(["--limit", "1", "--slots", "1", "--max-new-tokens", "8"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["drawn"] == 1
    assert list(found["start_up"])[-2:] == ["first_token", "total"]


def test_a_whole_run_is_measured() -> None:
    flags = ["--limit", "8", "--slots", "4", "--moves", "2", "--max-new-tokens", "64", "--compare-generate", "2"]
    done = subprocess.run(
        [sys.executable, "benchmarks/end_to_end.py", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["problems"], found["slots"], found["execution"]) == (8, 4, "eager")
    assert found["generated_tokens"] > found["answer_tokens"] > 8
    assert set(found["accuracy"]) >= {"strict", "flexible", "numeric"}
    assert found["accuracy"]["numeric"] > 0.3
    assert 0 < found["acceptance"] < 1
    assert found["generate"]["problems"] == 2
    assert found["generate"]["peak_bytes"] > 0
    assert set(found["start_up"]) == {"imports", "sources", "load", "engine", "first_token", "total"}

"""Device memory that runs out: fewer slots, and the same samples. The decoder is made to fail; no device is needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.engine.device import out_of_memory
from evals.engine.eager_decoder import EagerDecoder
from evals.engine.kv_cache import PagePool
from evals.rng import RandomKey
from evals.sizing.slots import fewer_slots
from evals.types import Cancel, Chain, Drop, Keep, Sample, Submit, UserError
from orchestrator.cli import main
from orchestrator.driver.dispatcher import Dispatcher
from orchestrator.rundir.reading.telemetry import events, read_telemetry
from orchestrator.rundir.telemetry_rows import WorkerState
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.workers.pool import Health
from support.disturbed import KINDS, assert_same, run
from support.pages import audit
from support.tiny_models import Pair, engine, make, prompt, request, sample

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB.\nMore."


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama", seed=1)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes calls of a decoder's method, by number, run out of memory when all their work is done."""

    def fail(method: str, at: Iterable[int]) -> None:
        real, calls, numbers = getattr(EagerDecoder, method), iter(range(10**6)), set(at)

        def failing(*arguments: Any) -> Any:
            result = real(*arguments)
            if next(calls) in numbers:
                raise torch.OutOfMemoryError(MESSAGE)
            return result

        monkeypatch.setattr(EagerDecoder, method, failing)

    return fail


@pytest.mark.parametrize(("slots", "after"), [(8, 4), (3, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_an_undisturbed_run(
    kind: str, slots: int, after: int, pair: Pair, fail: Callable[..., None]
) -> None:
    calm, _ = run(pair, kind, slots)
    fail("step", {3, 40})
    shaken, on = run(pair, kind, slots)
    for one, two in zip(calm, shaken, strict=True):
        assert_same(one, two)
    assert on.counters().slots == after
    events = on.take_slot_changes()
    assert [(event.old, event.new) for event in events] == [(slots, fewer_slots(slots)), (fewer_slots(slots), after)]
    assert {event.reason for event in events} == {"CUDA out of memory. Tried to allocate 2.00 GiB."}
    assert events[0].time <= events[1].time
    assert on.take_slot_changes() == []


def test_a_prompt_pass_may_fail_as_well(pair: Pair, fail: Callable[..., None]) -> None:
    calm, _ = run(pair, "power", 4)
    fail("prefill", {0, 3})
    shaken, on = run(pair, "power", 4)
    for one, two in zip(calm, shaken, strict=True):
        assert_same(one, two)
    assert on.counters().slots == 2


def test_handles_outlive_their_pages(pair: Pair, fail: Callable[..., None]) -> None:
    """Held sequences can be branched from, kept, dropped and named as before, and so can their branches in flight."""
    to = prompt(3, 20, max_new=60)
    got: list[list[tuple[int, ...]]] = []

    def script() -> Any:
        (_, trunk) = yield [Submit("trunk", request(to, 30))]
        tokens = to.token_ids + trunk.tokens
        branches = [request(to, 20, prefix=tokens[:cut], parent=trunk.handle, key=(0, 0, cut)) for cut in (25, 33, 41)]
        arrival = yield [Submit(i, branch) for i, branch in enumerate(branches)]
        found = dict([arrival])
        while len(found) < len(branches):
            found |= dict([(yield [])])
        yield [Keep(found[1].handle), Drop(found[0].handle)]  # the trunk goes with the first
        state = branches[1].prefix + found[1].tokens
        again = request(to, 9, prefix=state[:40], parent=found[1].handle, key=(0, 0, 99))
        (_, last) = yield [Submit("last", again), Drop(found[1].handle), Submit("gone", request(to, 30))]
        yield [Cancel("gone")]
        got.append([*(found[i].tokens for i in range(3)), last.tokens])
        return sample(last)

    for calls in ((), (29,), (35,), (12, 33, 50), (51, 55)):
        with pytest.MonkeyPatch.context() as patch:
            real, count = EagerDecoder.step, iter(range(10**6))

            def step(self: Any, slots: Any, calls: Any = calls, count: Any = count, real: Any = real) -> Any:
                if next(count) in calls:
                    raise torch.OutOfMemoryError(MESSAGE)
                return real(self, slots)

            patch.setattr(EagerDecoder, "step", step)
            on = engine(pair.model, slots=5)
            on.run([Chain(to, script())])
            audit(on._pool)
            assert on.counters().kv_pages_used == 0
            assert len(on.take_slot_changes()) == len(calls)
    assert all(tokens == got[0] for tokens in got)


def test_a_pool_that_starts_over_knows_its_sequences_but_none_of_their_pages() -> None:
    pool = PagePool(12)
    parent, child = (pool.open(None, 0, 40).handle for _ in range(2))
    pool.reset(5)
    audit(pool)
    assert (pool.capacity, pool.num_used) == (4, 0)
    assert not pool.reaches(parent, 1)
    allocation, present = pool.open_prompt(range(30), 50)
    assert (present, pool.num_used) == (0, 4)
    assert pool.reaches(allocation.handle, 49)
    for handle in (parent, child, allocation.handle):
        pool.drop(handle)
    audit(pool)
    assert pool.num_used == 0


def test_memory_that_runs_out_while_an_engine_is_made(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def fastest_decoder(model: Any, cache: Any, config: Any, slots: int, max_pages: int) -> EagerDecoder:
        made.append(slots)
        if slots > 4:
            raise torch.OutOfMemoryError(MESSAGE)
        return EagerDecoder(model, cache)

    monkeypatch.setattr("evals.engine.execution.fastest_decoder", fastest_decoder)
    on = engine(pair.model, slots=8)
    assert made == [8, 6, 4]
    assert on.counters().slots == 4
    assert on.counters().kv_pages == 2 * 4 * 10  # 160 tokens
    assert len(on.take_slot_changes()) == 2


def test_chains_fail_in_one_sentence_where_not_even_one_slot_fits(pair: Pair, fail: Callable[..., None]) -> None:
    on = engine(pair.model, slots=3)
    prompts = [prompt(i) for i in range(4)]
    sampler = KINDS["power"]
    fail("step", range(2, 10**6))
    chains = [Chain(p, sampler.chain(p, RandomKey(1, i, 0))) for i, p in enumerate(prompts)]
    futures: list[Future[Sample]] = [on.submit(chain) for chain in chains]
    on.start()
    for future in futures:
        with pytest.raises(UserError, match=r"no memory left for even one slot \(CUDA out of memory\. Tried to"):
            future.result(timeout=60)
    assert [event.new for event in on.take_slot_changes()] == [2, 1, 0]
    assert isinstance(on.failure, UserError)
    with pytest.raises(UserError):
        on.close()


def test_other_errors_are_not_taken_for_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(EagerDecoder, "step", broken)
    on = engine(pair.model)
    to = prompt()
    with pytest.raises(RuntimeError, match="illegal memory access"):
        on.run([Chain(to, KINDS["power"].chain(to, RandomKey(1, 0, 0)))])
    assert on.take_slot_changes() == []


def test_the_worker_says_it_once_and_the_driver_writes_it_down(
    tmp_path: Path, fail: Callable[..., None], capsys: pytest.CaptureFixture
) -> None:
    """A run of the embedded model whose memory runs out twice: every answer once, and both events."""
    telemetry = {}
    for name in ("calm", "shaken"):
        if name == "shaken":
            fail("step", {4, 20})
        flags = ["--inline", "--num-gpus", "0", "--limit", "5", "--batch-size", "4", "--sampler.num-moves", "1"]
        demo = ["--model", "demo", "--data", "demo", "--task.max-new-tokens", "20"]
        assert main(["run", *demo, *flags, "--run-dir", str(tmp_path / name)]) == 0
        telemetry[name] = read_telemetry(tmp_path / name / "telemetry.jsonl")
    changes = events(telemetry["shaken"], "slots")
    assert [(row.old, row.new, row.worker) for row in changes] == [(4, 3, "inline"), (3, 2, "inline")]
    assert all(row.reason.startswith("CUDA out of memory") for row in changes)
    assert not events(telemetry["calm"], "slots")
    assert "goes on with 3 slots instead of 4: CUDA out of memory" in capsys.readouterr().err
    answers = []
    for name in telemetry:
        lines = (tmp_path / name / "records.jsonl").read_text().splitlines()
        answers.append({row["problem_id"]: row["token_ids"] for row in map(json.loads, lines)})
        assert len(lines) == len(answers[-1]) == 5
    assert answers[0] == answers[1]


def test_equal_notes_of_several_workers_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    telemetry = Telemetry(tmp_path / "telemetry.jsonl")
    dispatcher: Any = Dispatcher(None, None, telemetry.write, telemetry.write_state)  # type: ignore[arg-type]
    for worker, notes in (("gpu0", "64 slots"), ("gpu1", "64 slots"), ("gpu0", ""), ("gpu2", "32 slots")):
        dispatcher.record_health(Health(WorkerState(time=1.0, worker=worker, slots=1), notes))
    telemetry.close()
    assert capsys.readouterr().err.splitlines() == ["64 slots", "32 slots"]
    assert len(read_telemetry(tmp_path / "telemetry.jsonl")) == 4
    assert "notes" not in (tmp_path / "telemetry.jsonl").read_text()


def test_out_of_memory_in_all_its_words() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried")) == "CUDA out of memory. Tried"
    assert out_of_memory(RuntimeError("CUDA error: out of memory\nCompile with")) == "CUDA error: out of memory"
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")) is not None
    assert out_of_memory(RuntimeError("Triton Error [CUDA]: out of memory")) is not None
    assert out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
    assert out_of_memory(RuntimeError("the host is out of memory")) is None
    assert out_of_memory(MemoryError("3 pages are needed and 2 are free")) is None
    second = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    second.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert out_of_memory(second) == "CUDA out of memory"

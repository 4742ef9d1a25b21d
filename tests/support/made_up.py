"""Made-up records, run.json and telemetry: runs for tests of summaries, reports and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.record import Record, encode, read_line
from evals.types import MemoryReading
from orchestrator.analysis.load import Run
from orchestrator.analysis.summarise import summarise
from orchestrator.cli import main
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.telemetry_rows import Event, WorkerState

POWER = {"kind": "power", "alpha": 4.0, "num_moves": 10}


PLAIN = {"kind": "temperature", "temperature": 1.0}


def make_run(sampler: dict[str, Any] = POWER, num_problems: int = 4, **changes: Any) -> dict[str, Any]:
    config = {
        "sampler": sampler, "task": {"name": "gsm8k", "num_shots": 0, "max_new_tokens": 256}, "model": "models/tiny",
        "data": "problems.jsonl", "seed": 3, "num_samples": 1, **changes,
    }  # fmt: skip
    provenance = {
        "data": {"name": "problems.jsonl", "sha256": "d" * 64, "rows": 1319},
        "git_commit": "c" * 40,
        "git_dirty": True,
    }
    return {"config": config, "num_problems": num_problems, "fingerprint": "f" * 64, "provenance": provenance}


def known(sampler: dict[str, Any] = POWER, num_problems: int = 4, name: str = "run", **changes: Any) -> Manifest:
    return Manifest.of(Path(name), make_run(sampler, num_problems, **changes))


CHAIN = {
    "moves": 10, "null": 2, "rejected_early": 1, "replayed_tokens": 7, "accepted": 4, "generated": 330,
    "initial_tokens": 80, "log_p_first": -20.0, "log_p": -15.0,
}  # fmt: skip


def make_record(problem_id: int, correct: bool = True, sample_index: int = 0, **changes: Any) -> Record:
    score = {"correct": correct, "answer": "18", "kind": "number"}
    fields = {
        "problem_id": problem_id, "sample_index": sample_index, "status": "ok", "text": "#### 18", "token_ids": [5, 6],
        "ended": "eos", "scores": dict.fromkeys(("strict", "flexible", "numeric"), score), "chain": CHAIN,
        "timings": {"start": 100.0 + problem_id, "end": 102.0 + problem_id, "wall_seconds": 2.0 + problem_id},
        "memory": {"rss_bytes": 900, "peak_rss_bytes": 1000 + problem_id, "peak_bytes": None, "total_bytes": None},
        "tokens": {"prompt": 50, "answer": 80, "generated": 330, "prefilled": 60},
        "worker": {"rank": problem_id % 2, "name": f"cpu{problem_id % 2}"},
    }  # fmt: skip
    return changed(fields, **changes)


def changed(record: Record | dict[str, Any], **changes: Any) -> Record:
    """The record with other fields, which may be given as in a line of records.jsonl."""
    fields = json.loads(encode(record)) if isinstance(record, Record) else record
    return read_line(json.dumps(fields | changes), Record)


FULL = {
    "moves": 10, "null": 4, "accepted": 3, "rejected_early": 2, "generated": 200, "prefilled": 50, "initial_tokens": 80,
    "replayed_tokens": 90, "naive_tokens": 400, "discarded_tokens": 12,
    "mean_cut": 0.5, "mean_divergence": 0.7, "distinct": 4, "drift_max": 1e-5, "drift_mean": 2e-6,
    "log_p_first": -20.0, "log_p": -14.0, "log_z_sum_first": -12.0,
    "log_p_trace": [-20.0] * 7 + [-18.0, -16.0, -15.0, -14.0], "expected_correct": {"numeric": 0.75, "strict": 0.5},
}  # fmt: skip
"""The figures of a chain of which all are reported."""


def chained(problem_id: int, sample_index: int = 0, correct: bool = True, **changes: Any) -> Record:
    return make_record(problem_id, correct, sample_index, chain={**FULL, **changes})


def failed_record(problem_id: int) -> Record:
    empty: dict[str, Any] = {"scores": {}, "chain": {}, "timings": {}, "memory": {}, "tokens": {}, "token_ids": []}
    return make_record(problem_id, status="failed", text="", ended="failed", error="it raised", **empty)


def rows(bits: str) -> list[Record]:
    """Several samples of each problem; 1 is right."""
    return [make_record(i, bit == "1", k) for i, row in enumerate(bits.split()) for k, bit in enumerate(row)]


def as_run(name: str, sampler: dict[str, Any], verdicts: str, **changes: Any) -> Run:
    records = [make_record(i, verdict == "1") for i, verdict in enumerate(verdicts) if verdict != " "]
    run = known(sampler, len(verdicts), name, **changes)
    return Run(summarise(records, [], run), records)


TELEMETRY = [
    Event(event="start", time=90.0),
    Event(event="phase", name="setup", time=90.0),
    Event(event="phase", name="load", time=91.0),
    Event(event="phase", name="sampling", time=95.0),
    *(
        WorkerState(
            time=at, worker=worker, pid=pid, rank=1, slots=10, active_slots=9, steps=steps, generated_tokens=generated,
            memory=MemoryReading(4000, 5000),
        )
        for at, worker, pid, steps, generated in [
            (95.0, "cpu1", 7, 300, 2_000),  # it has worked for another run before
            (97.0, "cpu1", 7, 320, 2_100),
            (97.5, "cpu1", 8, 0, 0),
            (98.0, "cpu2", 9, 50, 3_000),
            (99.0, "cpu1", 8, 30, 100),
        ]
    ),
    Event(event="phase", name="end", time=105.0),
]  # fmt: skip


def write(directory: Path, run: dict[str, Any], records: list[Record], torn: bytes = b"") -> Path:
    """A run directory."""
    directory.mkdir()
    (directory / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (directory / "records.jsonl").write_bytes(b"".join(map(encode, records)) + torn)
    (directory / "telemetry.jsonl").write_bytes(b"".join(row.line() for row in TELEMETRY))
    return directory


def save(directory: Path, sampler: dict[str, Any], verdicts: str, shuffled: bool = False) -> Path:
    records = [make_record(i, verdict == "1") for i, verdict in enumerate(verdicts)]
    return write(directory, make_run(sampler, len(verdicts)), records[:: -1 if shuffled else 1], b'{"torn": ')


def said(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that succeeds prints."""
    assert main(command) == 0
    return capsys.readouterr().out


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which the command line refuses a command."""
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:13]) == ("", 1, "powersample: ")
    return err


def on_gpu(worker: str, time: float = 5.0, **changes: Any) -> WorkerState:
    """What a worker on a GPU says of itself."""
    memory = MemoryReading(1 << 30, 1 << 30, reserved_bytes=30 << 30, free_bytes=40 << 30, total_bytes=80 << 30)
    sample = WorkerState(time=time, worker=worker, pid=1, active_slots=9, slots=10, memory=memory, utilisation=0.97)
    return sample.model_copy(update=changes)

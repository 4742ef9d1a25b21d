"""Compares two runs of the same problems, batched and one at a time: memory, utilisation, problems in flight, times."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from evals.sizing.slots import gib
from orchestrator.analysis.load import Run, load_run
from orchestrator.rundir.telemetry_rows import WorkerState

ROW = "{:<30}{:>20}{:>20}"


def main(paths: Sequence[str]) -> int:
    """Print the table of the two runs at `paths`, the batched one first. Returns 0."""
    runs = [load_run(Path(path)) for path in paths]
    columns = [column(run) for run in runs]
    if runs[0].summary.memory.kind != "device":
        print("There is no GPU here: memory is that of the workers' processes, and utilisation cannot be told.")
    print(ROW.format("", "batched", "one at a time"))
    for name in columns[0]:
        print(ROW.format(name, *(one.get(name, "") for one in columns)))
    batched, single = (run.summary.timings.sampling_seconds or 0.0 for run in runs)
    print(f"one at a time / batched: {single / batched:.1f}x")
    return 0


def column(run: Run) -> dict[str, str]:
    """A run's column of the table, by row name. The mean number in flight is all answers' seconds over the run's."""
    seconds = run.summary.timings.sampling_seconds or 0.0
    busy = sum(record.timings.wall_seconds or 0.0 for record in run.records)
    states = [row for row in run.telemetry if isinstance(row, WorkerState)]
    workers = sorted({row.worker for row in states})
    shown = {
        "slots": f"{len(workers)} x {run.summary.memory.slots}",
        "problems in flight, mean": f"{busy / seconds:.1f}",
        "problems failed": str(run.summary.num_failed),
        "seconds of sampling": f"{seconds:.1f}",
    }
    for worker in workers:
        shown |= of_worker(worker, [row for row in states if row.worker == worker])
    return shown


def of_worker(name: str, states: Sequence[WorkerState]) -> dict[str, str]:
    """A worker's rows: peak memory, and mean utilisation where its GPU reports it."""
    used = [row.nvml_used_bytes for row in states if row.nvml_used_bytes is not None]
    busy = [row.utilisation for row in states if row.utilisation is not None]
    if not used:
        return {f"{name}: memory (RSS)": gib(max(row.memory.peak_rss_bytes or 0 for row in states))}
    total = max(row.memory.total_bytes or 0 for row in states)
    shown = {f"{name}: memory": f"{max(used) / total:.0%} of {gib(total)}"}
    return shown | ({f"{name}: utilisation, mean": f"{fmean(busy):.0%}"} if busy else {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

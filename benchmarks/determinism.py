"""Counts the answers that change with the number of slots and with the precision, the configuration being the same.

    python benchmarks/determinism.py --slots 1,3,8 --model demo --data demo --limit 50 --inline
    python benchmarks/determinism.py --slots 1,8,32 --dtypes float32,bfloat16 --model FOLDER --data FILE.jsonl --inline

Every pair of a dtype and a number of slots is an ordinary `powersample run` in a process and a directory of its own;
all other options go to it as they are. A complete run is only read. Each run is compared with the first of its dtype,
and the first of each dtype with the very first: answers with other tokens, with another number, with another verdict.
Ends with one JSON line. In float32 on a CPU a single other token is an error (exit code 1).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evals.record import Record
from evals.types import UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC, is_right, normalised_answer
from orchestrator.analysis.load import Run, load_run
from orchestrator.report.layout import table
from orchestrator.wording import percent


class Condition(NamedTuple):
    """The settings that differ between the runs."""

    dtype: str
    slots: int


class Differences(NamedTuple):
    """Number of answers in which two runs differ."""

    tokens: int
    numeric: int
    """Another number, however written, or one where the other has none."""
    score: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run and compare what `argv` asks for; returns the exit code, that of a run which does not end with 0 or 3."""
    args, options = parse(argv)
    conditions = [Condition(dtype, slots) for dtype in args.dtypes for slots in args.slots]
    for condition in conditions:
        if (code := run(condition, args.run_dir, options)) not in (0, 3):
            return code
    try:
        runs = {condition: load_run(directory(args.run_dir, condition)) for condition in conditions}
        rows = compared(runs)
    except UserError as error:
        print(f"determinism.py: {error}", file=sys.stderr)
        return 2
    print(text(rows))
    on_cpu = not runs[conditions[0]].manifest.content["config"]["num_gpus"]
    print(
        json.dumps({"answers": len(runs[conditions[0]].records), "device": "cpu" if on_cpu else "cuda", "runs": rows})
    )
    exact = [row["tokens"] for row in rows if row["against"] and row["dtype"] == row["against"][0] == "float32"]
    if on_cpu and any(exact):
        print("determinism.py: answers differ, which in float32 on a CPU is an error", file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """This script's options, and those that go to `powersample run`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--slots", type=numbers, default=[1, 3, 8, 32], help="numbers of slots, such as 1,3,8,32")
    parser.add_argument("--dtypes", type=names, default=["float32"], help="such as float32,bfloat16")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/determinism"), help="where the runs are kept")
    return parser.parse_known_args(argv)


def numbers(text: str) -> list[int]:
    return list(dict.fromkeys(map(int, text.split(","))))


def names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def directory(root: Path, condition: Condition) -> Path:
    return root / f"{condition.dtype}-{condition.slots}"


def run(condition: Condition, root: Path, options: Sequence[str]) -> int:
    """Call `powersample run` under a condition and return its exit code; its report goes to standard error."""
    place = str(directory(root, condition))
    ours = ["--batch-size", str(condition.slots), "--engine.dtype", condition.dtype, "--run-dir", place]
    command = [sys.executable, "-m", "orchestrator", "run", *options, *ours]
    return subprocess.run(command, check=False, stdout=2).returncode


def compared(runs: dict[Condition, Run]) -> list[dict[str, Any]]:
    """The table's row of each run, in their order. Raises UserError if runs have answered other problems."""
    first: dict[str, Condition] = {}
    rows = []
    for condition, one in runs.items():
        against = first.get(condition.dtype) or next(iter(first.values()), None)
        first.setdefault(condition.dtype, condition)
        there = None if against is None else differences(one.records, runs[against].records)
        counts = dict.fromkeys(Differences._fields) if there is None else there._asdict()
        accuracy = one.summary.accuracy[PRIMARY_METRIC].mean
        rows.append({**condition._asdict(), "accuracy": accuracy, "against": against, **counts})
    return rows


def differences(records: Sequence[Record], others: Sequence[Record]) -> Differences:
    """Count the answers that differ; both in the order of problems and samples, which have to be the same.

    Raises UserError if they are not.
    """
    keys = [[(one.problem_id, one.sample_index) for one in side] for side in (records, others)]
    if keys[0] != keys[1]:
        raise UserError("The runs have not answered the same problems; name a new directory by --run-dir.")
    pairs = list(zip(records, others, strict=True))
    return Differences(
        sum(a.token_ids != b.token_ids for a, b in pairs),
        sum(numeric(a) != numeric(b) for a, b in pairs),
        sum(is_right(a, PRIMARY_METRIC) != is_right(b, PRIMARY_METRIC) for a, b in pairs),
    )


def numeric(record: Record) -> str | None:
    answer = grade.answer if (grade := record.scores.get(PRIMARY_METRIC)) else None
    return None if answer is None else normalised_answer(answer, PRIMARY_METRIC)


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = ["dtype", "slots", "% right", "against", "other tokens", "other number", "other score"]
    lines = []
    for row in rows:
        against = "" if row["against"] is None else "{}, {}".format(*row["against"])
        counts = ["" if row[name] is None else str(row[name]) for name in Differences._fields]
        lines.append([row["dtype"], str(row["slots"]), percent(row["accuracy"]), against, *counts])
    return table(head, lines)


if __name__ == "__main__":
    sys.exit(main())

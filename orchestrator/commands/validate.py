"""`powersample validate`: checks a file that `generate` wrote against its input and its run."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from evals.config import TaskConfig
from orchestrator.export.generate_output import Output, input_fields, input_rows, run_of
from orchestrator.inputs.jsonl import jsonl_lines
from orchestrator.inputs.problems import find_question
from orchestrator.inputs.prompts import task_of
from orchestrator.rundir.directory import RECORDS, RUN
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.records import first_records

MAX_CUT = 0.02  # share of answers at the longest length above which there is a warning
SHOWN = 50  # mistakes that are listed


class Expected(NamedTuple):
    """What an output must contain, according to the input and the run."""

    rows: Mapping[int, Any]
    """Row number -> the row of the input."""
    task: TaskConfig
    failed: frozenset[int] = frozenset()
    """Rows that the run lists as failed."""
    texts: Mapping[int, str] | None = None
    """Row number -> the run's answer; None where there is no run."""
    cut: int = 0
    """Answers of the run that ended at the longest length."""


def validate(args: Namespace) -> int:
    """Print what is wrong, a line each; returns 1 if anything is, else 0. Raises UserError if a file cannot be read."""
    path = args.file
    expected = expect(path, args.data)
    outputs, wrong = read(path)
    wrong += [*check_rows(outputs, expected), *check_all([output for _, output in outputs], expected)]
    for sentence in wrong[:SHOWN]:
        print(sentence)
    if len(wrong) > SHOWN:
        print(f"and {len(wrong) - SHOWN} more")
    verdict = f"{len(wrong)} thing{'s are' if len(wrong) > 1 else ' is'} wrong" if wrong else "all is well"
    known = expected.texts is not None
    cut = f"{expected.cut} cut off at the longest length" if known else "how many are cut off nobody knows"
    print(
        f"{path}: {len(outputs)} answers to {len(expected.rows)} rows, {len(expected.failed)} rows listed as failed, "
        f"{cut}; {verdict}"
    )
    if expected.texts and expected.cut > MAX_CUT * len(expected.texts):
        share = expected.cut / len(expected.texts)
        print(f"Warning: {share:.0%} of the answers are cut off: raise --max_new_tokens.")
    return 1 if wrong else 0


def expect(output: Path, source: Path) -> Expected:
    """What `output` must contain, according to its input and, where it exists, its run."""
    rows, directory = input_rows(source), run_of(output)
    if not (directory / RUN).exists():
        return Expected(rows, TaskConfig(preset="generate"))
    run = Manifest.read(directory)
    records = first_records(directory / RECORDS).values()
    return Expected(
        {number: row for number, row in rows.items() if run.limit is None or number < run.limit},
        task_of(run),
        frozenset(record.problem_id for record in records if record.status == "failed"),
        {record.problem_id: record.text for record in records if record.status == "ok"},
        sum(record.ended == "length" for record in records),
    )


def read(path: Path) -> tuple[list[tuple[str, Output]], list[str]]:
    """The lines that are outputs, each with its file and line number, and what is wrong with the others."""
    outputs, wrong = [], []
    for where, text in jsonl_lines(path, "name the file that generate wrote"):
        try:
            outputs.append((where, Output.model_validate_json(text)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            wrong.append(f"{where}: {'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}")
    return outputs, wrong


def check_rows(outputs: Iterable[tuple[str, Output]], expected: Expected) -> list[str]:
    """Sentences on what is wrong with single lines."""
    wrong = []
    for where, output in outputs:
        row = expected.rows.get(output.metadata.example_id)
        if not isinstance(row, Mapping) or find_question(row, expected.task) not in row:
            wrong.append(f"{where}: the input has no row {output.metadata.example_id} to be answered")
            continue
        wanted = input_fields(row, expected.task)
        pairs = [(output, wanted), (output.metadata, wanted.pop("metadata"))]
        wrong += [
            f"{where}: {name} is not that of row {output.metadata.example_id}"
            for has, fields in pairs
            for name in fields
            if getattr(has, name) != fields[name]
        ]
        if not output.output.strip():
            wrong.append(f"{where}: the output is empty")
        elif expected.texts is not None and output.output != expected.texts.get(output.metadata.example_id):
            wrong.append(f"{where}: the output is not the answer of the run")
    return wrong


def check_all(outputs: Sequence[Output], expected: Expected) -> list[str]:
    """Sentences on what is wrong with all lines together: duplicates, order, missing rows, different parameters."""
    wrong, ids = [], [output.metadata.example_id for output in outputs]
    if twice := sorted(i for i, number in Counter(ids).items() if number > 1):
        wrong.append(f"rows that are answered twice: {abbreviated(twice)}")
    if any(a > b for a, b in pairwise(ids)):
        wrong.append("the lines are not in the order of the input (generate has not ended)")
    if missing := sorted(expected.rows.keys() - set(ids) - expected.failed):
        wrong.append(f"rows without an answer: {abbreviated(missing)}")
    if both := sorted(expected.failed & set(ids)):
        wrong.append(f"rows that are answered and listed as failed: {abbreviated(both)}")
    for name in ("teacher_model", "generation_params"):
        if len(kinds := {repr(getattr(output.metadata, name)) for output in outputs}) > 1:
            wrong.append(f"{name} is not the same in all lines: {', '.join(sorted(kinds)[:3])}")
    return wrong


def abbreviated(ids: Sequence[int]) -> str:
    """The number of `ids` and the first ten of them, as text."""
    return f"{len(ids)} ({', '.join(map(str, ids[:10]))}{', …' if len(ids) > 10 else ''})"

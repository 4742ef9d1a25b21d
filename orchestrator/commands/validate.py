"""`powersample validate`: compares a file that `generate` wrote with what its run and its input give again."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from textwrap import shorten

from evals.config import TaskConfig
from evals.record import read_line
from evals.types import UserError
from orchestrator.export.generate_output import Output, generation_params, outputs, run_of, written
from orchestrator.inputs.batch import read_batch
from orchestrator.inputs.files import read_lines
from orchestrator.inputs.problems import load_problems
from orchestrator.inputs.prompts import task_of
from orchestrator.inputs.rows import InputRow
from orchestrator.rundir.directory import RECORDS, RUN
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.reading.records import first_records

MAX_CUT = 0.02  # share of answers at the longest length above which there is a warning
SHOWN = 50  # mistakes that are listed


def validate(args: Namespace) -> int:
    """Print what is wrong, a line each; returns 1 if anything is, else 0. Raises UserError if a file cannot be read."""
    path, directory = args.file, run_of(args.file)
    if read_batch(args.data, TaskConfig(preset="generate")):
        raise UserError(f"{path} is of a batch: the `powersample generate` that wrote it writes the same bytes again.")
    found, wrong = read(path)
    if (directory / RUN).exists():
        run = Manifest.read(directory)
        records = [record for key, record in first_records(directory / RECORDS).items() if key in run.extent]
        data = load_problems(str(args.data.absolute()), limit=run.limit, task=task_of(run))
        params = generation_params(run.sampler, run.max_new_tokens)
        lines = outputs(records, data.inputs, run.model or "", params)
        wanted = {line.metadata.example_id: line for line in lines}
        failed = {record.problem_id for record in records if record.status == "failed"}
        cut = sum(record.ended == "length" for record in records)
        known = f"{len(failed)} rows listed as failed, {cut} cut off at the longest length"
    else:  # texts and parameters are as the file has them, and all rows are to be answered
        data = load_problems(str(args.data.absolute()), task=TaskConfig(preset="generate"))
        wanted = as_found([line for _, line in found], data.inputs)
        failed, cut = data.refused.keys(), 0
        known = f"compared with the input alone, since there is no run {directory}"
    wrong += compare(found, wanted, set(range(data.num_problems)) - failed)
    for sentence in wrong[:SHOWN]:
        print(sentence)
    if len(wrong) > SHOWN:
        print(f"and {len(wrong) - SHOWN} more")
    verdict = f"{len(wrong)} thing{'s are' if len(wrong) > 1 else ' is'} wrong" if wrong else "all is well"
    print(f"{path}: {len(found)} answers to {data.num_problems} rows, {known}; {verdict}")
    if cut > MAX_CUT * len(wanted):
        print(f"Warning: {cut / len(wanted):.0%} of the answers are cut off: raise --max_new_tokens.")
    return 1 if wrong else 0


def read(path: Path) -> tuple[list[tuple[str, Output]], list[str]]:
    """The lines that are outputs, each with its place, and what is wrong with the others."""
    found, wrong = [], []
    for where, line in read_lines(path, "name the file that generate wrote"):
        try:
            found.append((where, read_line(line, Output)))
        except ValueError as error:
            wrong.append(f"{where}: {error}")
    return found, wrong


def as_found(found: Sequence[Output], rows: Mapping[int, InputRow]) -> dict[int, Output]:
    """Row -> its line by the input alone, with the text that was found and the parameters of the first line."""
    lines = {}
    for line in found:
        number, first = line.metadata.example_id, found[0].metadata
        if row := rows.get(number):
            lines[number] = written(row, line.output, number, first.teacher_model, first.generation_params)
    return lines


def compare(found: Sequence[tuple[str, Output]], wanted: Mapping[int, Output], asked: Set[int]) -> list[str]:
    """Sentences on what differs in single lines, then on rows that are there twice or are missing, and the order."""
    wrong, ids = [], [line.metadata.example_id for _, line in found]
    for where, line in found:
        number = line.metadata.example_id
        has, expected = fields(line), fields(wanted.get(number))
        if not expected:
            wrong.append(f"{where}: row {number} has no answer: it failed, or is none of the input")
        wrong += [
            f"{where}: {name} of row {number} is {has[name]!r:.60} instead of {value!r:.60}"
            for name, value in expected.items()
            if has[name] != value
        ]
        if not line.output.strip():
            wrong.append(f"{where}: the output of row {number} is empty")
    twice = {number for number, times in Counter(ids).items() if times > 1}
    for words, rows in (("rows that are answered twice", twice), ("rows without an answer", asked - set(ids))):
        if rows:
            listed = shorten(", ".join(map(str, sorted(rows))), 60, placeholder=" …")
            wrong.append(f"{words}: {len(rows)} ({listed})")
    if ids != sorted(ids):
        wrong.append("the lines are not in the order of the input (generate has not ended)")
    return wrong


def fields(line: Output | None) -> dict[str, object]:
    """The fields of a line and of its metadata side by side; none of no line."""
    return {} if line is None else {**vars(line), **vars(line.metadata), "metadata": None}

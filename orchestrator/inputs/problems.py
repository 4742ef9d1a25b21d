"""Loads the problems of a data set by its name, with the digest that identifies them.

Data that cannot be had, and a row that is no problem, raises a UserError that names the setting or the line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic_core import from_json

from evals.config import TaskConfig
from evals.grading.grade import FORMATS
from evals.grading.numeric import NUMBER
from evals.types import Problem, UserError
from orchestrator.inputs.jsonl import SURROGATE, jsonl_lines, parse_line
from orchestrator.inputs.models import DEMO_FOLDER, HUB_SECONDS, is_local, unavailable
from orchestrator.settings.config import DEFAULT_DATA, DEMO

DEMO_PROBLEMS = "problems.jsonl"  # in DEMO_FOLDER
GSM8K_REVISION = "cc7b047b6e5bb11b4f1af84efc572db110a51b3c"
GSM8K_SHA256 = "65ae5a5b62654eafdde08f5e2adbf6d2cec66052a60b196aa354d9ea8fe4b9bd"
"""`DataSource.digest` of its test split."""
PLATINUM = "madrylab/gsm8k-platinum"  # has a test split alone, from which its solved examples come, too
GSM8K_FORMAT = TaskConfig()


class DataSource(NamedTuple):
    """The problems of a data set, in its order, and what identifies them."""

    problems: list[Problem]
    """Within the limit."""
    name: str
    digest: str
    """sha256 of all rows, the same for a file and the hub, whatever the limit."""
    num_rows: int
    """Rows of the whole data set."""
    refused: Mapping[int, str] = MappingProxyType({})
    """Row -> why it is no problem; empty where answers are graded, since a score is of all rows."""

    @property
    def num_problems(self) -> int:
        """Rows within the limit, refused ones included."""
        return len(self.problems) + len(self.refused)

    def describe(self) -> dict[str, Any]:
        """The data as run.json describes it."""
        return {"name": self.name, "sha256": self.digest, "rows": self.num_rows}


def load_problems(
    data: str,
    split: str = "test",
    limit: int | None = None,
    task: TaskConfig = GSM8K_FORMAT,
    setting: str = "data",
) -> DataSource:
    """The problems of `demo`, a JSONL file, or a data set on the hub, in the format of `task`; problem_id is the row.

    Raises UserError if the data cannot be had (naming `setting`, by which it was chosen), is empty, or has a row that
    is no problem (naming file and line); where nothing is graded such a row is only put into `refused`.
    """
    if data == DEMO or is_local(data) or data.endswith((".jsonl", ".json")):
        path = DEMO_FOLDER / DEMO_PROBLEMS if data == DEMO else Path(data)
        way_out = "name a JSONL file in GSM8K's format or a data set on the hub"
        rows: Iterator[tuple[str, Any]] = jsonl_lines(path.expanduser(), way_out, (setting,))
        empty = f"The data file {path.expanduser()} has no problems in it; {way_out}."
    else:
        rows = ((f"{data}, row {number}", row) for number, row in enumerate(hub_rows(data, split, setting)))
        empty = f"The data set {data} has no rows in split {split}; name another."
    problems, refused = [], {}
    for number, (where, row) in enumerate(rows):
        try:
            row = parse_line(row, where) if isinstance(row, bytes) else row
            problems.append(check_row(row, number, where, task))
        except UserError as error:
            if task.name != "open":
                raise
            refused[number] = str(error)
    if not problems and not refused:
        raise UserError(empty, (setting,))
    content = json.dumps(
        [*([one.question, one.solution] for one in problems), *([row] for row in refused)], ensure_ascii=False
    )
    digest, num_rows = hashlib.sha256(content.encode()).hexdigest(), len(problems) + len(refused)
    within = num_rows if limit is None else limit
    problems = [problem for problem in problems if problem.problem_id < within]
    if not problems:
        raise UserError(f"No row of {data} within the limit can be used; the first: {next(iter(refused.values()))}")
    refused = {row: reason for row, reason in refused.items() if row < within}
    return DataSource(problems, data, digest, num_rows, refused)


def check_row(row: Any, problem_id: int, where: str, task: TaskConfig = GSM8K_FORMAT) -> Problem:
    """The problem in a row: question and answer are texts, and the answer ends in a `#### number` that can be graded.

    Where golds are texts, as in the format `math`, the whole answer is the gold, unless it has a `####`, too; the
    format `open` has no golds. Raises UserError, beginning with the row's place `where`, for a row that is no problem.
    """
    golds, question_key = FORMATS[task.name].golds, find_question(row, task)
    form_of_row = {question_key: "…"}
    if golds != "none":
        form_of_row[task.answer_key] = "42" if golds == "text" else "… #### 42"
    form = json.dumps(form_of_row, ensure_ascii=False)
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: a {type(row).__name__} instead of an object such as {form}.")
    for key in form_of_row:
        if key not in row:
            raise UserError(
                f"{where}: the key {key!r} is missing (it has {', '.join(row) or 'none'}); rows are {form}."
            )
        if not isinstance(row[key], str) or not row[key].strip():
            raise UserError(f"{where}: {key!r} must be a text that is not empty; rows are {form}.")
        if SURROGATE.search(row[key]):
            raise UserError(
                f"{where}: {key!r} has half a character (\\ud800 to \\udfff alone); repair or remove the row."
            )
    group = row.get("group")
    group = None if group is None else str(group)
    if golds == "none":
        check_carried(row, where)
        return Problem(problem_id, row[question_key], group=group)
    problem = Problem.from_answer(problem_id, row[question_key], row[task.answer_key], group)
    if not problem.gold or (golds == "number" and "####" not in row[task.answer_key]):
        raise UserError(
            f"{where}: the answer has no `#### number` at its end, so nothing can be graded; rows are {form}."
        )
    if golds == "number" and not NUMBER.fullmatch(problem.gold):
        raise UserError(f"{where}: the answer after `####` is {problem.gold!r}, not a number; rows are {form}.")
    return problem


def check_carried(row: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a row whose fields cannot be written into the output, which carries all of them."""
    try:
        text = json.dumps([[row]], ensure_ascii=False)  # as deep as they are in a line of the output
        if not SURROGATE.search(text):
            from_json(text, allow_inf_nan=False)
            return
        reason = "it has half a character (\\ud800 to \\udfff alone)"
    except (ValueError, RecursionError) as error:  # NaN, which is no JSON, or too many brackets in one another
        reason = f"its fields cannot be carried into the output ({error})"
    raise UserError(f"{where}: {reason}; repair or remove the row.")


def find_question(row: Any, task: TaskConfig) -> str:
    """The key of a row's question: the task's, or `prompt` if nothing is graded and the row has only that."""
    either = task.name == "open" and isinstance(row, Mapping) and task.question_key not in row and "prompt" in row
    return "prompt" if either else task.question_key


def hub_rows(name: str, split: str, setting: str) -> list[dict[str, Any]]:
    """Rows of a data set from the hub; with HF_HUB_OFFLINE=1 only from the cache on this machine.

    The hub is asked first by one short call: `load_dataset` alone retries for half a minute when offline.
    """
    from huggingface_hub import HfApi, constants

    revision, configuration = (GSM8K_REVISION, "main") if name == DEFAULT_DATA else (None, None)
    if name == PLATINUM:
        configuration, split = "main", "test"
    try:
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS)
        import datasets

        return [dict(row) for row in datasets.load_dataset(name, configuration, split=split, revision=revision)]
    except Exception as error:  # the hub's client raises errors of several libraries
        raise unavailable(
            f"data set {name!r} (split {split}) is no file",
            "name a JSONL file in GSM8K's format or another data set",
            setting,
            error,
        ) from error

"""`powersample score FILE`: grade answers from anywhere, without a run and without a model. Knows no run directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evals.grading.grade import FORMATS, Format
from evals.grading.numeric import gold
from evals.stopping import cut
from evals.tasks.presets import PRESETS, Preset
from evals.types import Problem, UserError
from orchestrator.arguments import path_and_options
from orchestrator.names import suggestion
from orchestrator.problems import SURROGATE, jsonl_rows

USAGE = """usage: powersample score FILE.jsonl [--preset NAME]

Grades rows {"id": …, "text": …, "gold": …} and writes rows {"id", "strict", "flexible", "numeric", "answers"} to
standard output, in their order. gold is a worked answer with `#### number` or the bare number (for --preset math500
also LaTeX, and then only numeric is given). Each text is first cut at the stop strings of the preset, by default those
of gsm8k; lmeval-cot and lmeval-cot-zeroshot look for "The answer is" in the score strict. A row may have its question:
whether a percentage was asked for depends on it."""
FORM = '{"id": "7", "text": "So it is 42.", "gold": "42"}'


class Row(NamedTuple):
    """One answer to grade."""

    name: Any
    text: str
    problem: Problem


def score(arguments: Sequence[str]) -> int:
    """Grade a file and print the verdicts; returns the exit code.

    Raises UserError naming file and line for a row that cannot be graded; nothing has been printed then.
    """
    if (asked := path_and_options(arguments, USAGE, ["--preset"])) is None:
        return 0
    path, given = asked
    name = given.get("--preset")
    if name is not None and name not in PRESETS:
        raise UserError(f"--preset {name} is refused{suggestion(name, PRESETS)}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[name or "gsm8k"]
    form = FORMATS["gsm8k" if preset.format == "open" else preset.format]
    rows = read_rows(path, form)
    lines = [verdict(row, preset, form) for row in rows]
    print("".join(lines), end="")
    return 0


def read_rows(path: Path, form: Format) -> list[Row]:
    """All rows of a file, checked. Raises UserError naming file and line."""
    rows: list[Row] = []
    places: dict[Any, str] = {}
    for number, (where, row) in enumerate(jsonl_rows(path, "name a file of rows")):
        rows.append(check(row, where, number, form))
        name = rows[-1].name
        if (first := places.setdefault(json.dumps(name), where)) != where:
            raise UserError(f"{where}: the id {name!r} is also that of {first.rpartition(', ')[2]}; give each its own.")
    if not rows:
        raise UserError(f"The file {path} has no rows; rows are {FORM}.")
    return rows


def check(row: Any, where: str, number: int, form: Format) -> Row:
    """A row as an answer to a problem."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a {type(row).__name__} instead of an object; rows are {FORM}.")
    for key in ("id", "text", "gold"):
        if key not in row:
            raise UserError(
                f"{where}: the key {key!r} is missing (it has {', '.join(row) or 'none'}); rows are {FORM}."
            )
    wanted = row["gold"] if type(row["gold"]) not in (int, float) else str(row["gold"])
    text, wanted, question = (
        whole_text(value, name, where)
        for name, value in (("text", row["text"]), ("gold", wanted), ("question", row.get("question", "")))
    )
    if type(row["id"]) not in (str, int):
        raise UserError(f"{where}: 'id' must be a text or a whole number; rows are {FORM}.")
    problem = Problem(number, question, wanted if "####" in wanted else f"#### {wanted.strip()}")
    written = problem.answer.rpartition("####")[2].strip()
    if not written:
        raise UserError(f"{where}: 'gold' has no answer in it; rows are {FORM}.")
    if form.golds == "number":
        try:
            gold(problem)
        except UserError as error:  # which knows the problem but not where it stands
            raise UserError(
                f"{where}: the gold {written!r} is not a number; correct it (--preset math500 takes golds in LaTeX)."
            ) from error
    return Row(row["id"], text, problem)


def whole_text(value: Any, name: str, where: str) -> str:
    """The value if it is a text that can be written as UTF-8."""
    if not isinstance(value, str) or SURROGATE.search(value):
        raise UserError(f"{where}: {name!r} must be a text of whole characters; rows are {FORM}.")
    return value


def verdict(row: Row, preset: Preset, form: Format) -> str:
    """One line of output."""
    grades = form.scores(cut(row.text, preset.stop), row.problem, preset.cot)
    scores = {name: one.correct for name, one in grades.items()}
    answers = {name: one.answer for name, one in grades.items()}
    return json.dumps({"id": row.name, **scores, "answers": answers}, ensure_ascii=False) + "\n"

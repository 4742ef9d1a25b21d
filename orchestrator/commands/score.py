"""`powersample score FILE.jsonl`: grades texts from anywhere and prints their verdicts."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from evals.grading.grade import FORMATS, Format
from evals.grading.numeric import NUMBER
from evals.stopping import cut
from evals.tasks.presets import PRESETS
from evals.types import Problem, UserError
from orchestrator.inputs.jsonl import SURROGATE, jsonl_rows
from orchestrator.settings.parser import suggestion

FORM = '{"id": "7", "text": "So it is 42.", "gold": "42"}'


def score(args: Namespace) -> int:
    """Grade a file and print the verdicts; returns the exit code.

    Raises UserError naming file and line for a row that cannot be graded; nothing has been printed then.
    """
    name = args.preset
    if name not in PRESETS:
        raise UserError(f"--preset {name} is refused{suggestion(name, PRESETS)}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    form = FORMATS["gsm8k" if preset.format == "open" else preset.format]
    verdicts = []
    for row in read_rows(args.file, form):
        grades = form.scores(cut(row["text"], preset.stop), row["problem"], preset.cot)
        verdicts.append({"id": row["id"], **{name: one.correct for name, one in grades.items()}})
        verdicts[-1]["answers"] = {name: one.answer for name, one in grades.items()}
    print("".join(json.dumps(verdict, ensure_ascii=False) + "\n" for verdict in verdicts), end="")
    return 0


def read_rows(path: Path, form: Format) -> list[dict[str, Any]]:
    """Id, text and problem of every row of a file. Raises UserError naming file and line."""
    rows: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(jsonl_rows(path, "name a file of rows")):
        rows.append(check(row, where, number, form))
        name = row["id"]
        if (first := places.setdefault(json.dumps(name), where)) != where:
            raise UserError(f"{where}: the id {name!r} is also that of {first.rpartition(', ')[2]}; give each its own.")
    if not rows:
        raise UserError(f"The file {path} has no rows; rows are {FORM}.")
    return rows


def check(row: Any, where: str, number: int, form: Format) -> dict[str, Any]:
    """Id, text and problem of one row, the `number`-th. Raises UserError naming `where` it is."""
    reason = ""
    if not isinstance(row, dict):
        reason = f"a {type(row).__name__} instead of an object"
    elif missing := next((key for key in ("id", "text", "gold") if key not in row), ""):
        reason = f"the key {missing!r} is missing (it has {', '.join(row) or 'none'})"
    elif type(row["id"]) not in (str, int):
        reason = "'id' must be a text or a whole number"
    if reason:
        raise UserError(f"{where}: {reason}; rows are {FORM}.")
    wanted = str(row["gold"]) if type(row["gold"]) in (int, float) else row["gold"]
    texts = {"text": row["text"], "gold": wanted, "question": row.get("question", "")}
    for name, text in texts.items():
        if not isinstance(text, str) or SURROGATE.search(text):
            raise UserError(f"{where}: {name!r} must be a text of whole characters; rows are {FORM}.")
    problem = Problem.from_answer(number, texts["question"], wanted)
    if not problem.gold:
        raise UserError(f"{where}: 'gold' has no answer in it; rows are {FORM}.")
    if form.golds == "number" and not NUMBER.fullmatch(problem.gold):
        raise UserError(
            f"{where}: the gold {problem.gold!r} is not a number; correct it (--preset math500 takes golds in LaTeX)."
        )
    return {"id": row["id"], "text": row["text"], "problem": problem}

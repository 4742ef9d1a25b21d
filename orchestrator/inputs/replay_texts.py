"""Loads the given texts that the sampler `replay` grades, by problem and sample."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from evals.record import RecordKey
from evals.types import UserError
from orchestrator.inputs.jsonl import SURROGATE, jsonl_rows
from orchestrator.inputs.problems import DataSource

GOLD = "gold"  # replays the data's own answers
ROW = re.compile("[0-9]{1,18}")
TEXT_FORM = '{"id": 7, "text": "So it is 42."}'


def load_texts(name: str, data: DataSource, num_samples: int) -> dict[RecordKey, str]:
    """A text for every (problem, sample) of `data`; of several of a problem, the first in the file is sample 0.

    All rows have ids or, with one sample, none, being in the order of the data. Raises UserError for a row without a
    text (naming file and line), a text too many, or a problem within the limit that has too few.
    """
    if name == GOLD:
        return {(problem.problem_id, k): problem.solution for problem in data.problems for k in range(num_samples)}
    texts: dict[int, list[str]] = defaultdict(list)
    have_ids = num_samples > 1  # else the first row decides
    for number, (where, row) in enumerate(
        jsonl_rows(Path(name).expanduser(), "name another, or gold", ("sampler.texts",))
    ):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or SURROGATE.search(row["text"]):
            raise UserError(f"{where}: not an object with a 'text' of whole characters; rows are {TEXT_FORM}.")
        if not ROW.fullmatch(given := str(row.get("id", number))):
            raise UserError(f"{where}: id {given[:40]} is not a row of the data, from 0; rows are {TEXT_FORM}.")
        have_ids = have_ids or (number == 0 and "id" in row)
        if ("id" in row) != have_ids:
            raise UserError(
                f"{where}: {'no id' if have_ids else 'an id'}; give all rows an id or, for one text per problem in the "
                f"order of the data, none; rows are {TEXT_FORM}."
            )
        if (problem_id := int(given)) >= data.num_rows:
            raise UserError(f"{where}: a text for row {problem_id} of {data.name}, which has {data.num_rows} rows.")
        if len(texts[problem_id]) == num_samples:
            raise UserError(
                f"{where}: text {num_samples + 1} for problem {problem_id}, which num_samples={num_samples} does not "
                "ask for; raise it, or remove the line."
            )
        texts[problem_id].append(row["text"])
    ids = [problem.problem_id for problem in data.problems]
    missing = [problem_id for problem_id in ids if len(texts[problem_id]) < num_samples]
    if missing:
        raise UserError(
            f"{name} has too few texts for {len(missing)} of {len(ids)} problems, the first of them problem "
            f"{missing[0]} ({len(texts[missing[0]])} of {num_samples}); add rows {TEXT_FORM}, or set limit or "
            "num_samples."
        )
    return {(problem_id, k): texts[problem_id][k] for problem_id in ids for k in range(num_samples)}


def texts_digest(texts: Mapping[RecordKey, str]) -> str:
    """Hex sha256 of all texts with their problems and samples."""
    return hashlib.sha256(json.dumps(sorted(texts.items()), ensure_ascii=False).encode()).hexdigest()

"""Loads the given texts that the sampler `replay` grades, by problem and sample."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping

from evals.record import RecordKey
from evals.types import Answer, UserError
from orchestrator.inputs.problems import DataSource, short_digest
from orchestrator.inputs.rows import TextRow, read_rows, refusal
from orchestrator.settings.parser import local_path

GOLD = "gold"  # replays the data's own answers


def load_texts(name: str, data: DataSource, num_samples: int) -> dict[RecordKey, Answer]:
    """A text for every (problem, sample) of `data`; of several of a problem, the first in the file is sample 0.

    All rows have ids or, with one sample, none, being in the order of the data. Raises UserError for a row without a
    text (naming file and line), a text too many, or a problem within the limit that has too few.
    """
    if name == GOLD:
        return {
            (problem.problem_id, k): Answer(problem.solution) for problem in data.problems for k in range(num_samples)
        }
    texts: dict[int, list[Answer]] = defaultdict(list)
    rows = list(read_rows(local_path(name), TextRow, "name another, or gold", "sampler.texts"))
    have_ids = num_samples > 1 or any(row.id for _, row in rows)
    for number, (where, row) in enumerate(rows):
        if have_ids and not row.id:
            reason = "no id; give all rows an id or, for one text per problem in the order of the data, none"
            raise refusal(where, reason, TextRow)
        if (problem_id := int(row.id or number)) >= data.num_rows:
            raise UserError(f"{where}: a text for row {problem_id} of {data.name}, which has {data.num_rows} rows.")
        if len(texts[problem_id]) == num_samples:
            raise UserError(
                f"{where}: text {num_samples + 1} for problem {problem_id}, which num_samples={num_samples} does not "
                "ask for; raise it, or remove the line."
            )
        texts[problem_id].append(Answer(row.text, cut_off=row.ended == "length"))
    ids = [problem.problem_id for problem in data.problems]
    missing = [problem_id for problem_id in ids if len(texts[problem_id]) < num_samples]
    if missing:
        raise UserError(
            f"{name} has too few texts for {len(missing)} of {len(ids)} problems, the first of them problem "
            f"{missing[0]} ({len(texts[missing[0]])} of {num_samples}); add rows {TextRow.form}, or set limit or "
            "num_samples."
        )
    return {(problem_id, k): texts[problem_id][k] for problem_id in ids for k in range(num_samples)}


def text_digests(texts: Mapping[RecordKey, Answer]) -> list[str]:
    """Problem -> the `short_digest` of each of its texts, one behind the other, and of whether it was cut off."""
    digests: dict[int, str] = defaultdict(str)
    for (problem_id, _), answer in sorted(texts.items()):
        digests[problem_id] += short_digest(json.dumps([answer.text, answer.cut_off]).encode())
    return list(digests.values())


def texts_digest(texts: Mapping[RecordKey, Answer]) -> str:
    """Hex sha256 of all texts with their problems and samples, and of those that were cut off that they were."""
    rows = [(key, answer.text, *(["length"] if answer.cut_off else [])) for key, answer in sorted(texts.items())]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

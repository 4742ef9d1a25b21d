"""Exports the states of a run's chains as lines of JSON, for those who train on them: where each chain began, and what
every move that was accepted made of it, with log p in nats. Of a chain of several stages they are those of the last.

Token ids are those of the model's tokenizer, with the token that ended the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.record import Record
from evals.samplers.trace import MoveFigures
from evals.types import UserError

if TYPE_CHECKING:
    from orchestrator.export.exported_run import Exported


def files(exported: Exported, out: Path | None, usual: Path) -> dict[Path, str]:
    """The one file: `out`, or chains.jsonl in `usual`. Raises UserError for a run that has kept no states."""
    rows = [row for record in exported.records for row in states(exported, record)]
    if not rows:
        raise UserError(
            f"The records of {exported.run.directory} have no states of chains; power sampling keeps them where "
            "sampler.keep_states is set, and answers the same: run it again so."
        )
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    return {out or usual / "chains.jsonl": "".join(lines)}


def states(exported: Exported, record: Record) -> Iterator[dict[str, Any]]:
    """The states of a record's chain in the order of its moves, each with the move that made it; 0 is the start."""
    chain, tokens = record.chain, ()
    if not isinstance(chain, MoveFigures):
        return
    for move, start, drawn in chain.states or ():
        tokens = (*tokens[:start], *drawn)
        yield {
            "problem_id": record.problem_id,
            "sample_index": record.sample_index,
            "move": move,
            "prompt": exported.prompts[record.problem_id],
            "token_ids": tokens,
            "log_p": chain.log_p_trace and chain.log_p_trace[move],
            "alpha": chain.alpha,
        }

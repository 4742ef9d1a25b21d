"""A run as one Parquet file, a row per answer."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.types import Record
from orchestrator.analysis.accuracy import graders, right
from orchestrator.export.exported import Exported


def parquet(found: Exported, out: Path | None, usual: Path) -> dict[Path, bytes]:
    """The one file: `out`, or records.parquet in `usual`. run.json goes with it, as the schema's key `powersample`."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    text, whole, names = pa.string(), pa.int64(), graders(found.records)
    graded = {f"{name}_{what}": kind for name in names for what, kind in (("correct", pa.bool_()), ("answer", text))}
    columns = {
        **dict.fromkeys(("problem_id", "sample_index"), whole),
        **dict.fromkeys(("question", "solution", "prompt", "status", "ended", "text"), text),
        **{"token_ids": pa.list_(pa.int32()), **graded},
        **dict.fromkeys(("prompt_tokens", "answer_tokens", "generated_tokens"), whole),
        **{"wall_seconds": pa.float64(), "chain": text, "error": text},
    }
    rows = [answer_row(found, record, names) for record in found.records]
    schema = pa.schema(list(columns.items()), {"powersample": json.dumps(found.run.content, ensure_ascii=False)})
    buffer = io.BytesIO()
    write_table(pa.Table.from_pylist(rows, schema), buffer)
    return {out or usual / "records.parquet": buffer.getvalue()}


def answer_row(found: Exported, record: Record, names: Sequence[str]) -> dict[str, Any]:
    """One answer; what a failed record lacks is null, a failed answer is wrong."""
    problem = found.problems[record.problem_id]
    return {
        **record._asdict(),
        "question": problem.question,
        "solution": problem.answer,
        "prompt": found.prompt_text(record.problem_id),
        **{f"{name}_correct": right(record, name) for name in names},
        **{f"{name}_answer": record.scores.get(name, {}).get("answer") for name in names},
        **{f"{name}_tokens": record.tokens.get(name) for name in ("prompt", "answer", "generated")},
        "wall_seconds": record.timings.get("wall_seconds"),
        "chain": json.dumps(record.chain, ensure_ascii=False),
    }

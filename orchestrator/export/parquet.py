"""Exports a run as one Parquet file, a row per answer."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evals.record import Record
from orchestrator.analysis.accuracy import extracted, graders, is_right
from orchestrator.export.exported_run import Exported


def parquet(exported: Exported, out: Path | None, usual: Path) -> dict[Path, bytes]:
    """The one file: `out`, or records.parquet in `usual`; the schema's key `powersample` holds run.json."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    text, whole, names = pa.string(), pa.int64(), graders(exported.records)
    graded = {f"{name}_{what}": kind for name in names for what, kind in (("correct", pa.bool_()), ("answer", text))}
    columns = {
        **dict.fromkeys(("problem_id", "sample_index"), whole),
        **dict.fromkeys(("question", "solution", "prompt", "status", "ended", "text"), text),
        **{"token_ids": pa.list_(pa.int32()), **graded},
        **dict.fromkeys(("prompt_tokens", "answer_tokens", "generated_tokens"), whole),
        **{"wall_seconds": pa.float64(), "chain": text, "error": text},
    }
    rows = [answer_row(exported, record, names) for record in exported.records]
    schema = pa.schema(list(columns.items()), {"powersample": json.dumps(exported.run.content, ensure_ascii=False)})
    buffer = io.BytesIO()
    write_table(pa.Table.from_pylist(rows, schema), buffer)
    return {out or usual / "records.parquet": buffer.getvalue()}


def answer_row(exported: Exported, record: Record, names: Sequence[str]) -> dict[str, Any]:
    """One answer as a row; what a failed record lacks is null, and its answer is wrong."""
    problem = exported.problems[record.problem_id]
    return {
        **asdict(record),
        "question": problem.question,
        "solution": problem.solution,
        "prompt": exported.prompt_text(record.problem_id),
        **{f"{name}_correct": is_right(record, name) for name in names},
        **{f"{name}_answer": extracted(record, name) for name in names},
        **{f"{name}_tokens": getattr(record.tokens, name) for name in ("prompt", "answer", "generated")},
        "wall_seconds": record.timings.wall_seconds,
        "chain": json.dumps(record.chain.reported(), ensure_ascii=False),
    }

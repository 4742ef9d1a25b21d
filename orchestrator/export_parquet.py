"""A run as parquet: one row per answer, which `datasets.load_dataset("parquet", data_files=…)` opens. Pure."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.types import Record
from orchestrator.scores import graders

if TYPE_CHECKING:
    from orchestrator.export import Exported


def files(found: Exported, out: Path | None, usual: Path) -> dict[Path, bytes]:
    """The one file: `out`, or records.parquet in `usual`. run.json goes with it, as the schema's key `powersample`."""
    import pyarrow as pa
    from pyarrow import parquet

    text, whole = pa.string(), pa.int64()
    columns = {
        **dict.fromkeys(("problem_id", "sample_index"), whole),
        **dict.fromkeys(("question", "solution", "prompt", "status", "ended", "text"), text),
        "token_ids": pa.list_(pa.int32()),
    }
    names = graders(found.records)
    for name in names:
        columns |= {f"{name}_correct": pa.bool_(), f"{name}_answer": text}
    columns |= {**dict.fromkeys(("prompt_tokens", "answer_tokens", "generated_tokens"), whole)}
    columns |= {"wall_seconds": pa.float64(), "chain": text, "error": text}
    rows = [row(found, record, names) for record in found.records]
    schema = pa.schema(list(columns.items()), {"powersample": json.dumps(found.run, ensure_ascii=False)})
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return {out or usual / "records.parquet": buffer.getvalue()}


def row(found: Exported, record: Record, names: list[str]) -> dict[str, Any]:
    """One answer; what a failed record lacks is null, a failed answer is wrong."""
    problem, prompt = found.problems[record.problem_id], found.prompts[record.problem_id]
    scores = {name: record.scores.get(name, {}) for name in names}
    return {
        **{name: getattr(record, name) for name in Record._fields},
        "question": problem.question,
        "solution": problem.answer,
        "prompt": prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False),
        **{f"{name}_correct": bool(score.get("correct")) for name, score in scores.items()},
        **{f"{name}_answer": score.get("answer") for name, score in scores.items()},
        **{f"{name}_tokens": record.tokens.get(name) for name in ("prompt", "answer", "generated")},
        "wall_seconds": record.timings.get("wall_seconds"),
        "chain": json.dumps(record.chain, ensure_ascii=False),
    }

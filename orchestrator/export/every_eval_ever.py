"""Exports a run in the schema of Every Eval Ever 0.3.0: a JSON file of its scores, and a JSONL file of its answers.

The schema has no place for a sampler, so that its settings stand in `additional_details`, whose values are texts.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from evals.record import Record
from evals.types import Grade
from orchestrator.analysis.accuracy import graders
from orchestrator.analysis.summary import Estimate
from orchestrator.settings.config import DEFAULT_DATA

if TYPE_CHECKING:
    from orchestrator.export.exported_run import Exported

VERSION = "0.3.0"


def files(exported: Exported, out: Path | None, usual: Path) -> dict[Path, str]:
    """Answers and scores below `out`, or `usual`/every-eval-ever, at the places that the collection has for them."""
    developer, _, name = exported.model.rpartition("/")
    folder = Path("data", *(re.sub(r"[^\w.-]+", "_", part) or "unknown" for part in (exported.name, developer, name)))
    place = folder / str(UUID(hex=str(exported.run.fingerprint)[:32], version=4))
    lines = "".join(
        json.dumps(instance(exported, record, grader), ensure_ascii=False, allow_nan=False) + "\n"
        for record in exported.records
        for grader in graders(exported.records)
    )
    samples = f"{place}_samples.jsonl"
    detailed = {
        "format": "jsonl",
        "file_path": samples,
        "hash_algorithm": "sha256",
        "checksum": hashlib.sha256(lines.encode()).hexdigest(),
        "total_rows": lines.count("\n"),
    }
    whole = json.dumps({**scores(exported), "detailed_evaluation_results": detailed}, indent=2, ensure_ascii=False)
    root = out or usual / "every-eval-ever"
    return {root / samples: lines, root / f"{place}.json": whole + "\n"}


def evaluation_id(exported: Exported) -> str:
    return f"{exported.name}/{exported.model}/{exported.ended:.0f}"


def scores(exported: Exported) -> dict[str, Any]:
    """The aggregate record: where the scores come from, and each with its errors."""
    run, versions = exported.run, exported.run.content["provenance"]["versions"]
    details = {**run.sampler, "method": run.method, "seed": run.seed, "dtype": run.dtype}
    details |= {"fingerprint": run.fingerprint, "preset": run.preset, "preset_version": run.preset_version}
    return {
        "schema_version": VERSION,
        "evaluation_id": evaluation_id(exported),
        "evaluation_timestamp": f"{exported.ended:.0f}",
        "retrieved_timestamp": f"{exported.ended:.0f}",
        "source_metadata": {
            "source_name": "powersample",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "powersample", "version": versions["powersample"]},
        "model_info": {
            "name": exported.model,
            "id": exported.model,
            "inference_engine": {"name": "powersample", "version": versions["powersample"]},
            "additional_details": {
                "deployment_type": "self_deployed",
                "model_availability": "unknown",
                "sha256": str(run.model_sha256),
            },
        },
        "evaluation_results": [
            {
                "evaluation_result_id": result_id(exported, name),
                "evaluation_name": exported.name,
                "source_data": source(exported),
                "metric_config": {
                    "metric_id": name,
                    "metric_name": f"accuracy ({name})",
                    "lower_is_better": False,
                    "score_type": "continuous",
                    "min_score": 0.0,
                    "max_score": 1.0,
                    "additional_details": {"version": str(exported.summary.versions.get(name))},
                },
                "score_details": score(exported.summary.accuracy[name]),
                "generation_config": {
                    "generation_args": {"max_tokens": run.max_new_tokens} if run.max_new_tokens else {},
                    "additional_details": {key: str(value) for key, value in details.items() if value is not None},
                },
            }
            for name in graders(exported.records)
        ],
    }


def result_id(exported: Exported, grader: str) -> str:
    return f"{evaluation_id(exported)}#{grader}"


def source(exported: Exported) -> dict[str, Any]:
    """Where the problems come from: the hub's data set, or a file of one's own with its digest."""
    run = exported.run
    if not exported.is_gsm8k:
        details = {"sha256": str(run.data_sha256)}
        return {"dataset_name": exported.name, "source_type": "other", "additional_details": details}
    place = {"hf_repo": DEFAULT_DATA, "hf_split": run.data_split, "samples_number": run.num_problems}
    return {"dataset_name": exported.name, "source_type": "hf_dataset", **place}


def score(estimate: Estimate) -> dict[str, Any]:
    """A score with what is known of its errors; failed answers are wrong."""
    uncertainty: dict[str, Any] = {"num_samples": estimate.n}
    if estimate.stderr is not None:
        uncertainty["standard_error"] = {"value": estimate.stderr, "method": "over problems"}
    if estimate.ci95 is not None:
        low, high = estimate.ci95
        interval = {"lower": low, "upper": high, "confidence_level": 0.95, "method": estimate.interval}
        uncertainty["confidence_interval"] = interval
    return {"score": estimate.mean or 0.0, "uncertainty": uncertainty}


def instance(exported: Exported, record: Record, grader: str) -> dict[str, Any]:
    """One answer by one score."""
    problem, grade = exported.problems[record.problem_id], record.scores.get(grader, Grade(False, None))
    read, written = record.tokens.prompt or 0, record.tokens.answer or 0
    seconds = record.timings.wall_seconds
    found = {"extracted_value": grade.answer, "extraction_method": grader}
    attribution = {"turn_idx": 0, "source": "output.raw", **found, "is_terminal": True}
    return {
        "schema_version": VERSION,
        "evaluation_id": evaluation_id(exported),
        "model_id": exported.model,
        "evaluation_name": exported.name,
        "evaluation_result_id": result_id(exported, grader),
        "sample_id": f"{record.problem_id}-{record.sample_index}",
        "sample_hash": hashlib.sha256(f"{problem.question}{problem.gold}".encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {
            "raw": problem.question,
            "formatted": exported.prompt_text(record.problem_id),
            "reference": [problem.gold],
        },
        "output": {"raw": [record.text]},
        "answer_attribution": [] if grade.answer is None else [attribution],
        "evaluation": {"score": float(grade.correct), "is_correct": grade.correct},
        "token_usage": {"input_tokens": read, "output_tokens": written, "total_tokens": read + written},
        **({"performance": {"latency_ms": 1000 * seconds}} if seconds is not None else {}),
        **({"error": record.error or "failed"} if record.status == "failed" else {}),
        "metadata": {"ended": record.ended, "generated_tokens": str(record.tokens.generated or 0)},
    }

"""Exports a run as an inspect log: the zip of JSON files, of format version 2, that inspect_ai and its viewer read.

It is written here and not by inspect_ai, whose requirements (an older fsspec than datasets brings) exclude ours; the
tests read it by inspect_ai in an environment of its own.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.record import Record
from orchestrator.analysis.accuracy import graders
from orchestrator.analysis.summary import Estimate

if TYPE_CHECKING:
    from orchestrator.export.exported_run import Exported

FORMAT = 2
STOP_REASONS = {"length": "max_tokens"}
"""How an answer ended -> inspect's word for it, where that is not `stop`."""


def files(exported: Exported, out: Path | None, usual: Path) -> dict[Path, bytes]:
    """The log as one file: `out`, or one named after the run in `usual`."""
    whole, rows = header(exported), [sample(exported, record) for record in exported.records]
    members = {"_journal/start.json": {name: whole[name] for name in ("version", "eval", "plan")}}
    members |= {f"samples/{row['id']}_epoch_{row['epoch']}.json": row for row in rows}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as log:
        for name, content in {**members, "summaries.json": list(map(summary, rows)), "header.json": whole}.items():
            log.writestr(name, json.dumps(content, ensure_ascii=False, allow_nan=False))
    return {out or usual / f"{exported.name}-{str(exported.run.fingerprint)[:8]}.eval": buffer.getvalue()}


def header(exported: Exported) -> dict[str, Any]:
    """The header of the log, about the whole run; inspect fixes the order of its fields."""
    run, provenance = exported.run, exported.run.content["provenance"]
    done = [record for record in exported.records if record.status == "ok"]
    number, total = str(run.fingerprint), Counter[str]()
    for record in done:
        total.update(usage(record))
    spec = {
        "eval_id": number[:22],
        "run_id": number[:22],
        "created": moment(exported.began),
        "task": exported.name,
        "task_id": number[:22],
        "task_version": run.preset_version or 0,
        "task_args": {**exported.task.model_dump(mode="json"), "sampler": run.sampler},
        "dataset": {"name": run.data, "samples": run.num_problems, "sample_ids": list(exported.problems)},
        "model": model_name(exported),
        "model_generate_config": {"max_tokens": run.max_new_tokens, "stop_seqs": list(exported.task.stop)},
        "model_args": run.sampler,
        "config": {"limit": run.limit, "epochs": run.num_samples, "epochs_reducer": ["mean"]},
        "packages": provenance["versions"],
        "metadata": {"method": run.method, "fingerprint": number, "provenance": provenance},
        "scorers": [{"name": name} for name in graders(exported.records)],
    }
    if run.git_commit:
        spec["revision"] = {"type": "git", "origin": "", "commit": run.git_commit}
    return {
        "version": FORMAT,
        "status": "cancelled" if exported.summary.num_owed else "success",
        "eval": spec,
        "plan": {"name": "plan", "steps": [{"solver": run.method, "params": run.sampler}]},
        "results": {
            "total_samples": run.num_problems * run.num_samples,
            "completed_samples": len(done),
            "scores": [score(name, exported.summary.accuracy[name]) for name in graders(exported.records)],
        },
        "stats": {
            "started_at": moment(exported.began),
            "completed_at": moment(exported.ended),
            "model_usage": {model_name(exported): dict(total)} if total else {},
        },
    }


def score(name: str, estimate: Estimate) -> dict[str, Any]:
    """One score as inspect has it: the accuracy over all problems, failed ones wrong, with its error if known."""
    values = {"accuracy": estimate.mean, "stderr": estimate.stderr}
    metrics = {key: {"name": key, "value": value} for key, value in values.items() if value is not None}
    return {"name": name, "scorer": name, "reducer": "mean", "scored_samples": estimate.n, "metrics": metrics}


def sample(exported: Exported, record: Record) -> dict[str, Any]:
    """One answer as a sample of the log; inspect's epochs are our samples, counted from 1."""
    problem, prompt = exported.problems[record.problem_id], exported.prompts[record.problem_id]
    model, problem_fields = model_name(exported), {"question": problem.question, "solution": problem.solution}
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    row: dict[str, Any] = {
        "id": record.problem_id,
        "epoch": record.sample_index + 1,
        "input": prompt if isinstance(prompt, str) else turns,
        "target": problem.gold,
        "metadata": {
            **problem_fields,
            "ended": record.ended,
            "generated_tokens": record.tokens.generated,
            **record.chain.reported(),
        },
        "uuid": f"{str(exported.run.fingerprint)[:16]}-{record.problem_id}-{record.sample_index}",
    }
    if record.status == "failed":
        reason = record.error or "failed"
        return {**row, "messages": turns, "error": {"message": reason, "traceback": "", "traceback_ansi": ""}}
    answer = {"role": "assistant", "content": record.text, "source": "generate", "model": model}
    used, seconds = usage(record), record.timings.wall_seconds
    choice = {"message": answer, "stop_reason": STOP_REASONS.get(record.ended, "stop")}
    return {
        **row,
        "messages": [*turns, answer],
        "output": {"model": model, "choices": [choice], "completion": record.text, "usage": used, "time": seconds},
        "scores": {
            name: {"value": "C" if one.correct else "I", "answer": one.answer, "metadata": {"kind": one.kind}}
            for name, one in record.scores.items()
        },
        "model_usage": {model: used},
        "started_at": moment(record.timings.start or 0.0),
        "completed_at": moment(record.timings.end or 0.0),
        "total_time": seconds,
    }


def summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """A sample without its conversation, for the log's list of all samples."""
    error = {"error": row["error"]["message"]} if "error" in row else {}
    kept = {key: value for key, value in row.items() if key not in ("messages", "output")}
    return {**kept, **error, "completed": not error}


def usage(record: Record) -> dict[str, int]:
    """Tokens of the prompt and of the answer; what was generated to find it, moves included, is in the metadata."""
    read, written = record.tokens.prompt or 0, record.tokens.answer or 0
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def model_name(exported: Exported) -> str:
    return f"powersample/{exported.model}"


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()

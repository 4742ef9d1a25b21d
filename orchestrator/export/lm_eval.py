"""Exports a run as lm-eval 0.4.13 logs one: results_DATE.json and samples_TASK_DATE.jsonl.

Names of lm-eval mean what they mean there: `exact_match` is of a problem's first sample alone. The mean over all
samples, where there are several, is `exact_match_mean`. Fields of lm-eval for which a run has no value are left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.statistics import mean_and_stderr
from evals.tasks.presets import PRESETS
from orchestrator.analysis.accuracy import by_problem, extracted, graders, is_right

if TYPE_CHECKING:
    from orchestrator.export.exported_run import Exported

FILTERS = {"strict": "strict-match", "flexible": "flexible-extract"}
"""Score -> lm-eval's filter of the same rule; others keep their names."""
NO_MATCH = "[invalid]"


def files(exported: Exported, out: Path | None, usual: Path) -> dict[Path, str]:
    """The samples and results files below `out`, or `usual`/lm-eval; their date is the end of the last answer."""
    task = re.sub(r"\W", "_", exported.name)
    rows = samples(exported)
    date = datetime.fromtimestamp(exported.ended, UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    date = date.replace(":", "-")
    model = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", exported.model)
    folder = (out or usual / "lm-eval") / model
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    whole = {**results(exported, task, rows), "model_name_sanitized": model}
    return {
        folder / f"samples_{task}_{date}.jsonl": lines,
        folder / f"results_{date}.json": json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False),
    }


def samples(exported: Exported) -> list[dict[str, Any]]:
    """One row per problem and score, in the order of the problems; a failed answer is wrong."""
    cot, settings, rows = PRESETS[exported.task.preset].cot, generation(exported), []
    for problem_id, records in by_problem(exported.records).items():
        problem, prompt = exported.problems[problem_id], exported.prompt_text(problem_id)
        doc = {"question": problem.question, "answer": problem.solution}
        target = problem.gold if cot else problem.solution
        same = {
            "doc_id": problem_id,
            "doc": doc,
            "target": target,
            "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": settings}},
            "resps": [[record.text for record in records]],
        }
        hashes = {
            "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": sha256(prompt),
            "target_hash": sha256(target),
        }
        for grader in graders(exported.records):
            rights = [float(is_right(record, grader)) for record in records]
            mean = {"exact_match_mean": sum(rights) / len(rights)} if exported.run.num_samples > 1 else {}
            scores = {"exact_match": rights[0], **mean}
            found = extracted(records[0], grader)
            answer = {
                "filtered_resps": [NO_MATCH if found is None else found],
                "filter": FILTERS.get(grader, grader),
                "metrics": list(scores),
            }
            rows.append({**same, **answer, **hashes, **scores})
    return rows


def generation(exported: Exported) -> dict[str, Any]:
    """The generation_kwargs of lm-eval, and beside them the sampler's settings."""
    sampler = dict(exported.run.sampler)
    do_sample = sampler.pop("kind") not in ("greedy", "replay")
    limit = exported.run.max_new_tokens
    return {"until": list(exported.task.stop), "max_gen_toks": limit, "do_sample": do_sample, **sampler}


def results(exported: Exported, task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of results_DATE.json."""
    run, provenance = exported.run, exported.run.content["provenance"]
    settings, version, shots = generation(exported), run.preset_version or "N/A", exported.task.num_shots
    scored: dict[str, Any] = {"name": task, "alias": task, "sample_len": len(exported.problems)}
    for name in dict.fromkeys(row["filter"] for row in rows):
        for metric in rows[0]["metrics"]:
            mean, stderr = mean_and_stderr([row[metric] for row in rows if row["filter"] == name])
            scored[f"{metric},{name}"] = mean
            scored[f"{metric}_stderr,{name}"] = "N/A" if isnan(stderr) else stderr
    hashes = "".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)
    described = {
        "task": task,
        "dataset_path": run.data,
        "output_type": "generate_until",
        "repeats": run.num_samples,
        "num_fewshot": shots,
        "generation_kwargs": settings,
        "metadata": {"version": version, "preset": exported.task.preset},
    }
    return {
        "results": {task: scored},
        "group_subtasks": {task: []},
        "configs": {task: described},
        "versions": {task: version},
        "n-shot": {task: shots},
        "higher_is_better": {task: dict.fromkeys(rows[0]["metrics"], True)},
        "n-samples": {task: {"original": run.data_rows, "effective": len(exported.problems)}},
        "config": {
            "model": "powersample",
            "model_args": {"pretrained": exported.model, "method": run.method},
            "model_dtype": run.dtype,
            "model_revision": None if exported.replayed else provenance["model"]["revision"],
            "model_sha": None if exported.replayed else run.model_sha256,
            "batch_size": run.content["config"]["batch_size"],
            "limit": run.limit,
            "gen_kwargs": settings,
            "random_seed": run.seed,
            "fewshot_seed": run.seed,
        },
        "git_hash": run.git_commit,
        "date": exported.began,
        "task_hashes": {task: sha256(hashes)},
        "model_source": "powersample",
        "model_name": exported.model,
        "total_evaluation_time_seconds": str(exported.summary.timings.sampling_seconds),
        "powersample": {"fingerprint": run.fingerprint, "provenance": provenance},
    }


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

"""A run as lm-eval 0.4.13 logs one: results_DATE.json and samples_TASK_DATE.jsonl. Pure.

Names that lm-eval has mean what they mean there: `exact_match` is of a problem's first sample alone. The mean over all
samples, where there are several, is `exact_match_mean`. What lm-eval says that a run does not know is left out.
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
from orchestrator.analysis.accuracy import by_problem, graders, right

if TYPE_CHECKING:
    from orchestrator.export.exported import Exported

FILTERS = {"strict": "strict-match", "flexible": "flexible-extract"}
"""Score -> lm-eval's filter of the same rule; others keep their names."""
NO_MATCH = "[invalid]"


def files(found: Exported, out: Path | None, usual: Path) -> dict[Path, str]:
    """Samples and results below `out`, or `usual`/lm-eval; their date is the end of the last answer."""
    task = re.sub(r"\W", "_", found.name)
    rows = samples(found)
    date = datetime.fromtimestamp(found.ended, UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    date = date.replace(":", "-")
    model = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", found.model)
    folder = (out or usual / "lm-eval") / model
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    whole = {**results(found, task, rows), "model_name_sanitized": model}
    return {
        folder / f"samples_{task}_{date}.jsonl": lines,
        folder / f"results_{date}.json": json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False),
    }


def samples(found: Exported) -> list[dict[str, Any]]:
    """One row per problem and score, in the order of the problems; a failed answer is wrong."""
    cot, settings, rows = PRESETS[found.task.preset].cot, generation(found), []
    for problem_id, records in by_problem(found.records).items():
        problem, asked = found.problems[problem_id], found.prompt_text(problem_id)
        doc = {"question": problem.question, "answer": problem.answer}
        target = problem.answer.rpartition("####")[2].strip() if cot else problem.answer
        same = {
            "doc_id": problem_id,
            "doc": doc,
            "target": target,
            "arguments": {"gen_args_0": {"arg_0": asked, "arg_1": settings}},
            "resps": [[record.text for record in records]],
        }
        hashes = {
            "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
            "prompt_hash": sha256(asked),
            "target_hash": sha256(target),
        }
        for grader in graders(found.records):
            extracted = records[0].scores.get(grader, {}).get("answer")
            rights = [float(right(record, grader)) for record in records]
            mean = {"exact_match_mean": sum(rights) / len(rights)} if found.run.num_samples > 1 else {}
            scores = {"exact_match": rights[0], **mean}
            answer = {
                "filtered_resps": [NO_MATCH if extracted is None else extracted],
                "filter": FILTERS.get(grader, grader),
                "metrics": list(scores),
            }
            rows.append({**same, **answer, **hashes, **scores})
    return rows


def generation(found: Exported) -> dict[str, Any]:
    """What lm-eval calls generation_kwargs; the sampler's own settings are beside the usual ones."""
    sampler = dict(found.run.sampler)
    do_sample = sampler.pop("kind") not in ("greedy", "replay")
    limit = found.run.max_new_tokens
    return {"until": list(found.task.stop), "max_gen_toks": limit, "do_sample": do_sample, **sampler}


def results(found: Exported, task: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of results_DATE.json."""
    run, provenance = found.run, found.run.content["provenance"]
    settings, version, shots = generation(found), provenance["record_format"], found.task.num_shots
    scored: dict[str, Any] = {"name": task, "alias": task, "sample_len": len(found.problems)}
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
        "metadata": {"version": version, "preset": found.task.preset},
    }
    return {
        "results": {task: scored},
        "group_subtasks": {task: []},
        "configs": {task: described},
        "versions": {task: version},
        "n-shot": {task: shots},
        "higher_is_better": {task: dict.fromkeys(rows[0]["metrics"], True)},
        "n-samples": {task: {"original": run.data_rows, "effective": len(found.problems)}},
        "config": {
            "model": "powersample",
            "model_args": {"pretrained": found.model, "method": run.method},
            "model_dtype": run.dtype,
            "model_revision": None if found.replayed else provenance["model"]["revision"],
            "model_sha": None if found.replayed else run.model_sha256,
            "batch_size": run.content["config"]["batch_size"],
            "limit": run.limit,
            "gen_kwargs": settings,
            "random_seed": run.seed,
            "fewshot_seed": run.seed,
        },
        "git_hash": run.git_commit,
        "date": found.began,
        "task_hashes": {task: sha256(hashes)},
        "model_source": "powersample",
        "model_name": found.model,
        "total_evaluation_time_seconds": str(found.summary["timings"]["sampling_seconds"]),
        "powersample": {"fingerprint": run.fingerprint, "provenance": provenance},
    }


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

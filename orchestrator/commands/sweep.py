"""`powersample sweep`: one evaluation per value of a setting, each with the batch that fits, on the same workers.

Every value has a run directory of its own, so that a sweep goes on where it was stopped. Batch sizes are searched
(batch_search/batch_size.py) before the workers start, for the values that owe answers.
"""

from __future__ import annotations

import json
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from evals.config import TaskConfig
from evals.samplers.registry import sampler_of, settings_of
from evals.types import UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.load import load_run
from orchestrator.batch_search.batch_size import fit_batch_size, host_memory
from orchestrator.commands.run import requested, resolved
from orchestrator.console import say
from orchestrator.driver import session
from orchestrator.driver.open_runs import OpenRun, prepare_runs
from orchestrator.inputs.preflight import Inputs, resolve_inputs
from orchestrator.machine import description
from orchestrator.report.make import write
from orchestrator.rundir.writing.run_store import check_store, fresh_directory
from orchestrator.settings.config import RunConfig, default_directory
from orchestrator.settings.parser import suggestion
from orchestrator.settings.schema import is_list, known_settings

SUMMARY = "sweep.json"


def sweep(args: Namespace) -> int:
    """Evaluate every value; returns the exit code and raises as `session.carry_out` does."""
    began = time.time()
    if len(args.knob) > 1:
        raise UserError(f"sweep: --knob is given {len(args.knob)} times, and a sweep has one; start a sweep for each.")
    knob, texts = values_of("".join(args.knob), args.start_from)
    if knob in vars(args):
        raise UserError(f"sweep: --knob has the values of {knob} and an option sets it; leave one out.", (knob,))
    configs = [configured(args, knob, text) for text in texts]
    session.check_ray(configs[0])
    host_memory(configs[0], args.memory_limit)
    environment = description.describe()
    now = session.local_time(began)
    first = resolve_inputs(configs[0], now)
    root = sweep_directory(first, knob)
    runs = []
    for text, config in zip(texts, configs, strict=True):
        name = re.sub(r"[^A-Za-z0-9._=-]", "-", f"{knob.partition('.')[2]}={text}")
        own = {"name": f"{config.name}/{name}", "run_dir": root / name, "fresh": False}
        runs.append(resolve_inputs(config.model_copy(update=own), now, first.model))
    owing = [has_owed_answers(inputs, environment) for inputs in runs]
    if args.auto_batch_size and first.config.use_batched and first.texts is None:
        runs = [
            fit_batch_size(f"{knob}={text}", inputs, args.memory_limit, say) if some else inputs
            for text, inputs, some in zip(texts, runs, owing, strict=True)
        ]

    def conclude(done: Sequence[OpenRun]) -> None:
        session.conclude(done)
        rows = [row(knob, run) for run in done]
        write(root / SUMMARY, json.dumps({"knob": knob, "summary": rows}, indent=2) + "\n")
        print(*map(json.dumps, rows), sep="\n")
        say(f"The summary of the sweep, and beside it the comparison: {root / SUMMARY}")

    prepared = [one for inputs in runs for one in prepare_runs(inputs, environment)]
    return session.carry_out(configs[0], prepared, environment, began, session.show_progress, conclude)


def configured(args: Namespace, knob: str, value: str) -> RunConfig:
    """The resolved configuration of one value's run."""
    one = Namespace(**vars(args) | {knob: [value] if is_list(knob) else value})
    return resolved(requested(one)).model_copy(update={"mode": "run"})


def values_of(knob: str, start_from: str | None) -> tuple[str, list[str]]:
    """Parse NAME=VALUE,VALUE,... into the setting and the values to run. Raises UserError."""
    name, _, listed = knob.partition("=")
    known = [each for each in known_settings() if each.startswith(("sampler.", "task."))]
    if name not in known:
        near = suggestion(name, known) if name else ""
        raise UserError(
            f"sweep: --knob {knob or 'is missing and'} names no setting of sampler or task{near}; write for example "
            "--knob sampler.alpha=1,2,4."
        )
    values = [value.strip() for value in listed.split(",")]
    if "" in values or len(set(values)) < len(values):
        raise UserError(f"sweep: --knob {knob} needs values that differ, such as sampler.alpha=1,2,4.")
    if start_from is not None and start_from not in values:
        raise UserError(f"sweep: --start-from {start_from} is none of the values {listed}; name one of them.")
    return name, values[values.index(start_from or values[0]) :]


def sweep_directory(inputs: Inputs, knob: str) -> Path:
    """The directory of a sweep: the one asked for, or one named after the fingerprint of all settings but the knob."""
    config, (group, key) = inputs.config, knob.split(".")
    part, provenance = getattr(config, group), inputs.provenance
    if group == "task":
        part = part.model_copy(update={key: getattr(TaskConfig(), key)})
    elif key == "texts":  # a path, which is in no fingerprint
        provenance = provenance._replace(texts=None)
    else:  # without a setting, even `kind`, there is its usual value
        known = settings_of(sampler_of({}) if key == "kind" else part)
        part = sampler_of({name: value for name, value in settings_of(part).items() if name in known and name != key})
    config, name = config.model_copy(update={group: part}), f"{config.name}-{key}"
    root = config.run_dir or default_directory(name, config, provenance)
    return fresh_directory(root) if config.fresh else root


def has_owed_answers(inputs: Inputs, environment: description.Environment) -> bool:
    """Whether the run lacks answers. Raises UserError if its directory cannot be used."""
    (prepared,) = prepare_runs(inputs, environment)
    there, samples = check_store(prepared.directory, prepared.content), range(inputs.config.num_samples)
    return any((one.problem_id, k) not in there for one in inputs.data.problems for k in samples)


def row(knob: str, run: OpenRun) -> dict[str, Any]:
    """The summary's row for one value."""
    summary = load_run(run.store.directory).summary
    accuracy = summary.accuracy[PRIMARY_METRIC]
    return {
        "configuration": {knob: attrgetter(knob)(run.config)},
        "accuracy": accuracy.mean,
        "stderr": accuracy.stderr,
        "batch_size_used": summary.memory.slots,
        "num_failed": summary.num_failed,
        "run": str(run.store.directory),
    }

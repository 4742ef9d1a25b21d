"""`powersample sweep`: an evaluation per value of a setting, or per combination of the values of several, each with the
batch that fits, on the same workers.

Every combination has a run directory of its own, so that a sweep goes on where it was stopped. Batch sizes are searched
(batch_search/batch_size.py) before the workers start, for those that owe answers.
"""

from __future__ import annotations

import json
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

from evals.config import TaskConfig
from evals.grading.grade import score_name
from evals.samplers.registry import sampler_of, settings_of
from evals.types import UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC
from orchestrator.analysis.load import load_run
from orchestrator.analysis.summary import Summary
from orchestrator.batch_search.batch_size import fit_batch_size, host_memory
from orchestrator.commands.run import requested, tell_unused
from orchestrator.console import say
from orchestrator.driver import session
from orchestrator.driver.open_runs import OpenRun, prepare_runs
from orchestrator.inputs.preflight import Inputs, resolve_inputs
from orchestrator.inputs.problems import short_digest
from orchestrator.inputs.this_machine import resolved
from orchestrator.machine import description
from orchestrator.report.grid import Cell, grid_figure, grid_table
from orchestrator.report.layout import paragraphs
from orchestrator.report.make import write
from orchestrator.report.plotting import png, svg
from orchestrator.rundir.writing.run_store import check_store, fresh_directory
from orchestrator.settings.config import DEMO, RunConfig, default_directory, fingerprints
from orchestrator.settings.parser import suggestion
from orchestrator.settings.schema import is_list, known_settings

PROBLEMS = attrgetter("data", "task.name", "task.data_config", "task.question_key", "task.answer_key")
"""What decides which problems a run has: the runs of a sweep share them."""
SUMMARY, TABLE, FIGURE, PICTURE = "sweep.json", "sweep.md", "sweep.svg", "sweep.png"

Values = dict[str, str]
"""Setting -> its value as it was written, of one run."""


def sweep(args: Namespace) -> int:
    """Evaluate every combination; returns the exit code and raises as `session.carry_out` does."""
    began = time.time()
    grid = grid_of(args.knob, args.start_from)
    knobs = list(grid[0])
    for knob in knobs:
        if knob in vars(args):
            raise UserError(f"sweep: --knob has the values of {knob} and an option sets it; leave one out.", (knob,))
    configs = [configured(args, values) for values in grid]
    searches = args.auto_batch_size and configs[0].use_batched and configs[0].sampler.kind != "replay"
    if args.memory_limit is not None and not searches:
        raise UserError(
            "sweep: memory_limit bounds the search for a batch, and none is searched for here; leave it out.",
            ("memory_limit", "auto_batch_size"),
        )
    if other := next((i for i, one in enumerate(configs) if PROBLEMS(one) != PROBLEMS(configs[0])), 0):
        raise UserError(
            f"sweep: {in_words(grid[0])} and {in_words(grid[other])} are of different problems, so that their scores "
            "cannot be compared; run them one by one."
        )
    session.check_ray(configs[0])
    host_memory(configs[0], args.memory_limit)
    tell_unused(args, configs, {"engine.target_utilisation"} if searches and args.memory_limit is None else ())
    environment = description.describe()
    now = session.local_time(began)
    first = resolve_inputs(configs[0], now)
    root = sweep_directory(first, knobs)
    runs, places, same = [], set[str](), dict[tuple[str, str], Values]()
    for values, config in zip(grid, configs, strict=True):
        name = "_".join(re.sub(r"[^A-Za-z0-9._=-]", "-", f"{knob.partition('.')[2]}={values[knob]}") for knob in knobs)
        name += f"-{short_digest(in_words(values).encode())}" if name in places else ""
        places.add(name)
        own = {"name": f"{config.name}/{name}", "run_dir": root / name, "fresh": False}
        runs.append(resolve_inputs(config.model_copy(update=own), now, first.model))
        if (twin := same.setdefault(fingerprints(config, runs[-1].provenance), values)) is not values:
            raise UserError(f"sweep: {in_words(twin)} and {in_words(values)} are the same run; leave one out.")
    owing = [has_owed_answers(inputs, environment) for inputs in runs]
    if searches:
        runs = [
            fit_batch_size(in_words(values), inputs, args.memory_limit, say) if some else inputs
            for values, inputs, some in zip(grid, runs, owing, strict=True)
        ]

    def conclude(done: Sequence[OpenRun]) -> None:
        session.conclude(done)
        summaries = [load_run(run.store.directory).summary for run in done]
        rows = [row(knobs, run, summary) for run, summary in zip(done, summaries, strict=True)]
        named = {"knob": knobs[0]} if len(knobs) == 1 else {"knobs": knobs}
        write(root / SUMMARY, json.dumps({**named, "summary": rows}, indent=2) + "\n")
        scores = [summary.accuracy[PRIMARY_METRIC] for summary in summaries]
        metric = score_name(PRIMARY_METRIC, first.config.task.name)
        show_grid(root, [Cell(values, score) for values, score in zip(grid, scores, strict=True)], metric)
        print(*map(json.dumps, rows), sep="\n")

    prepared = [one for inputs in runs for one in prepare_runs(inputs, environment)]
    return session.carry_out(configs[0], prepared, environment, began, session.show_progress, conclude)


def show_grid(root: Path, cells: Sequence[Cell], metric: str) -> None:
    """Print the table of the scores, and write it and its picture beside the summary."""
    table = paragraphs(grid_table(cells, metric))
    print(f"\n{table}\n")
    figure = grid_figure(cells, metric)
    title = f"Scores ({metric}, % right ± standard error) by {', '.join(cells[0].values)}"
    write(root / FIGURE, svg(figure, title))
    write(root / PICTURE, png(figure, title))
    write(root / TABLE, f"# {title}\n\n{table}\n\n![{title}]({FIGURE})\n")
    say(f"The table is in {root / TABLE}, beside its picture {PICTURE}, {SUMMARY} and the comparison.")


def in_words(values: Values) -> str:
    return ", ".join(f"{knob}={text}" for knob, text in values.items())


def configured(args: Namespace, values: Values) -> RunConfig:
    """The resolved configuration of one run."""
    given = {knob: [text] if is_list(knob) else text for knob, text in values.items()}
    asked = requested(Namespace(**vars(args) | given))
    if asked.mode == DEMO:
        raise UserError("sweep: mode demo has four runs of its own; leave it out.", ("mode",))
    return resolved(asked).model_copy(update={"mode": "run"})


def grid_of(listed: Sequence[str], start_from: str | None) -> list[Values]:
    """The combinations to run of NAME=VALUE,VALUE,..., those of the first name outermost. Raises UserError."""
    values = dict(map(values_of, listed or [""]))
    if len(values) < len(listed):
        names = [one.partition("=")[0] for one in listed]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"sweep: --knob {twice} is given twice; list all its values once.")
    first, texts = next(iter(values.items()))
    if start_from is not None and start_from not in texts:
        raise UserError(f"sweep: --start-from {start_from} is none of the values {','.join(texts)}; name one of them.")
    values[first] = texts[texts.index(start_from or texts[0]) :]
    return [dict(zip(values, combination, strict=True)) for combination in product(*values.values())]


def values_of(knob: str) -> tuple[str, list[str]]:
    """Parse NAME=VALUE,VALUE,... into the setting and its values, which may be lists, objects and texts in JSON. Raises
    UserError."""
    name, _, listed = knob.partition("=")
    known = [each for each in known_settings() if each.startswith(("sampler.", "task."))]
    if name not in known:
        near = suggestion(name, known) if name else ""
        raise UserError(
            f"sweep: --knob {knob or 'is missing and'} names no setting of sampler or task{near}; write for example "
            "--knob sampler.alpha=1,2,4."
        )
    values = [value.strip() for value in listed.split(",")]
    with suppress(ValueError):
        read = json.loads(f"[{listed}]")
        if read and all(isinstance(one, list | dict | str) for one in read):
            values = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in read]
    if "" in values or len(set(values)) < len(values):
        raise UserError(f"sweep: --knob {knob} needs values that differ, such as sampler.alpha=1,2,4.")
    return name, values


def sweep_directory(inputs: Inputs, knobs: Sequence[str]) -> Path:
    """The directory of a sweep: the one asked for, or one named after the fingerprint of all settings but the knobs."""
    config, provenance = inputs.config, inputs.provenance
    for group, key in (knob.split(".") for knob in knobs):
        part = getattr(config, group)
        if group == "task":
            part = part.model_copy(update={key: getattr(TaskConfig(), key)})
        elif key == "texts":  # a path, which is in no fingerprint
            provenance = provenance._replace(texts=None, first_text=None)
        else:  # without a setting, even `kind`, there is its usual value
            known = settings_of(sampler_of({}) if key == "kind" else part)
            part = {name: value for name, value in settings_of(part).items() if name in known and name != key}
            part = sampler_of(part)
        config = config.model_copy(update={group: part})
    name = "-".join([config.name, *(knob.partition(".")[2] for knob in knobs)])
    root = config.run_dir or default_directory(name, config, provenance)
    return fresh_directory(root) if config.fresh else root


def has_owed_answers(inputs: Inputs, environment: description.Environment) -> bool:
    """Whether the run lacks answers. Raises UserError if its directory cannot be used."""
    (prepared,) = prepare_runs(inputs, environment)
    there, samples = check_store(prepared.directory, prepared.content), range(inputs.config.num_samples)
    return any((one.problem_id, k) not in there for one in inputs.data.problems for k in samples)


def row(knobs: Sequence[str], run: OpenRun, summary: Summary) -> dict[str, Any]:
    """The row of sweep.json for one run."""
    accuracy = summary.accuracy[PRIMARY_METRIC]
    return {
        "configuration": {knob: attrgetter(knob)(run.config) for knob in knobs},
        "accuracy": accuracy.mean,
        "stderr": accuracy.stderr,
        "batch_size_used": summary.memory.slots,
        "num_failed": summary.num_failed,
        "run": str(run.store.directory),
    }

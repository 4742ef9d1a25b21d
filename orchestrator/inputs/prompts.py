"""Makes the problems and prompts of a finished run again, from what its run.json says, and checks their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from evals.config import TaskConfig
from evals.tasks.task import Task, make_task
from evals.types import Message, Problem, UserError
from orchestrator.inputs.problems import DIGITS, DataSource, load_problems, load_train, short_digest
from orchestrator.rundir.directory import RUN
from orchestrator.rundir.reading.manifest import Manifest


def prompts_digest(task: Task, problems: Iterable[Problem]) -> str:
    """Hex sha256 of all prompts in order, joined by NUL bytes; a chat counts as its turns in JSON."""
    prompts = (task.prompt(problem) for problem in problems)
    texts = (prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False) for prompt in prompts)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def ids_digest(ids: Sequence[int]) -> str:
    """The `short_digest` of a prompt's token ids, as whole numbers of 4 bytes."""
    return short_digest(np.asarray(ids, "<u4").tobytes())


class RunPrompts(NamedTuple):
    """Problems and prompts of a run, or the message why they cannot be shown."""

    problems: Mapping[int, Problem]
    prompts: Mapping[int, str]
    missing: str = ""


def run_prompts(run: Manifest) -> RunPrompts:
    """The run's problems and prompts, checked against the digests in run.json: a report shows what the model was given.

    The turns of a chat stand below each other under their roles; the model's own template is not applied.
    """
    problems: dict[int, Problem] = {}
    try:
        problems = problems_of(run)
        prompts = prompts_of(run, problems)
    except UserError as error:
        return RunPrompts(problems, {}, str(error))
    return RunPrompts(problems, {i: as_text(prompt) for i, prompt in prompts.items()})


def prompts_of(run: Manifest, problems: Mapping[int, Problem]) -> dict[int, str | tuple[Message, ...]]:
    """The run's prompt for each of its problems. Raises UserError if they cannot be made again."""
    config = task_of(run)
    train = load_train(config)
    task = make_task(config, run.seed or 0, train.problems if train else ())
    kept = list(problems.values())[: run.num_problems]
    if prompts_digest(task, kept) != run.prompts_sha256:
        raise UserError(
            f"The prompts of the run in {run.directory} cannot be made again: they have another sha256 than run.json "
            f"says ({str(run.prompts_sha256)[:8]}); restore the training data {config.train_data} or use the version "
            "that made the run."
        )
    return {problem.problem_id: task.prompt(problem) for problem in kept}


def as_text(prompt: str | tuple[Mapping[str, str], ...]) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in prompt)


def task_of(run: Manifest) -> TaskConfig:
    """The task of a run. Raises UserError if run.json does not say it."""
    try:
        return TaskConfig.model_validate(run.content["config"]["task"])
    except ValidationError as error:
        raise UserError(
            f"{run.directory / RUN} does not say which task the run is of ({type(error).__name__} in config.task); "
            "regrade it with the version that made it."
        ) from error


def problems_of(run: Manifest, data: str | None = None) -> dict[int, Problem]:
    """The run's problems by id. Raises UserError if the data is not that which it was made with."""
    name = data or run.data
    if not name:
        raise UserError(
            f"{run.directory / RUN} does not say which data the run is of (config.data); name it.", ("data",)
        )
    source = load_problems(name, run.data_split, None, task_of(run))
    if run.rows_sha256 is not None and source.num_rows >= run.num_problems:
        check_rows(run, source)
    elif source.digest != run.data_sha256:
        raise UserError(
            f"The data {name} has the sha256 {source.digest[:8]} but the run in {run.directory} was made "
            f"with {str(run.data_sha256)[:8]}; name the file it was made with.",
            ("data",),
        )
    return {problem.problem_id: problem for problem in source.problems}


def check_rows(run: Manifest, data: DataSource) -> None:
    """Raises UserError if a row of the data is not the one that the run was asked, as far as both have it."""
    rows, kept = data.rows_digest, run.rows_sha256 or ""
    for start in range(0, min(len(rows), len(kept)), DIGITS):
        if rows[start : start + DIGITS] != kept[start : start + DIGITS]:
            raise UserError(
                f"Row {start // DIGITS} of the data {data.name} is another than the run in {run.directory} was made "
                "with; name the file it was made with, or start over in a new directory.",
                ("data", "fresh"),
            )

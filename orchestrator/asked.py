"""What a finished run asked, found again by what its run.json says: task, problems, prompts. Knows no records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from evals.config import TaskConfig
from evals.tasks.gsm8k import make_task
from evals.types import Message, Problem, UserError
from orchestrator.claim import RUN
from orchestrator.inputs import prompts_digest
from orchestrator.problems import TRAIN_SETTING, load_problems


class Asked(NamedTuple):
    """Problems and prompts of a run, or the sentence that says why they cannot be shown."""

    problems: Mapping[int, Problem]
    prompts: Mapping[int, str]
    missing: str = ""


def asked(directory: Path, run: Mapping[str, Any]) -> Asked:
    """The run's problems and prompts, checked against the digests in run.json: what is shown is what was asked.

    The turns of a chat stand below each other under their roles; the model's own template is not applied.
    """
    try:
        problems = problems_of(directory, run)
    except UserError as error:
        return Asked({}, {}, str(error))
    try:
        prompts = prompts_of(directory, run, task_of(directory, run), problems)
    except UserError as error:
        return Asked(problems, {}, str(error))
    return Asked(problems, {i: as_text(prompt) for i, prompt in prompts.items()})


def prompts_of(
    directory: Path, run: Mapping[str, Any], task: TaskConfig, problems: Mapping[int, Problem]
) -> dict[int, str | tuple[Message, ...]]:
    """What the run asked for each of its problems. Raises UserError if that cannot be made again."""
    train = ()
    if task.num_shots and task.train_data is not None:
        train = load_problems(task.train_data, "train", None, task, TRAIN_SETTING).problems
    asking = make_task(task, run["config"].get("seed", 0), train)
    shown = list(problems.values())[: run.get("num_problems")]
    known = run.get("provenance", {}).get("prompts_sha256")
    if prompts_digest(asking, shown) != known:
        raise UserError(
            f"The prompts of the run in {directory} cannot be made again: they have another sha256 than run.json says "
            f"({str(known)[:8]}); restore the training data {task.train_data} or use the version that made the run."
        )
    return {problem.problem_id: asking.prompt(problem) for problem in shown}


def as_text(prompt: str | tuple[Mapping[str, str], ...]) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in prompt)


def task_of(directory: Path, run: Mapping[str, Any]) -> TaskConfig:
    """How the run asked and what its golds are."""
    try:
        return TaskConfig.model_validate(run["config"]["task"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(
            f"{directory / RUN} does not say which task the run is of ({type(error).__name__} in config.task); regrade "
            "it with the version that made it."
        ) from error


def problems_of(directory: Path, run: Mapping[str, Any], data: str | None = None) -> dict[int, Problem]:
    """The run's problems by their rows. Raises UserError if they are not those that it was made with."""
    config, known = run["config"], run.get("provenance", {}).get("data", {}).get("sha256")
    name = data or config.get("data")
    if not name:
        raise UserError(f"{directory / RUN} does not say which data the run is of (config.data); name it by --data.")
    source = load_problems(name, config.get("data_split", "test"), None, task_of(directory, run))
    if source.digest != known:
        raise UserError(
            f"The data {name} has the sha256 {source.digest[:8]} but the run in {directory} was made with "
            f"{str(known)[:8]}; name the file it was made with by --data."
        )
    return {problem.problem_id: problem for problem in source.problems}

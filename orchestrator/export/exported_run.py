"""Gathers what the export formats need of a run: records with the scores of its report, problems and prompts.

Texts of questions and prompts are made again from the data and must be those that the run was made with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from evals.config import TaskConfig
from evals.record import Record
from evals.types import Message, Problem
from orchestrator.analysis.load import load_run
from orchestrator.analysis.summary import Summary
from orchestrator.inputs.problems import GSM8K_SHA256
from orchestrator.inputs.prompts import problems_of, prompts_of, task_of
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.settings.config import DEFAULT_DATA


class Exported(NamedTuple):
    """A run with all that an export format needs of it."""

    run: Manifest
    summary: Summary
    task: TaskConfig
    records: Sequence[Record]
    """In the order of problems and samples, with the scores that count."""
    problems: Mapping[int, Problem]
    """Problem id -> problem, of those that have records."""
    prompts: Mapping[int, str | tuple[Message, ...]]
    """Likewise; a prompt is a tuple of turns if the model got it through its chat template."""

    @property
    def name(self) -> str:
        """The task's name for other tools: the preset on GSM8K, else the data's name, lest it pass for GSM8K."""
        if self.is_gsm8k:
            return self.task.preset
        return PurePath(self.run.data or "").name.removesuffix(".jsonl").removesuffix(".json")

    @property
    def is_gsm8k(self) -> bool:
        return self.run.data == DEFAULT_DATA or self.run.data_sha256 == GSM8K_SHA256

    @property
    def replayed(self) -> bool:
        """Whether the texts are replayed: they come from elsewhere, and no model wrote them."""
        return self.run.sampler["kind"] == "replay"

    @property
    def model(self) -> str:
        """The name of what wrote the answers: the model, or the replayed texts."""
        return f"replay-of-{PurePath(self.run.sampler['texts']).name}" if self.replayed else str(self.run.model)

    @property
    def began(self) -> float:
        """Start of the first answer in Unix seconds; 0 if a record does not say its start."""
        return min(record.timings.start or 0.0 for record in self.records)

    @property
    def ended(self) -> float:
        return max(record.timings.end or 0.0 for record in self.records)

    def prompt_text(self, problem_id: int) -> str:
        """A prompt as one text, a chat's turns as JSON."""
        prompt = self.prompts[problem_id]
        return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def load_exported(directory: Path, data: str | None) -> Exported:
    """Load a run and make its prompts again. Raises UserError if it has no answer or they are not the run's prompts."""
    run = load_run(directory)
    task, problems = task_of(run.manifest), problems_of(run.manifest, data)
    prompts, ids = prompts_of(run.manifest, problems), {record.problem_id for record in run.records}
    problems = {key: problem for key, problem in problems.items() if key in ids}
    prompts = {key: prompt for key, prompt in prompts.items() if key in ids}
    return Exported(run.manifest, run.summary, task, run.records, problems, prompts)

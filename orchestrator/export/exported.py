"""`powersample export RUN --to FORMAT`: a run in the files of other tools, with the scores that its report shows.

Texts of questions and prompts are made again from the data and must be those that the run was made with. Knows how
files come about, and of each format only which module it is in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from evals.config import TaskConfig
from evals.types import Message, Problem, Record
from orchestrator.analysis.load import load_run
from orchestrator.inputs.problems import GSM8K_SHA256
from orchestrator.inputs.prompts import problems_of, prompts_of, task_of
from orchestrator.rundir.manifest import Manifest
from orchestrator.settings.config import DEFAULT_DATA


class Exported(NamedTuple):
    """All that a format needs of a run."""

    run: Manifest
    summary: Mapping[str, Any]
    task: TaskConfig
    records: Sequence[Record]
    """In the order of problems and samples, with the scores that count."""
    problems: Mapping[int, Problem]
    """Of the records."""
    prompts: Mapping[int, str | tuple[Message, ...]]
    """Of the records; the turns where the model was asked through its chat template."""

    @property
    def name(self) -> str:
        """The task's for other tools: the preset on GSM8K, else the data's own, so that nothing else passes for it."""
        if self.run.data == DEFAULT_DATA or self.run.data_sha256 == GSM8K_SHA256:
            return self.task.preset
        return PurePath(self.run.data or "").name.removesuffix(".jsonl").removesuffix(".json")

    @property
    def replayed(self) -> bool:
        """Whether the texts were produced elsewhere, and no model was asked."""
        return self.run.sampler["kind"] == "replay"

    @property
    def model(self) -> str:
        """Whose answers these are."""
        return f"replay-of-{PurePath(self.run.sampler['texts']).name}" if self.replayed else str(self.run.model)

    @property
    def began(self) -> float:
        """Start of the first answer in Unix seconds; 0 where one does not say."""
        return min(record.timings.get("start", 0.0) for record in self.records)

    @property
    def ended(self) -> float:
        return max(record.timings.get("end", 0.0) for record in self.records)

    def prompt_text(self, problem_id: int) -> str:
        """A prompt as one text, a chat's turns as JSON."""
        prompt = self.prompts[problem_id]
        return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def gather(directory: Path, data: str | None) -> Exported:
    """Read a run and make its prompts again. Raises UserError if it has no answer or they are not the run's prompts."""
    found = load_run(directory)
    task, problems = task_of(found.manifest), problems_of(found.manifest, data)
    prompts, ids = prompts_of(found.manifest, problems), {one.problem_id for one in found.records}
    kept = {key: problem for key, problem in problems.items() if key in ids}
    asked = {key: prompt for key, prompt in prompts.items() if key in ids}
    return Exported(found.manifest, found.summary, task, found.records, kept, asked)

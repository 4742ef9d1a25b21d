"""What a run needs, found and checked before anything starts or is written. Knows no directory and no worker."""

from __future__ import annotations

from typing import NamedTuple

from evals.tasks.gsm8k import make_task
from evals.types import Problem
from orchestrator import preflight
from orchestrator.config import Provenance, RunConfig
from orchestrator.metrics import check_tracker
from orchestrator.models import ModelSource, resolve_model
from orchestrator.problems import TRAIN_SETTING, DataSource, load_problems
from orchestrator.store import Key
from orchestrator.texts import load_texts, texts_digest


class Inputs(NamedTuple):
    """What was found and checked before anything starts."""

    config: RunConfig
    model: ModelSource
    data: DataSource
    train_problems: tuple[Problem, ...]
    train_digest: str | None
    max_length: int
    """Longest prompt plus answer, in tokens."""
    prompts_digest: str
    texts: dict[Key, str] | None = None
    """What the sampler replays; None where it samples."""

    @property
    def provenance(self) -> Provenance:
        texts = None if self.texts is None else texts_digest(self.texts)
        return Provenance(self.model.digest, self.data.digest, self.train_digest, texts)


def find(config: RunConfig, model: ModelSource | None = None) -> Inputs:
    """Find model, unless it was found before, and data, and check that they fit. Raises UserError."""
    check_tracker(config.track)
    data = load_problems(config.data or "", config.data_split, config.limit, config.task)
    sampler, train = config.sampler, None
    texts = None if sampler.texts is None else load_texts(sampler.texts, data, config.num_samples)
    if config.task.num_shots and config.task.train_data is not None:
        train = load_problems(config.task.train_data, "train", None, config.task, TRAIN_SETTING)
    model = model or resolve_model(
        config.model or "",
        config.model_revision,
        trust_remote_code=config.engine.trust_remote_code,
        allow_pickle=config.engine.allow_pickle,
    )
    train_problems = tuple(train.problems) if train else ()
    max_length = preflight.check(config, model.folder, data.problems, train_problems, texts)
    prompts = preflight.prompts_digest(make_task(config.task, config.seed, train_problems), data.problems)
    return Inputs(config, model, data, train_problems, train.digest if train else None, max_length, prompts, texts)

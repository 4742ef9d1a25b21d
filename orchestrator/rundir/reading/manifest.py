"""The manifest of a run: what its run.json says, as typed fields, checked for what every run.json has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import accumulate
from math import inf
from pathlib import Path, PurePath
from typing import Any

from pydantic import (
    AliasChoices,
    AliasPath,
    AwareDatetime,
    BaseModel,
    Field,
    ValidationError,
    computed_field,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from evals.samplers.candidates import BestOf, Majority, Snis
from evals.samplers.paper import Paper
from evals.samplers.power import Power
from evals.samplers.registry import SAMPLERS, AnySampler
from evals.samplers.single import AtTemperature, Replay
from evals.samplers.smc import Smc
from evals.types import UserError
from orchestrator.rundir.directory import RUN, directory_errors, read_run, runs_in
from orchestrator.rundir.extents import Extent

NAMED = {"alpha", "temperature", "num_moves", "num_candidates", "texts"}
"""Settings without which no sampler that has them can be named: every run.json says them."""


def at(*paths: str, default: Any = None, **more: Any) -> Any:
    """A model field that is read from the first of these dotted paths that exists."""
    return Field(default, validation_alias=AliasChoices(*(AliasPath(*path.split(".")) for path in paths)), **more)


class Manifest(BaseModel, frozen=True, strict=True, protected_namespaces=()):
    """What run.json says of a run, as far as it was asked for last; None is what an older run.json leaves out.

    Its dump is the `run` of a summary; the excluded fields are for code that reads the run itself.
    """

    directory: Path = Field(exclude=True)
    content: dict[str, Any] = Field(exclude=True)
    """All of run.json."""
    name: str = at("config.name", default="", exclude=True)
    limit: int | None = at("config.limit", exclude=True)
    data_split: str = at("config.data_split", default="test", exclude=True)
    sampler: dict[str, Any] = at("config.sampler", default=...)
    task: str = at("config.task.name", default=...)
    preset: str | None = at("config.task.preset")
    preset_version: str | None = at("provenance.preset_version")
    prompts_sha256: str | None = at("provenance.prompts_sha256")
    prompts_time: AwareDatetime | None = at("provenance.prompts_time", exclude=True, strict=False)
    """What chat templates take for now."""
    prompt_ids_sha256: str | None = at("prompt_ids_sha256", exclude=True)
    """8 digits for each problem, see `ids_digest`; this and the next two of all that was ever asked for."""
    rows_sha256: str | None = at("rows_sha256", exclude=True)
    """8 digits for each row, see `DataSource.rows_digest`."""
    replayed_sha256: list[str] = Field(default_factory=list, exclude=True)
    """Problem -> 8 digits for each of its samples, see `text_digests`."""
    num_shots: int | None = at("config.task.num_shots")
    max_new_tokens: int | None = at("config.task.max_new_tokens")
    """None for replayed answers, too, which it does not cut off."""
    stop: list[str] | None = at("config.task.stop")
    num_problems: int
    """After any limit."""
    num_samples: int = at("config.num_samples", default=...)
    model: str | None = at("provenance.model.name", "config.model")
    model_sha256: str | None = at("provenance.model.sha256")
    adapter: str | None = at("provenance.adapter.name")
    """What was merged into the model."""
    data: str | None = at("provenance.data.name", "config.data")
    data_sha256: str | None = at("provenance.data.sha256")
    data_rows: int | None = at("provenance.data.rows")
    seed: int | None = at("config.seed")
    dtype: str | None = at("provenance.dtype")
    git_commit: str | None = at("provenance.git_commit")
    git_dirty: bool | None = at("provenance.git_dirty")
    fingerprint: str | None = None
    extents: list[Extent] = Field(default_factory=list)
    """How the run grew, in order."""

    @classmethod
    def read(cls, directory: Path, graded: bool = False) -> Manifest:
        """The manifest of the run in `directory`. Raises UserError if there is none or it lacks what every run.json
        says; if it must be `graded`, also for a run without scores."""
        content = read_run(directory) if directory.is_dir() else None
        if content is None:
            runs = ", ".join(str(one) for one in runs_in(directory))
            way_out = f"it holds the runs {runs}; name one of them" if runs else "name the one that the run printed"
            raise UserError(f"{directory} is not a run directory (it has no {RUN}); {way_out}.")
        run = cls.of(directory, content)
        if graded and run.task == "open":
            raise UserError(
                f"{directory} is a run of generate, which grades nothing; `powersample validate` checks its output."
            )
        return run

    @classmethod
    def begun(cls, directory: Path, *fingerprints: str) -> Manifest | None:
        """The manifest of the run in `directory`; None if none of these fingerprints has begun there. Raises UserError
        if its run.json is damaged or cannot be read."""
        with directory_errors(directory):
            content = read_run(directory)
        return cls.of(directory, content) if content and content.get("fingerprint") in fingerprints else None

    @classmethod
    def of(cls, directory: Path, content: Mapping[str, object]) -> Manifest:
        """The manifest of the run in `directory` whose run.json says `content`. Raises UserError as `read` does."""
        try:
            return cls.model_validate({**content, "directory": directory, "content": content})
        except ValidationError as error:
            places = [(*one["loc"], *one.get("ctx", {}).values()) for one in error.errors()]
            missing = ", ".join(".".join(map(str, place)) for place in places)
            raise UserError(
                f"{directory / RUN} is damaged: it does not say {missing}; restore it from a copy."
            ) from error

    @field_validator("sampler")
    @classmethod
    def _check_sampler(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("kind", *sorted(NAMED & settings_of_kind(value.get("kind")))):
            if value.get(name) is None:
                raise PydanticCustomError("missing", "{name} is missing", {"name": name})
        return value

    @field_validator("max_new_tokens")
    @classmethod
    def _drop_limit_of_replay(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if info.data.get("sampler", {}).get("kind") == "replay" else value

    @property
    def extent(self) -> Extent:
        """What the run was asked for last."""
        return Extent(
            limit=self.limit, num_samples=self.num_samples, num_problems=self.num_problems, rows=self.data_rows
        )

    @property
    def is_part(self) -> bool:
        """Whether the run was asked for more before."""
        return any((one.num_problems - 1, one.num_samples - 1) not in self.extent for one in self.extents)

    @property
    def seen_problems(self) -> int | None:
        """The first number of problems that had answers before further ones were added; None if none were."""
        most = accumulate((one.num_problems for one in self.extents), max)
        for before, later in zip(most, self.extents[1:], strict=False):
            if later.answers and before < min(later.num_problems, self.num_problems):
                return before
        return None

    @property
    def kind(self) -> str:
        """The kind of its sampler."""
        return str(self.sampler["kind"])

    @property
    def sampler_settings(self) -> AnySampler | None:
        """The sampler, without settings that its kind has no longer; None for a kind or a value that no sampler has."""
        try:
            names = settings_of_kind(self.kind)
            return SAMPLERS[self.kind](**{name: value for name, value in self.sampler.items() if name in names})
        except (KeyError, ValidationError):
            return None

    @computed_field
    @property
    def method(self) -> str:
        """The name of the sampler wherever its result appears."""
        return self.kind if self.sampler_settings is None else method(self.sampler_settings)

    @property
    def cut_limit(self) -> float:
        """Tokens below which no answer counts as cut off: `paper` may end answers at their last length, and which
        replayed ones were cut off is unknown."""
        return {"paper": self.max_new_tokens or 0, "replay": inf}.get(self.kind, 0)


def settings_of_kind(kind: object) -> set[str]:
    """The names of the settings of a kind of sampler; none of an unknown one."""
    return {field.name for field in fields(SAMPLERS[kind])} if isinstance(kind, str) and kind in SAMPLERS else set()


def method(sampler: AnySampler) -> str:
    """The name of a sampler, made from its settings; a kind without any to name is its own name."""
    match sampler:
        case Power():
            effective = sampler.num_effective_moves
            moves = f"{sampler.num_moves} moves" if effective is None else f"{effective} effective moves"
            blocks = f", {sampler.blocks} blocks" if sampler.blocks > 1 else ""
            cuts = f", {sampler.cuts} cuts" if sampler.cuts != "uniform" else ""
            return f"power (alpha {sampler.alpha:g}, {moves}{blocks}{cuts})"
        case Paper():
            return f"paper (alpha {sampler.alpha:g}, biased, for comparison only)"
        case AtTemperature():
            top_k = f", top {sampler.top_k}" if sampler.top_k else ""
            top_p = f", top_p {sampler.top_p:g}" if sampler.top_p != 1 else ""
            return f"temperature {sampler.temperature:g}{top_k}{top_p}"
        case BestOf():
            return f"best of {sampler.num_candidates} by log p (alpha {sampler.alpha:g})"
        case Majority():
            return f"majority of {sampler.num_candidates} (temperature {sampler.temperature:g})"
        case Snis():
            return f"SNIS of {sampler.num_candidates} (alpha {sampler.alpha:g})"
        case Smc():
            return f"SMC of {sampler.num_candidates} (alpha {sampler.alpha:g})"
        case Replay():
            return f"replay of {PurePath(sampler.texts).name}"
        case _:
            return sampler.kind

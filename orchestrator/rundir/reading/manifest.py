"""The manifest of a run: what its run.json says, as typed fields, checked for what every run.json has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import inf
from pathlib import Path, PurePath
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel, Field, ValidationError, computed_field, field_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from evals.samplers.registry import SAMPLERS
from evals.types import UserError
from orchestrator.rundir.directory import RUN, read_run, runs_in
from orchestrator.wording import fill_in

METHODS = {
    "power": "power (alpha {alpha:g}, {moves}|, {blocks} blocks|, {cuts} cuts|)",
    "paper": "paper (alpha {alpha:g}, biased, for comparison only)",
    "temperature": "temperature {temperature:g}|, top {top_k}|, top_p {top_p:g}",
    "best_of": "best of {num_candidates} by log p (alpha {alpha:g})",
    "majority": "majority of {num_candidates} (temperature {temperature:g})",
    "snis": "SNIS of {num_candidates} (alpha {alpha:g})",
    "smc": "SMC of {num_candidates} (alpha {alpha:g})",
    "replay": "replay of {texts}",
}
"""Kind of sampler -> how it is named wherever its result appears; phrases as in `wording.Phrases`."""
NAMING = {"alpha": (int, float), "temperature": (int, float), "num_moves": int, "num_candidates": int, "texts": str}
"""The settings that appear in a sampler's name if its kind reads them, and their types."""


def at(*paths: str, default: Any = None, **more: Any) -> Any:
    """A model field that is read from the first of these dotted paths that exists."""
    return Field(default, validation_alias=AliasChoices(*(AliasPath(*path.split(".")) for path in paths)), **more)


class Manifest(BaseModel, frozen=True, strict=True, protected_namespaces=()):
    """What run.json says of a run; None is what an older run.json leaves out.

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
    prompts_sha256: str | None = at("provenance.prompts_sha256")
    num_shots: int | None = at("config.task.num_shots")
    max_new_tokens: int | None = at("config.task.max_new_tokens")
    """None for replayed answers, too, which it does not cut off."""
    stop: list[str] | None = at("config.task.stop")
    num_problems: int
    """After any limit."""
    num_samples: int = at("config.num_samples", default=...)
    model: str | None = at("provenance.model.name", "config.model")
    model_sha256: str | None = at("provenance.model.sha256")
    data: str | None = at("provenance.data.name", "config.data")
    data_sha256: str | None = at("provenance.data.sha256")
    data_rows: int | None = at("provenance.data.rows")
    seed: int | None = at("config.seed")
    dtype: str | None = at("provenance.dtype")
    git_commit: str | None = at("provenance.git_commit")
    git_dirty: bool | None = at("provenance.git_dirty")
    fingerprint: str | None = None

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
    def of(cls, directory: Path, content: Mapping[str, Any]) -> Manifest:
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
        kind = SAMPLERS.get(str(value.get("kind")))
        read = {field.name for field in fields(kind)} if kind else set()
        for name, kind in {"kind": str, **{name: NAMING[name] for name in NAMING if name in read}}.items():
            if not isinstance(value.get(name), kind):
                raise PydanticCustomError("missing", "{name} is missing", {"name": name})
        return value

    @field_validator("max_new_tokens")
    @classmethod
    def _drop_limit_of_replay(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if info.data.get("sampler", {}).get("kind") == "replay" else value

    @computed_field
    @property
    def method(self) -> str:
        return method(self.sampler)

    @property
    def cut_limit(self) -> float:
        """Tokens below which no answer counts as cut off: `paper` may end answers at their last length, and which
        replayed ones were cut off is unknown."""
        return {"paper": self.max_new_tokens or 0, "replay": inf}.get(self.sampler["kind"], 0)


def method(sampler: Mapping[str, Any]) -> str:
    """The name of a sampler, made from its settings."""
    effective, kind = sampler.get("num_effective_moves"), sampler.get("kind") or "unknown method"
    several, cuts = (sampler.get("blocks") or 1) > 1, sampler.get("cuts", "uniform")
    words = {
        "moves": f"{sampler.get('num_moves')} moves" if effective is None else f"{effective} effective moves",
        "blocks": sampler["blocks"] if several else None,
        "cuts": None if cuts == "uniform" else cuts,
        "top_k": sampler.get("top_k") or None,
        "top_p": None if sampler.get("top_p", 1) == 1 else sampler["top_p"],
        "texts": PurePath(sampler.get("texts") or "").name,
    }
    return fill_in(METHODS[kind], {**sampler, **words}) if kind in METHODS else kind

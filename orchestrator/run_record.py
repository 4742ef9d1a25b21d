"""What run.json says of a run, typed and by one name each. Knows no record and no layout."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import PurePath
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel, Field, ValidationInfo, computed_field, field_validator

from orchestrator.layout import say

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
"""A sampler in a few words, the same wherever its result appears; phrases as in `layout.Phrases`."""


def at(*paths: str, default: Any = None) -> Any:
    """A field that stands at the first of these paths that there is."""
    return Field(default, validation_alias=AliasChoices(*(AliasPath(*path.split(".")) for path in paths)))


class RunRecord(BaseModel, frozen=True, protected_namespaces=()):
    """What a reader must know of a run to trust and repeat it; None is what an older or damaged run.json leaves out."""

    sampler: dict[str, Any] = at("config.sampler", default={})
    task: str | None = at("config.task.name")
    preset: str | None = at("config.task.preset")
    prompts_sha256: str | None = at("provenance.prompts_sha256")
    num_shots: int | None = at("config.task.num_shots")
    max_new_tokens: int | None = at("config.task.max_new_tokens")
    """None, too, where it ends no answer: replayed ones were cut off elsewhere, or not."""
    stop: list[str] | None = at("config.task.stop")
    num_problems: int | None = None
    """After any limit."""
    num_samples: int = at("config.num_samples", default=1)
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

    @field_validator("max_new_tokens")
    @classmethod
    def _ends_no_replayed_answer(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if info.data.get("sampler", {}).get("kind") == "replay" else value

    @computed_field
    @property
    def method(self) -> str:
        return method(self.sampler)


def method(sampler: Mapping[str, Any]) -> str:
    """A sampler in a few words."""
    effective, kind = sampler.get("num_effective_moves"), sampler.get("kind") or "unknown method"
    several, cuts = sampler.get("blocks", 1) > 1, sampler.get("cuts", "uniform")
    words = {
        "moves": f"{sampler.get('num_moves')} moves" if effective is None else f"{effective} effective moves",
        "blocks": sampler["blocks"] if several else None,
        "cuts": None if cuts == "uniform" else cuts,
        "top_k": sampler.get("top_k") or None,
        "top_p": None if sampler.get("top_p", 1) == 1 else sampler["top_p"],
        "texts": PurePath(sampler.get("texts") or "").name,
    }
    return say(METHODS[kind], {**sampler, **words}) if kind in METHODS else kind


def cut_limit(run: Mapping[str, Any]) -> float:
    """Tokens below which no answer of a run, dumped as a dict, counts as cut off: `paper` may end answers at their last
    length, and which replayed ones were cut off nobody knows."""
    return {"paper": run["max_new_tokens"], "replay": inf}.get(run["sampler"].get("kind"), 0)

"""How much a run was asked for: an extent for every time that this was another number of problems or samples.

A run grows, since every answer is keyed by problem and sample: run.json says what was asked for last, and lists all
extents in `extents`. What was answered for a larger one stays when a smaller one is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from evals.record import RecordKey
from evals.types import UserError


class Extent(BaseModel, frozen=True, strict=True):
    """The problems and samples that a run was asked for at one time."""

    limit: int | None = None
    num_samples: int
    num_problems: int
    """Within the limit."""
    rows: int | None = None
    """Of the data at that time."""
    time: str = ""
    """When, as ISO 8601 with its zone."""
    answers: int = 0
    """Records that the run had by then."""

    def __contains__(self, key: RecordKey) -> bool:
        return key[0] < self.num_problems and key[1] < self.num_samples

    @property
    def total(self) -> int:
        """Answers that it asks for."""
        return self.num_problems * self.num_samples

    @property
    def words(self) -> str:
        samples = f" with {self.num_samples} samples each" if self.num_samples > 1 else ""
        return f"{self.num_problems:,} problems{samples}"


def limits(content: Mapping[str, Any]) -> dict[str, int]:
    """Field of a record -> what it is below in every extent that run.json, whose content this is, ever had."""
    config: Any = content.get("config")
    sizes: dict[str, Any] = {"num_problems": content.get("num_problems")} | (config if isinstance(config, dict) else {})
    extents, fields = content.get("extents") or [], {"problem_id": "num_problems", "sample_index": "num_samples"}
    return {
        field: max(sizes[name], *(one[name] for one in extents), 0)
        for field, name in fields.items()
        if isinstance(sizes.get(name), int)
    }


def grown(stored: dict[str, Any], wanted: Mapping[str, Any], answers: int) -> dict[str, Any]:
    """The content of run.json of a run that has so many answers and now is `wanted`: its size, the digests of what
    it asks, and one more extent if any of these is new. All else stays, as does a run.json of this size without
    extents, which is an older version's. Raises UserError where another process has begun it with other rows since the
    inputs were checked."""
    former, sizes = (
        {name: (run.get("config") or {}).get(name) for name in ("limit", "num_samples")} for run in (stored, wanted)
    )
    if "extents" not in stored and former == sizes:
        return stored
    begun = stored.get("extents") or [{**former, "num_problems": stored["num_problems"]}]
    old, new = stored.get("rows_sha256") or "", wanted.get("rows_sha256") or ""
    if answers and not (old.startswith(new) or new.startswith(old)):
        raise UserError(
            "Another process has meanwhile begun this run with other rows; name the data that it was begun with, or "
            "start over in a new directory.",
            ("data", "fresh"),
        )
    inputs = {name: wanted["provenance"].get(name) for name in ("data", "prompts_sha256", "texts_sha256")}
    changed = {name: value for name, value in inputs.items() if value is not None}
    content = {
        **stored,
        "config": {**stored["config"], **sizes},
        "num_problems": wanted["num_problems"],
        "provenance": {**(stored.get("provenance") or {}), **changed},
    }
    for name in wanted.keys() & {"rows_sha256", "prompt_ids_sha256", "replayed_sha256"}:
        both = longer_each if name == "replayed_sha256" else longer
        content[name] = both(stored.get(name), wanted[name]) if answers else wanted[name]
    if content == stored:
        return stored
    return {**content, "extents": [*begun, *({**one, "answers": answers} for one in wanted["extents"])]}


def longer(old: str | None, new: str) -> str:
    """The one that says more, where one continues the other."""
    return max(old or "", new, key=len)


def longer_each(old: Sequence[str] | None, new: Sequence[str]) -> list[str]:
    old = old or ()
    both = [longer(one, other) for one, other in zip(old, new, strict=False)]
    return [*both, *old[len(both) :], *new[len(both) :]]

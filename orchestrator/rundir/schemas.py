"""The schemas of the lines of scores.jsonl and telemetry.jsonl."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evals.types import Grade

TOTALS = (
    "moves", "null", "accepted", "rejected_early", "initial_tokens", "replayed_tokens", "naive_tokens",
    "discarded_tokens",
)  # fmt: skip
"""Fields of a record's chain that a summary adds up over all answers, under the same names."""
MEANS = {
    "mean_log_p_first": "log_p_first", "mean_log_p": "log_p", "mean_cut": "mean_cut",
    "mean_divergence": "mean_divergence", "mean_distinct": "distinct", "mean_drift": "drift_mean",
    "mean_candidates": "candidates", "mean_particles": "particles", "mean_resampled": "resampled",
    "mean_log_z_hat": "log_z_hat",
}  # fmt: skip
"""Averages over answers in a summary -> the fields of a record's chain that they are of."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[Number, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class Line(BaseModel):
    """Base of all lines: types are strict, further fields are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")


class ScoresLine(Line):
    """A line of scores.jsonl."""

    problem_id: Count
    sample_index: Count
    scores: dict[str, Grade]


class TelemetryLine(Line):
    """A line of telemetry.jsonl: a worker's state at one moment (`sample`), or an event."""

    kind: Literal["sample", "event"]
    time: Number
    event: str = ""
    name: str = ""
    worker: str = ""
    pid: int | None = None
    rank: int | None = None
    memory: dict[str, Count | None] = {}
    seconds: Amount = 0.0
    steps: Count = 0
    generated_tokens: Count = 0
    slots: Count = 0
    active_slots: Count = 0
    tokens_per_second: Number | None = None
    """Negative if the worker made a new engine since its last row."""
    utilisation: Amount | None = None
    waiting_fraction: Number | None = None
    idle_seconds: Amount | None = None
    nvml_used_bytes: Count | None = None

    @model_validator(mode="after")
    def _has_fields_of_its_kind(self) -> Self:
        needed = (
            {"worker"} if self.kind == "sample" else {"event", {"phase": "name", "tail": "seconds"}.get(self.event)}
        )
        if missing := needed - self.model_fields_set - {None}:
            raise ValueError(f"{missing.pop()} is missing")
        return self

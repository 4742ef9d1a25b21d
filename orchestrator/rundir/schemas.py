"""The schemas of the lines of records.jsonl, scores.jsonl and telemetry.jsonl."""

from __future__ import annotations

import json
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

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

MAX_TOKEN_ID = 2**31 - 1  # what the Parquet export holds
Number = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1 + 1e-6)]
"""A little over 1 is allowed: sums of weights are rounded."""
Count = Annotated[int, Field(ge=0)]


class Line(BaseModel):
    """Base of all lines: types are strict, further fields are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")


class Verdict(Line):
    """What one grader says of an answer."""

    correct: bool
    answer: str | None = None
    kind: str = "number"


class AnsweredBy(Line):
    """The worker that answered."""

    rank: int | None = None
    name: str | None = None


NUMBERS = (*TOTALS, *MEANS.values(), "generated", "prefilled", "drift_max", "ess", "ess_final")


class ChainFigures(Line):
    """A sampler's diagnostics of one answer; fields in NUMBERS must be finite numbers or None."""

    votes: dict[str, Count] = {}
    expected_correct: dict[str, Share] = {}
    log_p_trace: list[Number] = []

    @model_validator(mode="after")
    def _has_numbers(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in NUMBERS and not (value is None or (type(value) in (int, float) and isfinite(value))):
                raise ValueError(f"chain.{name} is {value!r}, which is no number")
        return self


class RecordLine(Line):
    """A line of records.jsonl; see `evals.types.Record`."""

    model_config = ConfigDict(extra="forbid")

    problem_id: Count
    sample_index: Count
    status: Literal["ok", "failed"]
    text: str
    token_ids: list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]]
    ended: str
    scores: dict[str, Verdict]
    chain: ChainFigures
    timings: dict[str, Number]
    """A clock that is set back makes a duration negative."""
    memory: dict[str, Count | None]
    tokens: dict[str, Count]
    worker: AnsweredBy
    error: str | None = None
    group: str | None = None


class ScoresLine(Line):
    """A line of scores.jsonl."""

    problem_id: Count
    sample_index: Count
    scores: dict[str, Verdict]


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


def read(line: bytes | str, kind: type[Line]) -> dict[str, Any]:
    """The fields of a line, checked against the schema `kind`. Raises ValueError naming the first that is wrong."""
    try:
        fields = json.loads(line, parse_constant=not_json)
        json.dumps(fields, ensure_ascii=False).encode()  # lone surrogates could not be written again
        kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "value_error":  # raised by a validator above
            raise first.get("ctx", {})["error"] from error
        where = ".".join(map(str, first["loc"])) or "the line"
        has = "" if first["type"] == "missing" else f" is {repr(first['input'])[:60]}"
        raise ValueError(f"{where}{has}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return fields


def not_json(word: str) -> JsonValue:
    raise ValueError(f"{word} is no number in JSON")

"""The record of a finished (problem, sample), and its codec: one line of JSON in records.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union

from annotated_types import Ge, Le
from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from evals.samplers.registry import FIGURES
from evals.types import TOLERANT, Amount, ChainFigures, Grade, MemoryReading, Thought, Tolerant

T = TypeVar("T")
RecordKey = tuple[int, int]
"""(problem_id, sample_index)."""

SPARSE = ("chain", "timings", "tokens", "worker")
"""Tables of a record of which a line leaves out what is None."""


def table_of(chain: Any) -> str:
    """Which table of figures `chain` is, or is to become."""
    if isinstance(chain, Mapping):
        return next((FIGURES[name].__name__ for name in FIGURES if name in chain), ChainFigures.__name__)
    return type(chain).__name__


NO_FIGURES, NO_READING = ChainFigures(), MemoryReading()
TABLES = (ChainFigures, *FIGURES.values())
if TYPE_CHECKING:
    AnyFigures = ChainFigures
else:
    AnyFigures = Annotated[Union[*(Annotated[table, Tag(table.__name__)] for table in TABLES)], Discriminator(table_of)]


@dataclass(frozen=True)
class Timings(Tolerant):
    """Start and end of an answer in Unix seconds, and the seconds between them: from submission to grades."""

    start: float | None = None
    end: float | None = None
    wall_seconds: float | None = None
    """A clock that is set back makes it negative."""


@dataclass(frozen=True)
class TokenCounts(Tolerant):
    """Tokens of an answer: of its prompt, kept in it, generated (forward rows spent on new tokens), prefilled."""

    prompt: Amount | None = None
    answer: Amount | None = None
    generated: Amount | None = None
    prefilled: Amount | None = None


@dataclass(frozen=True)
class LogProbs(Tolerant):
    """log p of each token of an answer in nats, by the model (`raw`) and as it was drawn, at alpha (`tempered`)."""

    raw: list[float]
    tempered: list[float]


@dataclass(frozen=True)
class AnsweredBy(Tolerant):
    """The worker that answered, and in which attempt."""

    rank: int | None = None
    name: str | None = None
    pid: int | None = None
    host: str | None = None
    attempt: int | None = None


@dataclass(frozen=True)
class Record:
    """A finished (problem, sample); what a failed one lacks is None."""

    __pydantic_config__: ClassVar = {**TOLERANT, "extra": "forbid"}

    problem_id: Amount
    sample_index: Amount
    status: Literal["ok", "failed"]
    text: str
    token_ids: list[Annotated[int, Ge(0), Le(2**31 - 1)]]  # at most what the Parquet export holds
    ended: str
    scores: dict[str, Grade] = field(default_factory=dict)
    """grader -> its verdict."""
    chain: AnyFigures = NO_FIGURES
    """The sampler's table of figures."""
    timings: Timings = Timings()
    memory: MemoryReading = NO_READING
    tokens: TokenCounts = TokenCounts()
    worker: AnsweredBy = AnsweredBy()
    error: str | None = None
    group: str | None = None
    """The problem's `group`."""
    thought: Thought = 0
    log_probs: LogProbs | None = None
    """Where they were asked for."""

    @property
    def key(self) -> RecordKey:
        return self.problem_id, self.sample_index


def as_json(scores: Mapping[str, Grade]) -> dict[str, dict[str, Any]]:
    """Grades by name as JSON values; without the verdict on a cut-off text as it stands where it is the same."""
    return {
        name: {key: value for key, value in vars(grade).items() if (key, value) != ("correct_as_it_stands", None)}
        for name, grade in scores.items()
    }


def encode(record: Record) -> bytes:
    """A record as one line of strict JSON. Raises ValueError on NaN or infinity and on text that is no Unicode."""
    fields = adapter(Record).dump_python(record)
    for name in SPARSE:
        fields[name] = {key: value for key, value in fields[name].items() if value is not None}
    fields["scores"] = as_json(record.scores)
    for name, usual in (("thought", 0), ("log_probs", None)):
        if fields[name] == usual:
            del fields[name]
    return (json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n").encode()


@cache
def adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def read_line(line: bytes | str, kind: type[T]) -> T:
    """The value of a line of JSON. Raises ValueError naming the first field that is wrong."""
    try:
        return adapter(kind).validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        tags = {table.__name__ for table in TABLES}
        where = ".".join(str(part) for part in first["loc"] if part not in tags) or "the line"
        has = "" if first["type"] in ("missing", "json_invalid") else f" is {repr(first['input'])[:60]}"
        said = first["msg"].replace(" at line 1 column ", " at column ")  # of this line; its number in the file is told
        raise ValueError(f"{where}{has}: {said[0].lower()}{said[1:]}") from error

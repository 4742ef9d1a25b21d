"""Rows of OpenAI's batch API, and what their bodies ask of a run, which has one sampler and one limit for all rows.

Source: https://platform.openai.com/docs/guides/batch. Of a body only who asks is left out unsaid.
"""

from __future__ import annotations

import json
from collections.abc import Container, Hashable, Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from evals import settings
from evals.config import TaskConfig
from evals.types import UserError
from orchestrator.console import say
from orchestrator.inputs.files import read_lines
from orchestrator.inputs.rows import InputRow, SolvedRow, Text, Turn, read_row, row_kind
from orchestrator.rundir.reading.manifest import method
from orchestrator.settings.config import RunConfig

CHAT = "/v1/chat/completions"
SETTINGS = ("task.chat", "task.max_new_tokens", "task.stop", "num_samples", "seed")
"""What a run takes from the bodies if they agree and the user has not set it."""
OTHERS = ("model", "sampler.temperature", "sampler.top_p")
"""What it never takes: the run's method decides."""


def refuse(value: JsonValue) -> JsonValue:
    """The value, if it asks for nothing. Raises PydanticCustomError for another."""
    if value and value != {"type": "text"}:
        raise PydanticCustomError("unmet", "generate cannot do that; leave it out")
    return value


Unmet = Annotated[JsonValue, AfterValidator(refuse)]
Limit = Annotated[int, Field(ge=1, le=1_000_000)]


class Said(Turn, extra="allow"):
    """A message."""

    __pydantic_extra__: dict[str, Unmet]


class Body(BaseModel, extra="allow"):
    """The body of a row."""

    __pydantic_extra__: dict[str, Unmet]
    model: str | None = None
    messages: tuple[Said, ...] = ()
    prompt: str = ""
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    n: Annotated[int, Field(ge=1, le=65_536)] | None = None
    stop: Annotated[tuple[settings.Text, ...] | None, BeforeValidator(lambda x: [x] if isinstance(x, str) else x)] = (
        None
    )
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    user: JsonValue = None
    metadata: JsonValue = None


class BatchRow(InputRow):
    """A row of a batch, whose question is the last message or the prompt of its body."""

    form = f'{{"custom_id": "…", "method": "POST", "url": "{CHAT}", "body": {{"messages": […]}}}}'
    question_keys = ()
    question: str = ""
    custom_id: Text
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: Body

    @model_validator(mode="after")
    def _ask(self) -> Self:
        asked = self.body.messages if self.is_chat else (Turn(role="user", content=self.body.prompt),)
        if not asked or asked[-1].role != "user" or not asked[-1].content.strip():
            raise PydanticCustomError("asked", "its body should have a prompt, or messages that end with the user's")
        self.question = asked[-1].content
        self._turns = tuple({"role": turn.role, "content": turn.content} for turn in asked[:-1])
        return self

    @property
    def is_chat(self) -> bool:
        return self.url == CHAT

    @property
    def asks(self) -> dict[str, Hashable]:
        """Setting -> what the body asks for; None where it leaves that open."""
        body = self.body
        own = self.is_chat, body.max_completion_tokens or body.max_tokens, body.stop, body.n, body.seed
        return dict(zip(SETTINGS + OTHERS, (*own, body.model, body.temperature, body.top_p), strict=True))


def kind_of(rows: Sequence[tuple[str, bytes]], task: TaskConfig) -> type[SolvedRow] | type[InputRow]:
    """What the rows of a task's data are: those of a batch where nothing is graded and the first looks like one."""
    kind, first = row_kind(task), rows[0][1] if rows else b""
    is_batch = issubclass(kind, InputRow) and b'"custom_id"' in first and b'"body"' in first
    return BatchRow if is_batch else kind


def read_batch(path: Path, task: TaskConfig) -> list[BatchRow]:
    """The rows of a batch; none if the file is of other rows. Raises UserError for the first row that is none of a
    batch, asks for what cannot be done, or has the custom_id of another."""
    lines = list(read_lines(path, "name a file of rows", "data"))
    if kind_of(lines, task) is not BatchRow:
        return []
    rows, places = [], dict[str, str]()
    for where, line in lines:
        rows.append(row := read_row(line, where, BatchRow))
        if (other := places.setdefault(row.custom_id, where)) != where:
            raise UserError(f"{where}: the custom_id {row.custom_id!r} is that of {other}, too; give each row its own.")
    return rows


def settled(config: RunConfig, rows: Sequence[BatchRow], named: Container[str]) -> RunConfig:
    """The configuration with what all bodies ask alike, unless the user has `named` that setting; a line says what was
    taken, and another what was not. Raises UserError where bodies differ in what a run has once."""
    taken, left = list[str](), list[str]()
    for name in SETTINGS + OTHERS:
        group, _, key = name.rpartition(".")
        present = getattr(config.sampler, key, None) if group == "sampler" else attrgetter(name)(config)
        asked = {row.asks[name] for row in rows}
        new = asked - {None, present}
        if name in OTHERS or name in named:
            left += [f"{name} {listed(new)}"] if new else []
        elif len(asked) > 1:
            reason = f"The rows of {config.data} ask for {name} {listed(asked)}, and a run has one for all"
            raise UserError(f"{reason}; split the file.", () if name == "num_samples" else (name,))
        elif new:
            taken.append(f"{name} {listed(new)}")
            value = {key: new.pop()}
            config = config.model_copy(update={group: config.task.model_copy(update=value)} if group else value)
    run = f"{method(config.sampler)} of {config.model}"
    for words, what in (taken, "Taken"), (left, f"Not taken, as this run is {run},"):
        if words:
            say(f"{what} from the bodies of {config.data}: {', '.join(words)}.")
    return config


def listed(values: Iterable[Hashable]) -> str:
    """The first few values in JSON."""
    return " and ".join(sorted(json.dumps(value, ensure_ascii=False) for value in values)[:4])

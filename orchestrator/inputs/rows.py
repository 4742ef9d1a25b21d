"""Rows of data: what they can be, one reader, and one way to refuse a row that is of another kind.

A refusal says the row's place, what is wrong, and what rows are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from math import isfinite
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    Strict,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

from evals.config import TaskConfig
from evals.grading.grade import FORMATS
from evals.grading.numeric import GOLD
from evals.record import read_line
from evals.types import Message, Problem, UserError
from orchestrator.inputs.files import read_lines

FORM_OF = {"number": "… #### 42", "text": "42"}
"""Kind of golds -> an answer as messages show it."""


def not_blank(text: str) -> str:
    """The text. Raises PydanticCustomError if it is empty or white space."""
    if not text.strip():
        raise PydanticCustomError("blank", "there should be a text")
    return text


def number_as_text(value: object) -> object:
    """A number as the text that a person would write, 18 also for 18.0; anything else as it is."""
    if type(value) is float and isfinite(value):
        value = int(value) if value.is_integer() else f"{Decimal(repr(value)):f}"
    return str(value) if type(value) is int else value


Text = Annotated[str, AfterValidator(not_blank)]
Answer = Annotated[Text, BeforeValidator(number_as_text)]
"""A number is read as its text: a column of whole numbers with a gap is one of 18.0 to many that write files."""


class Row(BaseModel, extra="allow"):
    """Base of what rows can be; fields beside those that are declared are kept."""

    form: ClassVar[str]
    """A row as messages show it."""
    settings: ClassVar[Mapping[str, str]] = {}
    """Field -> the setting that says under which name it is looked for."""

    @property
    def others(self) -> dict[str, JsonValue]:
        """The fields that are not declared."""
        return self.model_extra or {}

    @property
    def group(self) -> str | None:
        """See `Problem.group`."""
        return None if (group := self.others.get("group")) in (None, "") else str(group)


class Turn(BaseModel):
    """A turn of a conversation; what it has beside is left out."""

    role: Literal["system", "user", "assistant"]
    content: str


CONVERSATION = TypeAdapter(dict[str, tuple[Turn, ...]])


class AskedRow(Row):
    """A row with a question, which a conversation may be: turns in place of the question, or as `messages`.

    Its last turn is the answer if it is the assistant's, unless the row has another. The user's turn before it is the
    question; all turns before that are put in front of the question as they are.
    """

    question_keys: ClassVar[tuple[str, ...]]
    answer_keys: ClassVar[tuple[str, ...]]
    question: Text
    _turns: tuple[Message, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _read_conversation(cls, row: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        has = [key for key, value in row.items() if value is not None] if isinstance(row, dict) else []
        key = next((key for key in (*cls.question_keys, "messages") if key in has), "")
        if not key or not isinstance(row[key], list):
            return handler(row)
        *before, last = CONVERSATION.validate_python({key: row[key]})[key] or (None,)
        answer = {}
        if last and last.role == "assistant":
            answer = {} if {*has} & {*cls.answer_keys} else {cls.answer_keys[0]: last.content}
            *before, last = before or (None,)
        elif cls.model_fields.keys() & {"answer"} and not {*has} & {*cls.answer_keys}:
            raise PydanticCustomError("answered", "its conversation ends with no answer, and it has none beside")
        if last is None or last.role != "user":
            raise PydanticCustomError("asked", "a conversation should end with a question of the user and its answer")
        asked = key if key in cls.question_keys else cls.question_keys[0]
        read = handler({**row, "messages": row[key], asked: last.content, **answer})
        read._turns = tuple(turn.model_dump() for turn in before)
        return read


class SolvedRow(AskedRow):
    """A question and its answer, a solution that ends in `#### gold` or the gold alone."""

    answer: Answer

    def problem(self, problem_id: int) -> Problem:
        return Problem.from_answer(problem_id, self.question, self.answer, self.group)._replace(turns=self._turns)


class InputRow(AskedRow):
    """A question that `generate` answers, with the fields that have a place of their own in its output."""

    answer_keys = "original_output", "output"
    original_output: JsonValue = Field(None, validation_alias=AliasChoices("original_output", "output"))
    difficulty: JsonValue = None
    domain: JsonValue = None

    def problem(self, problem_id: int) -> Problem:
        return Problem(problem_id, self.question, group=self.group, turns=self._turns)

    @model_validator(mode="after")
    def _can_be_carried(self) -> Self:
        """A line of the output has all fields two levels deeper, and no number that JSON has not."""
        from_json(json.dumps([[self.model_dump()]], allow_nan=False))
        return self


class TextRow(Row):
    """A text to grade, and the row of the data that it answers."""

    form = '{"id": 7, "text": "So it is 42."}'
    id: Annotated[str, Field(pattern="^[0-9]{1,18}$", coerce_numbers_to_str=True)] = ""
    text: str
    ended: JsonValue = None
    """`length` where a token limit cut the text off; any other text counts as finished."""


class AnswerRow(Row):
    """A text and the gold that it is graded by."""

    form = '{"id": "7", "text": "So it is 42.", "gold": "42"} (with --preset math500 the gold may be LaTeX)'
    id: Annotated[str, Strict()] | Annotated[int, Strict()]
    text: str
    ended: JsonValue = None
    """See `TextRow.ended`."""
    gold: Annotated[str, BeforeValidator(number_as_text)]
    """A solution that ends in `#### gold`, or the gold alone."""
    question: str = ""


R = TypeVar("R", bound=Row)


def read_rows(path: Path, kind: type[R], way_out: str, *settings: str) -> Iterator[tuple[str, R]]:
    """The rows of a file, each with its place. Raises UserError as `read_lines` and `read_row` do."""
    return ((where, read_row(line, where, kind)) for where, line in read_lines(path, way_out, *settings))


def read_row(line: bytes, where: str, kind: type[R]) -> R:
    """The row on a line of JSON. Raises UserError, which begins with the line's place `where`."""
    try:
        return read_line(line, kind)
    except ValueError as error:
        first = error.__cause__.errors()[0] if isinstance(error.__cause__, ValidationError) else {}
        if first.get("type") != "missing":
            encoded = "" if line.decode(errors="ignore").encode() == line else " (it is not in UTF-8)"
            raise refusal(where, f"{error}{encoded}", kind) from error
        there = shorten(", ".join(first["input"]), 200, placeholder=" …") or "nothing"
        setting = kind.settings.get(str(first["loc"][0]))
        raise refusal(where, f"{error} (found: {there})", kind, *([setting] if setting else [])) from error


def refusal(where: str, reason: str, kind: type[Row], *settings: str) -> UserError:
    """The error for a row that is not what its file has to hold."""
    return UserError(f"{where}: {reason}; rows are {kind.form}.", settings)


def row_kind(task: TaskConfig) -> type[SolvedRow] | type[InputRow]:
    """What the rows of a task's data are, under the keys that it says."""
    golds = FORMATS[task.name].golds
    if golds == "none":

        class Input(InputRow):
            form = json.dumps({task.question_key: "…"}, ensure_ascii=False)
            question_keys = task.question_key, "prompt"
            settings = {task.question_key: "task.question_key"}
            question: Text = Field(validation_alias=AliasChoices(task.question_key, "prompt"))

        return Input

    class Solved(SolvedRow):
        form = json.dumps({task.question_key: "…", task.answer_key: FORM_OF[golds]}, ensure_ascii=False)
        question_keys, answer_keys = (task.question_key,), (task.answer_key,)
        settings = {task.question_key: "task.question_key", task.answer_key: "task.answer_key"}
        question: Text = Field(alias=task.question_key)
        answer: Answer = Field(alias=task.answer_key)

    return Solved


def check_gold(problem: Problem, golds: str, where: str, kind: type[Row]) -> Problem:
    """The problem. Raises UserError if its gold is not what graders of such `golds` compare with."""
    if golds == "none" or (problem.gold and (golds != "number" or GOLD.fullmatch(problem.gold))):
        return problem
    gold = shorten(repr(problem.gold), 80, placeholder=" …'")
    raise refusal(where, f"the gold is {gold}, not {'a number' if golds == 'number' else 'an answer'}", kind)

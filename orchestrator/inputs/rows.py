"""Rows of data files in JSONL: what they can be, one reader, and one way to refuse a row or a file of another kind.

A refusal says file and line, what is wrong, and what rows are.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Self, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, Field, JsonValue, Strict, model_validator
from pydantic_core import PydanticCustomError, from_json

from evals.config import TaskConfig
from evals.grading.grade import FORMATS
from evals.grading.numeric import GOLD
from evals.record import read_line
from evals.types import Problem, UserError

BY_DATASETS = (
    "write its rows as lines of JSON, by Python's `from datasets import Dataset; Dataset.from_{}(FILE).to_json(NEW)`"
)
JSON_ARRAY = "one JSON array", BY_DATASETS.format("json")
JSON_OBJECT = "one JSON object on several lines", "write every row on a line of its own, by `jq -c . FILE > NEW`"
DELIMITED = "a table of separated values", BY_DATASETS.format("csv")
WEB_PAGE = "a web page or XML", "download the file itself"
UTF_16 = "text in UTF-16", "write it in UTF-8, by `iconv -f UTF-16 -t UTF-8 FILE > NEW`"
KINDS_OF_FILE: Mapping[bytes, tuple[str, str]] = {
    b"PAR1": ("Parquet", BY_DATASETS.format("parquet")),
    b"\x1f\x8b": ("compressed by gzip", "unpack it (gunzip)"),
    b"BZh": ("compressed by bzip2", "unpack it (bunzip2)"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it (unxz)"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it (unzstd)"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save its rows as lines of JSON"),
    b"ARROW1": ("Arrow", "write its rows as lines of JSON, by Python's `datasets`"),
    b"SQLite format 3": ("an SQLite database", "write its rows as lines of JSON"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "fetch it (git lfs pull)"),
    b"<!": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"<?xml": WEB_PAGE,
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
}
"""How files that are no lines of JSON begin -> what they are, and what to do."""
FORM_OF = {"number": "… #### 42", "text": "42"}
"""Kind of golds -> an answer as messages show it."""


def not_blank(text: str) -> str:
    """The text. Raises PydanticCustomError if it is empty or white space."""
    if not text.strip():
        raise PydanticCustomError("blank", "there should be a text")
    return text


def number_as_text(value: object) -> object:
    """A whole number as the text that a person would write, anything else as it is."""
    return str(value) if type(value) is int else value


Text = Annotated[str, AfterValidator(not_blank)]
Answer = Annotated[Text, BeforeValidator(number_as_text)]
"""A whole number is read as its text; of another one JSON's readers do not keep every digit."""


class Row(BaseModel, extra="allow"):
    """Base of what rows can be; fields beside those that are declared are kept."""

    form: ClassVar[str]
    """A row as messages show it."""

    @property
    def others(self) -> dict[str, JsonValue]:
        """The fields that are not declared."""
        return self.model_extra or {}

    @property
    def group(self) -> str | None:
        """See `Problem.group`."""
        return None if (group := self.others.get("group")) is None else str(group)


class SolvedRow(Row):
    """A question and its answer, a solution that ends in `#### gold` or, where golds are texts, the gold alone."""

    question: Text
    answer: Answer

    def problem(self, problem_id: int) -> Problem:
        return Problem.from_answer(problem_id, self.question, self.answer, self.group)


class InputRow(Row):
    """A question that `generate` answers, with the fields that have a place of their own in its output."""

    question: Text
    original_output: JsonValue = Field(None, validation_alias=AliasChoices("original_output", "output"))
    difficulty: JsonValue = None
    domain: JsonValue = None

    def problem(self, problem_id: int) -> Problem:
        return Problem(problem_id, self.question, group=self.group)

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
    gold: Annotated[str, Field(coerce_numbers_to_str=True)]
    """A solution that ends in `#### gold`, or the gold alone."""
    question: str = ""


R = TypeVar("R", bound=Row)


def read_rows(path: Path, kind: type[R], way_out: str, *settings: str) -> Iterator[tuple[str, R]]:
    """The rows of a file, each with its place. Raises UserError as `read_lines` and `read_row` do."""
    return ((where, read_row(line, where, kind)) for where, line in read_lines(path, way_out, *settings))


def read_lines(path: Path, way_out: str, *settings: str) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each with its place: file and line.

    Raises UserError if the file cannot be read or is of another kind; `way_out` says what else to name, by `settings`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read ({error.strerror}); {way_out}.", settings) from error
    content = content.removeprefix(BOM_UTF8)
    if kind := kind_of_file(path, content):
        raise UserError(f"The data file {path} is {kind[0]}, not lines of JSON; {kind[1]}.", settings)
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def kind_of_file(path: Path, content: bytes) -> tuple[str, str] | None:
    """What a file is that holds no lines of JSON, and what to do; None if nothing but its lines can tell."""
    begin = content.lstrip()
    if begin.startswith((b"[", b"{")):
        try:
            is_list = isinstance(from_json(content), list)
        except ValueError:  # as there are several values, or a broken one
            return None
        return JSON_ARRAY if is_list else JSON_OBJECT if b"\n" in begin.rstrip() else None
    if path.suffix.lower() in (".csv", ".tsv") and not begin.startswith(b"{"):
        return DELIMITED
    return next((kind for magic, kind in KINDS_OF_FILE.items() if begin.startswith(magic)), None)


def read_row(line: bytes, where: str, kind: type[R]) -> R:
    """The row on a line of JSON. Raises UserError, which begins with the line's place `where`."""
    try:
        return read_line(line, kind)
    except ValueError as error:
        raise refusal(where, str(error), kind) from error


def refusal(where: str, reason: str, kind: type[Row]) -> UserError:
    """The error for a row that is not what its file has to hold."""
    return UserError(f"{where}: {reason}; rows are {kind.form}, in UTF-8.")


def row_kind(task: TaskConfig) -> type[SolvedRow] | type[InputRow]:
    """What the rows of a task's data are, under the keys that it says."""
    golds = FORMATS[task.name].golds
    if golds == "none":

        class Input(InputRow):
            form = json.dumps({task.question_key: "…"}, ensure_ascii=False)
            question: Text = Field(validation_alias=AliasChoices(task.question_key, "prompt"))

        return Input

    class Solved(SolvedRow):
        form = json.dumps({task.question_key: "…", task.answer_key: FORM_OF[golds]}, ensure_ascii=False)
        question: Text = Field(alias=task.question_key)
        answer: Answer = Field(alias=task.answer_key, pattern="####" if golds == "number" else None)

    return Solved


def check_gold(problem: Problem, golds: str, where: str, kind: type[Row]) -> Problem:
    """The problem. Raises UserError if its gold is not what graders of such `golds` compare with."""
    if golds == "none" or (problem.gold and (golds != "number" or GOLD.fullmatch(problem.gold))):
        return problem
    raise refusal(where, f"the gold is {problem.gold!r}, not {'a number' if golds == 'number' else 'an answer'}", kind)

"""Rows of data files in JSONL: one reader, and one way to refuse a row (file, line, what is wrong, what rows are)."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, JsonValue
from pydantic_core import PydanticCustomError

from evals.record import read_line
from evals.types import UserError


def not_blank(text: str) -> str:
    """The text. Raises PydanticCustomError if it is empty or white space."""
    if not text.strip():
        raise PydanticCustomError("blank", "there should be a text")
    return text


Text = Annotated[str, AfterValidator(not_blank)]


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


R = TypeVar("R", bound=Row)


def read_rows(path: Path, kind: type[R], way_out: str, *settings: str) -> Iterator[tuple[str, R]]:
    """The rows of a file, each with its place. Raises UserError as `read_lines` and `read_row` do."""
    return ((where, read_row(line, where, kind)) for where, line in read_lines(path, way_out, *settings))


def read_lines(path: Path, way_out: str, *settings: str) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each with its place: file and line.

    Raises UserError if the file cannot be read; `way_out` says what else to name, by `settings`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read ({error.strerror}); {way_out}.", settings) from error
    for number, line in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def read_row(line: bytes, where: str, kind: type[R]) -> R:
    """The row on a line of JSON. Raises UserError, which begins with the line's place `where`."""
    try:
        return read_line(line, kind)
    except ValueError as error:
        raise refusal(where, str(error), kind) from error


def refusal(where: str, reason: str, kind: type[Row]) -> UserError:
    """The error for a row that is not what its file has to hold."""
    return UserError(f"{where}: {reason}; rows are {kind.form}, in UTF-8.")

"""Reading the rows of JSONL files, each with its place (file and line) for messages."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.types import UserError

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write one alone, UTF-8 and tokenizers cannot


def jsonl_rows(path: Path, way_out: str, settings: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The values in a JSONL file, each with its place. Raises UserError for a line that is no JSON."""
    return ((where, parse_line(line, where)) for where, line in jsonl_lines(path, way_out, settings))


def jsonl_lines(path: Path, way_out: str, settings: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """The lines of a JSONL file that are not blank, each with its place.

    Raises UserError if the file cannot be read; `way_out` says what else to name, by `settings`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read ({error.strerror}); {way_out}.", settings) from error
    for number, line in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def parse_line(line: bytes, where: str) -> Any:
    """The value on a line of JSON. Raises UserError, which begins with the line's place `where`."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not a line of JSON ({error.msg} at column {error.colno}); repair or remove the line."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets in too many brackets
        raise UserError(f"{where}: no problem can be read from it ({error}); repair or remove the line.") from error

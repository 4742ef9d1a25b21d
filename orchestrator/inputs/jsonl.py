"""The rows of JSONL files, each with where it stands."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals.types import UserError

SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write one alone, UTF-8 and tokenizers cannot


def jsonl_rows(path: Path, way_out: str) -> Iterator[tuple[str, Any]]:
    """What the lines of a JSONL file hold, each with where it stands. Raises UserError for a line that is no JSON."""
    return ((where, parsed(line, where)) for where, line in jsonl_lines(path, way_out))


def jsonl_lines(path: Path, way_out: str) -> Iterator[tuple[str, bytes]]:
    """The rows of a JSONL file as they are written, each with where it stands; blank lines count as lines but not as
    rows.

    Raises UserError: `way_out` says what else to name where the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read ({error.strerror}); {way_out}.") from error
    for number, line in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def parsed(line: bytes, where: str) -> Any:
    """What a line of JSON holds. Raises UserError."""
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

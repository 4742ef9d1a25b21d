"""Files of rows, told apart by their content: lines of JSON, one JSON array, a table of separated values, Parquet, and
each of them compressed by gzip. One reader gives the rows of all as lines of JSON, each with its place.

A table alone is known by its name (.csv, .tsv), having no mark; its cells are the texts that the file has. `datasets`
reads none of these: it makes a number of an answer 007, nothing of NA, and takes longer to import than all of GSM8K to
read. What cannot be read is refused in one sentence: what the file is, and the way out.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from textwrap import shorten
from typing import Any
from zipfile import BadZipFile, ZipFile

from pydantic_core import from_json

from evals.types import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz")
"""How a name ends that is a file's, whether it is there or not."""
DELIMITERS = ",;\t|"
GZIP, ZIP, PARQUET = b"\x1f\x8b", b"PK\x03\x04", b"PAR1"
TAR = slice(257, 262)
"""Where a tar archive says `ustar`."""
AGAIN = "download or write it again"
WEB_PAGE = (
    "a web page or XML",
    "download the file itself; of a file on the Hugging Face hub the link has /resolve/ in it, not /blob/",
)
UTF_16 = "text in UTF-16", "write it in UTF-8, by `iconv -f UTF-16 -t UTF-8 FILE > NEW`"
JSON_OBJECT = "one JSON object on several lines", "write every row on a line of its own, by `jq -c . FILE > NEW`"
OTHER_KINDS: Mapping[bytes, tuple[str, str]] = {
    GZIP: ("compressed by gzip twice", "unpack it (gunzip)"),
    b"BZh": ("compressed by bzip2", "unpack it (bunzip2)"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it (unxz)"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it (unzstd)"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook (xls) or another document of Office", "save its sheet as CSV"),
    b"ARROW1": ("an Arrow file", "write it as Parquet, by Python's `datasets` or `pyarrow`"),
    b"SQLite format 3": ("an SQLite database", "write its rows as CSV, by `sqlite3 -csv -header FILE 'SELECT …'`"),
    b"\x80": ("a Python pickle", "write its rows as lines of JSON"),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "fetch it (git lfs pull)"),
    b"<!": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"<?xml": WEB_PAGE,
    b"\xff\xfe": UTF_16,
    b"\xfe\xff": UTF_16,
}
"""How files begin that hold no rows -> what they are, and what to do; those of web pages in small letters."""


class NoRowsError(Exception):
    """A file that is of another kind or broken: what it is, and the way out."""


def read_lines(path: Path, way_out: str, *settings: str) -> Iterator[tuple[str, bytes]]:
    """The rows of a file as lines of JSON, each with its place: file and line, or row from 0 where it has no lines.

    Raises UserError if the file cannot be read or is of another kind; `way_out` says what else to name, by `settings`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read ({error.strerror}); {way_out}.", settings) from error
    of = ""
    try:
        if content.startswith(GZIP):
            content, of = unpacked(content), "gzip of "
        rows = rows_in(content.removeprefix(BOM_UTF8), Path(path.name.removesuffix(".gz")).suffix.lower())
        yield from ((f"{path}, {place}", row) for place, row in rows)
    except NoRowsError as error:
        what, do = error.args
        raise UserError(f"The data file {path} is {of}{what}; {do}.", settings) from error


def rows_in(content: bytes, suffix: str) -> Iterator[tuple[str, bytes]]:
    """The rows of a file's content by their places. Raises NoRowsError."""
    begin = content.lstrip()
    if content.startswith(PARQUET):
        return parquet_rows(content)
    if b"\0" in begin[:2]:
        raise NoRowsError(*UTF_16)
    if begin.startswith((b"[", b"{")):
        try:
            value = from_json(content)
        except ValueError as error:  # as there are several values, or a broken one
            if begin.split(maxsplit=1)[0] == b"[" and b"\n" in begin:
                raise NoRowsError(f"a JSON array that is cut off or broken ({error})", AGAIN) from error
            return lines(content)
        if isinstance(value, list):
            return numbered(value)
        if b"\n" in begin.rstrip():
            raise NoRowsError(*JSON_OBJECT)
        return lines(content)
    if content.startswith(ZIP):
        raise NoRowsError(*kind_of_zip(content))
    if content[TAR] == b"ustar":
        raise NoRowsError("a tar archive", "unpack it (tar xf), and name a file in it")
    for magic, kind in OTHER_KINDS.items():
        if magic in (begin[: len(magic)], begin[: len(magic)].lower()):
            raise NoRowsError(*kind)
    if suffix in (".csv", ".tsv"):
        return table_rows(content, suffix)
    if re.match(rb".*[,;\t|]", begin) and not re.search(rb"^\s*[{]", content, re.MULTILINE):
        raise NoRowsError("a table or another text, without one row in JSON", "let a table's name end in .csv or .tsv")
    return lines(content)


def unpacked(content: bytes) -> bytes:
    """What gzip has compressed. Raises NoRowsError."""
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        broken = "cut off" if isinstance(error, EOFError) else "damaged"
        raise NoRowsError(f"a gzip file that is {broken} ({error})", AGAIN) from error


def lines(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The lines that are not blank."""
    return ((f"line {n}", line) for n, line in enumerate(content.split(b"\n"), start=1) if line.strip())


def numbered(rows: Iterable[Any]) -> Iterator[tuple[str, bytes]]:
    """Rows that are Python's values as lines of JSON, by their numbers from 0."""
    return ((f"row {n}", json.dumps(row, default=as_text).encode()) for n, row in enumerate(rows))


def as_text(value: object) -> str:
    """A value that JSON has no form of: a date as its text, bytes as the text that some writers of Parquet mean."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def table_rows(content: bytes, suffix: str) -> Iterator[tuple[str, bytes]]:
    """The rows of a table below its header by their first lines; all cells are texts. Raises NoRowsError."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise NoRowsError(
            f"a table in another encoding than UTF-8 (line {line}: byte 0x{content[error.start]:x})",
            "write it in UTF-8, by `iconv -f CP1252 -t UTF-8 FILE > NEW` if it is of Windows",
        ) from error
    first = text.lstrip().partition("\n")[0]
    delimiter = "\t" if suffix == ".tsv" else max(DELIMITERS, key=first.count)
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, line = list[str](), 1
    try:
        for cells in reader:
            if cells and not header:
                header = checked([cell.strip() for cell in cells])
            elif cells and len(cells) != len(header):
                raise NoRowsError(
                    f"a table with {len(header)} columns and {len(cells)} cells in the row on line {line}",
                    f"put quotes around a cell with {delimiter!r} in it",
                )
            elif cells:
                yield f"line {line}", json.dumps(dict(zip(header, cells, strict=True))).encode()
            line = reader.line_num + 1
    except csv.Error as error:
        raise NoRowsError(f"a table that is broken in the row on line {line} ({error})", "close its quotes") from error


def parquet_rows(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The rows of a Parquet file by their numbers. Raises NoRowsError."""
    try:
        import pyarrow
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise NoRowsError(f"Parquet, and {error.name} is not installed", "pip install pyarrow") from error
    if not content.endswith(PARQUET):
        raise NoRowsError("a Parquet file that is cut off", AGAIN)
    try:
        table = read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        reason = shorten(str(error), 160, placeholder=" …")
        raise NoRowsError(f"a Parquet file that pyarrow cannot read ({reason})", AGAIN) from error
    checked(table.column_names)
    return numbered(table.to_pylist())


def checked(columns: Sequence[str]) -> list[str]:
    """The names of a table's columns. Raises NoRowsError for one that stands twice."""
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise NoRowsError(f"a table with two columns {twice!r}", "rename one of them")
    return [*columns]


def kind_of_zip(content: bytes) -> tuple[str, str]:
    """What a PK zip is, and what to do."""
    try:
        names = ZipFile(BytesIO(content)).namelist()
    except BadZipFile:
        return "a PK zip archive that is cut off or damaged", AGAIN
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook", "save its sheet as CSV (UTF-8)"
    if "content.xml" in names:
        return "a document of LibreOffice", "save its sheet as CSV"
    holds = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"a PK zip archive of {holds}", "unpack it (unzip), and name the file in it"

"""Reading and writing files so that they are whole after a crash, and readable while they grow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evals.types import UserError


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all of `data`, or raise OSError: after a short write the rest is tried, so that the system says why."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def cut_torn_tail(path: Path) -> int:
    """Cut what follows the last newline of a log, if it exists; returns the number of bytes cut."""
    if not path.exists():
        return 0
    with path.open("rb+") as log:
        content = log.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            log.truncate(end)
            os.fsync(log.fileno())
    return len(content) - end


class Tail:
    """Reads the complete lines of a log that may grow, or may not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def lines(self) -> list[bytes]:
        """The lines added since the last call, without their newlines."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + newline)
        return whole.split(b"\n") if newline else []


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, UTF-8 if text: after a crash or an OSError it is the old or the new, whole."""
    for leftover in path.parent.glob(f".{path.name}.*"):  # by a process that was killed
        pid = leftover.name.rpartition(".")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def writing(what: object, way_out: str, settings: tuple[str, ...] = ()) -> Iterator[None]:
    """Turns an OSError inside the `with` block into a UserError: `what` cannot be written, and the `way_out`, for which
    `settings` are to be set."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written ({error.strerror}); {way_out}.", settings) from error


def sync_directory(directory: Path) -> None:
    """Make the creation or renaming of files in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""`powersample export RUN --to FORMAT`: writes a run as files that other tools read."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

from evals.types import UserError
from orchestrator.console import say
from orchestrator.export.exported_run import load_exported
from orchestrator.export.formats import FORMATS
from orchestrator.rundir.directory import RUN
from orchestrator.rundir.files import write_atomically


def export(args: Namespace) -> int:
    """Write a run in another format; returns the exit code. Raises UserError for what the user can mend."""
    directory = args.run
    try:
        exported = load_exported(directory, args.data)
        files = FORMATS[args.to](exported, args.out, directory / "exports")
    except KeyError as error:
        raise UserError(
            f"{directory}: {error} is missing in {RUN} or a record; export the run with the version that made it."
        ) from error
    write_new(files)
    if owed := exported.summary.num_owed:
        say(f"The run still owes {owed} answers; the export has those that are there.")
    for path in files:
        print(path)
    return 0


def write_new(files: Mapping[Path, str | bytes]) -> None:
    """Write all files or none, and over no file. Raises UserError."""
    for path in files:
        if path.exists():
            raise UserError(f"{path} exists already; move or delete it, or name another place by --out.")
    written: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink()
        place = error.filename or next(iter(files))
        raise UserError(f"{place} cannot be written ({error.strerror}); name another place by --out.") from error

"""The entry point of `powersample`: calls the command that the arguments name, and turns errors into exit codes.

Exit codes: 0 complete, 1 the workers were lost and 2 a mistake of the user's (one sentence on stderr), 3 complete with
failed problems, 130 and 143 stopped by a signal; any other is a bug.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from orchestrator.installation import foreign_evals, version

UNUSABLE = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EISDIR}
"""Errors of a path, or of standard output, that are the user's mistake wherever they are raised."""
BROKEN_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); returns the exit code.

    A user's mistake or the loss of all workers is told in one sentence.
    """
    os.umask(0o077)  # runs, Ray's token and its logs are for nobody else's eyes
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we began
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ± shows ? instead
    if sentence := foreign_evals():
        print_error(sentence)
        return 2
    from evals.types import UserError, WorkersLost

    try:
        code = call_command(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        discard_output(sys.stdout)
        return BROKEN_PIPE
    except WorkersLost as error:
        print_error(f"{error}; the answers so far are kept, start again to go on.")
        return 1
    except UserError as error:
        print_error(str(error))
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        if error.filename is None:
            discard_output(sys.stdout)
        print_error(f"{error.filename or 'standard output'} cannot be used: {error.strerror}")
    return 2


def print_error(sentence: str) -> None:
    """Print a sentence to standard error; where that cannot be written, only the exit code remains."""
    try:
        print(f"powersample: {sentence}", file=sys.stderr, flush=True)
    except OSError:
        discard_output(sys.stderr)


def discard_output(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, so that not even flushing it at the exit can fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def call_command(arguments: list[str]) -> int:
    """Call the command that the first argument names; returns its exit code."""
    began = time.perf_counter()
    from evals.types import UserError
    from orchestrator.commands.table import COMMANDS, help_text, make_parser
    from orchestrator.settings.parser import suggestion

    name, *rest = arguments or ["--help"]
    if name in ("--version", "-V"):
        print(f"powersample {version()}")
    elif name in ("--help", "-h", "help"):
        print(help_text())
    elif name not in COMMANDS:
        near = suggestion(name, [*COMMANDS, "--version", "--help"])
        raise UserError(f"unknown command {name}{near}; there are {', '.join(COMMANDS)}.")
    elif {"--help", "-h"} & set(rest):
        print(make_parser(name, settings=name == "run").format_help().rstrip())
    else:
        check_working_directory()
        parser = make_parser(name)
        args = parser.read(rest)
        args.began = began  # by time.perf_counter
        try:
            return getattr(import_module(f"orchestrator.commands.{name}"), name)(args)
        except UserError as error:
            raise error.spelt(parser.spelling) from error
    return 0


def check_working_directory() -> None:
    """Raises UserError where relative paths lead nowhere, as the directory that they begin in was deleted."""
    from evals.types import UserError

    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("The working directory was deleted; change to one that is there (cd).") from error

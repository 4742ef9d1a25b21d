"""The arguments of the commands beside `run`, and the sentences that refuse them. Knows no command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.types import UserError


def paths_and_options(
    arguments: Sequence[str], usage: str, options: Sequence[str] = (), switches: Sequence[str] = ()
) -> tuple[list[Path], dict[str, str]] | None:
    """The paths, and of what else is given the values: `options` as --data FILE or --data=FILE, `switches` alone.

    None where the help was asked for: `usage` is printed then. Raises UserError, which says its first line, for an
    unknown option and one without its value.
    """
    if {"--help", "-h"} & set(arguments):
        print(usage)
        return None
    paths, rest, given = [], list(arguments), {}
    while rest:
        argument = rest.pop(0)
        name, _, value = argument.partition("=")
        if name in options:
            given[name] = value or (rest.pop(0) if rest else "")
            if not given[name]:
                raise UserError(f"{name} needs a value; {short(usage)}.")
        elif argument in switches:
            given[argument] = ""
        elif argument.startswith("-"):
            raise UserError(f"unknown option {argument}; {short(usage)}.")
        else:
            paths.append(Path(argument))
    return paths, given


def path_and_options(
    arguments: Sequence[str], usage: str, options: Sequence[str] = (), switches: Sequence[str] = ()
) -> tuple[Path, dict[str, str]] | None:
    """As `paths_and_options`, for one path. Raises UserError, which says how it is used, for none or several."""
    if (found := paths_and_options(arguments, usage, options, switches)) is None:
        return None
    paths, given = found
    if len(paths) != 1:
        raise UserError(f"{len(paths) or 'no'} paths were given instead of one; {short(usage)}.")
    return paths[0], given


def short(usage: str) -> str:
    """The first line of a usage, which begins with `usage: `."""
    return usage.partition("\n")[0]


def command_parser(command: str, **more: Any) -> argparse.ArgumentParser:
    """A parser of the options of `powersample COMMAND` for `parse`; `more` is as argparse has it."""
    parser = argparse.ArgumentParser(
        prog=f"powersample {command}", allow_abbrev=False, add_help=False, exit_on_error=False, **more
    )
    parser.add_argument("--help", "-h", action="store_true", help="print this")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace | None:
    """As `parse_known`, and nothing may be left over."""
    if (parsed := parse_known(parser, arguments)) is None:
        return None
    args, stray = parsed
    if stray:
        raise refused(parser, f"unknown option {stray[0]}")
    return args


def parse_known(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[str]] | None:
    """The options' values and what is left over; None where the help was asked for, which is printed then.

    Raises UserError for what the parser, which exits on no error, does not take.
    """
    try:
        args, stray = parser.parse_known_args(list(arguments))
    except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
        raise refused(parser, str(error)) from error
    if args.help:
        print(parser.format_help().rstrip())
        return None
    return args, stray


def refused(parser: argparse.ArgumentParser, reason: str) -> UserError:
    return UserError(f"{parser.prog.rpartition(' ')[2]}: {reason}; `{parser.prog} --help` lists the options.")


def positive(text: str) -> int:
    return whole(text, 1)


def count(text: str) -> int:
    return whole(text, 0)


def whole(text: str, least: int) -> int:
    """A whole number from `least`, also as 100e6."""
    try:
        number = float(text)
        if number.is_integer() and number >= least:
            return int(number)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")

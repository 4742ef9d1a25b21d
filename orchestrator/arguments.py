"""The arguments of commands that have no settings of a run. Knows no command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evals.types import UserError


def paths_and_options(
    arguments: Sequence[str], usage: str, options: Sequence[str] = (), switches: Sequence[str] = ()
) -> tuple[list[Path], dict[str, str]]:
    """The paths, and of what else is given the values: `options` as --data FILE or --data=FILE, `switches` alone.

    Raises UserError, which says `usage`, for an unknown option and one without its value.
    """
    paths, rest, given = [], list(arguments), {}
    while rest:
        argument = rest.pop(0)
        name, _, value = argument.partition("=")
        if name in options:
            given[name] = value or (rest.pop(0) if rest else "")
            if not given[name]:
                raise UserError(f"{name} needs a value; usage: {usage}.")
        elif argument in switches:
            given[argument] = ""
        elif argument.startswith("-"):
            raise UserError(f"unknown option {argument}; usage: {usage}.")
        else:
            paths.append(Path(argument))
    return paths, given


def path_and_options(arguments: Sequence[str], options: Sequence[str], usage: str) -> tuple[Path, dict[str, str]]:
    """As `paths_and_options`, for one path. Raises UserError, which says `usage`, for none or several."""
    paths, given = paths_and_options(arguments, usage, options)
    if len(paths) != 1:
        raise UserError(f"{len(paths) or 'no'} paths were given instead of one; usage: {usage}.")
    return paths[0], given


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options' values. Raises UserError for what the parser, which exits on no error, does not take."""
    command = parser.prog.rpartition(" ")[2]
    try:
        args, stray = parser.parse_known_args(list(arguments))
    except (argparse.ArgumentError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{command}: {error}; `{parser.prog} --help` lists the options.") from error
    if stray:
        raise UserError(f"{command}: unknown option {stray[0]}; `{parser.prog} --help` lists the options.")
    return args

"""The argument parser that all commands share, how settings are spelt, and types of options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from itertools import takewhile
from operator import methodcaller
from pathlib import Path
from typing import Any, NoReturn

from evals.types import UserError
from orchestrator.console import say

PREFIX = "POWERSAMPLE_"
RENAMED = {"tensor_parallel": "gpus_per_model"}
"""Last parts of names that settings had -> those that they have now."""


def option(*names: str, **how: Any) -> methodcaller:
    """An option or a positional argument, as the arguments of `add_argument`."""
    return methodcaller("add_argument", *names, **how)


class Parser(argparse.ArgumentParser):
    """The argument parser of `powersample COMMAND`; raises UserError, one sentence, for what it cannot take."""

    def __init__(self, spellings: Mapping[str, str], **how: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
            **how,
        )
        self.options: dict[str, argparse.Action] = {}
        """Every spelling of every option; where a setting has several, the command's own comes first."""
        self.spellings = spellings
        """Setting -> how its option is spelt, where the command has another in its place."""
        self.reads_variables = False
        self.set_defaults(spell=self.flag)

    def add(self, group: Any, *options: methodcaller) -> None:
        """Add options to a group of arguments of this parser."""
        for action in (one(group) for one in options):
            self.options |= dict.fromkeys(action.option_strings, action)

    def flag(self, name: str) -> str:
        """How this command line spells a setting."""
        return next((flag for flag, action in self.options.items() if action.dest == name), flag_name(name))

    def spelling(self, name: str) -> str:
        """How the user of this command spells a setting in options, and in variables where it reads them."""
        if name in self.spellings:
            return self.spellings[name]
        action = self.options.get(flag := self.flag(name))
        reads = action is None or (self.reads_variables and action.default is argparse.SUPPRESS)  # a setting
        return f"{flag} or {variable_name(name)}" if reads else flag

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse `arguments`, options and paths in any order. Raises UserError.

        Of an option that is given twice the last counts, unless it is a list; a line says so.
        """
        for argument in arguments:
            check_text(f"The argument {argument}", argument)
        names = [argument.partition("=")[0] for argument in takewhile("--".__ne__, arguments)]
        given: dict[argparse.Action, str] = {}
        for name in (name for name in names if name.startswith("--")):
            if name not in self.options:
                self.error(f"unknown option {name}{suggestion(name, self.options)}")
            action = self.options[name]
            if action in given and not isinstance(action, argparse._AppendAction):
                twice = (
                    f"{given[action]} and {name} set the same" if given[action] != name else f"{name} is given twice"
                )
                say(f"{twice}; the last one counts.")
            given[action] = name
        try:
            values, stray = self.parse_known_intermixed_args(arguments)
        except argparse.ArgumentError as error:
            self.error(self.value_refusal(error.argument_name or "", error.message))
        if stray:
            self.error(f"{stray[0]} belongs to no option")
        return values

    def value_refusal(self, spellings: str, message: str) -> str:
        """Why argparse refuses an option's value."""
        name, *others = spellings.split("/")
        action = self.options[name]
        if message.startswith("ignored explicit"):
            return f"{name} takes no value; write {' or '.join([name, *others])}"
        if message.startswith("expected one"):
            return f"{name} needs a value: {(action.help or '') % vars(action)}"
        if invalid := re.match(r"invalid choice: '(.*?)'", message):
            choices = list(action.choices or ())
            return f"{name} {invalid[1]} is refused{suggestion(invalid[1], choices)}; there are {', '.join(choices)}"
        return f"{name}: {message}"

    def error(self, message: str) -> NoReturn:
        command = self.prog.rpartition(" ")[2]
        raise UserError(f"{command}: {message}; `{self.prog} --help` lists all options.")


def check_text(what: str, text: str) -> None:
    """Raises UserError for a text that cannot be written into a run's files or be a path: `what` is not UTF-8."""
    if wrong := re.search("[\0\ud800-\udfff]", text):
        raise UserError(
            f"{readable(what)} is refused: {readable(wrong[0])} is no character of a text in UTF-8; rename what it "
            "names, or write it in UTF-8."
        )


def local_path(name: str) -> Path:
    """The path that a name is, with a home directory for its `~`. Raises UserError where nobody has that home."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"There is no home directory for {name}; write the path out, from / on.") from error


def readable(text: str) -> str:
    """A text with its bytes that are no UTF-8 as \\xe9, NUL as \\x00, and other lone surrogates as \\ud800."""
    text = re.sub("[\0\udc80-\udcff]", lambda one: f"\\x{ord(one[0]) % 256:02x}", text)
    return text.encode(errors="backslashreplace").decode()


def flag_name(name: str) -> str:
    """How the command line spells a setting: `sampler.num_moves` is `--sampler.num-moves`."""
    return "--" + name.replace("_", "-")


def variable_name(name: str) -> str:
    """How the environment spells a setting: `sampler.num_moves` is `POWERSAMPLE_SAMPLER__NUM_MOVES`."""
    return PREFIX + name.replace(".", "__").upper()


def suggestion(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` for the nearest of `known`, by its last part (`alpha` of `sampler.alpha`) or as a whole; of
    several in the same group as `name`. Empty if none is near."""
    group, _, last = plain(name).rpartition(".")
    same_group_last = sorted(known, key=lambda other: (plain(other).rpartition(".")[0] == group, other))
    named = {plain(other): other for other in same_group_last}
    named |= {plain(other).rpartition(".")[2]: other for other in same_group_last}
    near = get_close_matches(RENAMED.get(last, last), named, 1)
    return f" (did you mean {named[near[0]]}?)" if near else ""


def plain(name: str) -> str:
    """A name however it is spelt -> as files have it, `sampler.num_moves`."""
    return name.removeprefix(PREFIX).lower().replace("__", ".").strip("-").replace("-", "_")


def number(words: str, fits: Callable[[float], bool], kind: type[int] | type[float] = float) -> Callable[[str], Any]:
    """A type of options: numbers for which `fits` is true, also written as 100e6; `words` says which these are."""

    def read(text: str) -> int | float:
        with suppress(ValueError):
            if fits(value := float(text)):
                return kind(value)
        raise argparse.ArgumentTypeError(f"{text!r} is not {words}")

    return read


positive = number("a whole number from 1", lambda n: n >= 1 and n.is_integer(), int)
count = number("a whole number from 0", lambda n: n >= 0 and n.is_integer(), int)
share = number("a share above 0 and up to 1", lambda n: 0 < n <= 1)
price = number("a price", lambda n: 0 <= n < float("inf"))
memory = number("a number of GiB, such as 8", lambda n: 0 < n < 1e6)


def slots(text: str) -> list[int | None]:
    """A type of options: a list of numbers of slots; None stands for auto."""
    parts = text.split(",")
    if not all(part == "auto" or (part.isdecimal() and int(part)) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of slots such as 1,64,auto")
    return [None if part == "auto" else int(part) for part in parts]

"""The argument parser that all commands share, its error messages, and types of options."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, NoReturn

from evals.types import UserError

CLOSE = 0.6  # similarity from which a name is worth suggesting
RENAMED = {"tensor_parallel": "gpus_per_model"}
"""Last parts of names that settings had -> those that they have now."""


class Parser(argparse.ArgumentParser):
    """The argument parser of `powersample COMMAND`; raises UserError, one sentence, for what it cannot take."""

    def __init__(self, command: str, usage: str, about: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"powersample {command}",
            usage=f"powersample {command} {usage}",
            description=about,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
        )
        self.allowed: dict[str, str] = {}
        """Option -> what its value can be; of options not in it their help says so."""

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse `arguments`, options and paths in any order. Raises UserError."""
        self.check_names(arguments)
        try:
            values, stray = self.parse_known_intermixed_args(arguments)
        except argparse.ArgumentError as error:
            self.error(self.value_refusal(error.argument_name or "", error.message))
        if stray:
            self.error(f"{stray[0]} belongs to no option")
        return values

    @property
    def flags(self) -> Mapping[str, argparse.Action]:
        """Every spelling of every option."""
        return self._option_string_actions

    def check_names(self, arguments: Iterable[str]) -> None:
        """Raises UserError for an option that does not exist, with the nearest one that does."""
        known = self.flags
        for name in (argument.partition("=")[0] for argument in arguments):
            if name == "--":
                return
            if name.startswith("--") and name not in known:
                inner = next((other for other in known if other.startswith(f"{name}.")), None)
                near = f" (a group of settings, such as {inner})" if inner else suggestion(name, known)
                self.error(f"unknown option {name}{near}")

    def value_refusal(self, option: str, message: str) -> str:
        """Why an option's value is refused; `option` has all its spellings, as argparse names it."""
        name, *others = option.split("/")
        if message.startswith("ignored explicit"):
            return f"{name} takes no value; write {' or '.join([name, *others])}"
        if message.startswith("expected one"):
            return f"{name} needs a value: {self.allowed.get(name) or self.flags[name].help}"
        if invalid := re.match(r"invalid choice: '(.*?)'", message):
            choices = list(self.flags[name].choices or ())
            return f"{name} {invalid[1]} is refused{suggestion(invalid[1], choices)}; there are {', '.join(choices)}"
        return f"{name}: {message}"

    def error(self, message: str) -> NoReturn:
        command = self.prog.rpartition(" ")[2]
        raise UserError(f"{command}: {message}; `{self.prog} --help` lists all options.")


def suggestion(name: str, known: Iterable[str], prefix: str = "") -> str:
    """` (did you mean X?)` for the nearest of `known`, compared without their common prefix; empty if none is near."""
    likenesses = {other: likeness(name.removeprefix(prefix), other.removeprefix(prefix)) for other in sorted(known)}
    near = max(likenesses, key=lambda other: likenesses[other], default="")
    return f" (did you mean {near}?)" if likenesses.get(near, 0) >= CLOSE else ""


def likeness(a: str, b: str) -> float:
    """Similarity of two names, from 0 to 1: of the whole names or of their last parts (`alpha`, `sampler.alpha`).

    Of names in the same group only the last parts count.
    """
    a, b = (text.lower().replace("__", ".").strip("-").replace("-", "_") for text in (a, b))
    if RENAMED.get(a.rpartition(".")[2]) == b.rpartition(".")[2]:
        return 1.0
    last = SequenceMatcher(None, a.rpartition(".")[2], b.rpartition(".")[2]).ratio()
    if "." in a and a.rpartition(".")[0] == b.rpartition(".")[0]:
        return last
    return max(SequenceMatcher(None, a, b).ratio(), 0.95 * last)


def number(words: str, fits: Callable[[float], bool], kind: type[int] | type[float] = float) -> Callable[[str], Any]:
    """A type of options: numbers for which `fits` is true, also written as 100e6; `words` says which these are."""

    def read(text: str) -> int | float:
        try:
            if fits(value := float(text)):
                return kind(value)
        except ValueError:
            pass
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

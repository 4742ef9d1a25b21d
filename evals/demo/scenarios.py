"""What the embedded problems are about: `scenarios.yaml` as values, and the numbers of a problem drawn from them.

Knows nothing of wording, of streams or of what is held out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import yaml

FILE = Path(__file__).parent / "scenarios.yaml"
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
PRONOUNS = {"they", "They", "their", "Their", "them"}

T = TypeVar("T")


class Equation(NamedTuple):
    """left operator right; an operand is the name of a number, a number, or an equation that is taken along."""

    left: str | Equation
    operator: str
    right: str | Equation


class Step(NamedTuple):
    """One sentence of a solution: result = equation."""

    result: str
    equation: Equation
    sentences: tuple[str, ...]


class Scenario(NamedTuple):
    """What problems of one kind share; see `scenarios.yaml`, each question of which makes one of these."""

    draws: tuple[tuple[str, str], ...]
    question: str
    steps: tuple[Step, ...]


class Lexicon(NamedTuple):
    """The people, with their pronouns, and the lists of words."""

    people: tuple[tuple[str, str], ...]
    words: dict[str, list[str]]


@cache
def library() -> tuple[Lexicon, tuple[Scenario, ...]]:
    """Words and scenarios of `scenarios.yaml`."""
    data: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    people = tuple((name, pronoun) for pronoun, names in data["people"].items() for name in names)
    scenarios = [read_scenario(entry, question) for entry in data["scenarios"] for question in entry["question"]]
    return Lexicon(people, data["words"]), tuple(scenarios)


def read_scenario(entry: dict[str, Any], question: str) -> Scenario:
    """A scenario with one of its questions, and of the sentences those that speak of nothing the question has not."""
    known = fields(question) | {"="} | set(entry["draw"])
    known |= PRONOUNS if known & {"name", *PRONOUNS} else set()
    steps = []
    for formula, *sentences in entry["steps"]:
        result, _, left, operator, right = formula.split()
        usable = tuple(sentence for sentence in sentences if fields(sentence) <= known)
        if not usable:
            raise ValueError(f"no sentence for `{formula}` goes with the question: {question}")
        steps.append(Step(result, Equation(left, operator, right), usable))
    return Scenario(tuple((name, str(rule)) for name, rule in entry["draw"].items()), question, tuple(steps))


def fields(template: str) -> set[str]:
    return set(re.findall(r"\{([^}]*)\}", template))


def draw_values(rng: Random, scenario: Scenario) -> dict[str, int]:
    """Numbers of the question and results of the steps, drawn again until all are whole and at least 2."""
    while True:
        values: dict[str, Fraction] = {}
        for name, rule in scenario.draws:
            low, dots, high = rule.partition("..")
            values[name] = (
                Fraction(int(low) + int(rng.random() * (int(high) - int(low) + 1))) if dots else told(rule, values)
            )
        for step in scenario.steps:
            values[step.result] = evaluate(step.equation, values)
        if all(value.denominator == 1 and value >= 2 for value in values.values()):
            return {name: int(value) for name, value in values.items()}


def told(rule: str, values: dict[str, Fraction]) -> Fraction:
    """A number that follows from those before it: a sum, with signs, of names and products of names."""
    total = Fraction(0)
    for sign, term in re.findall(r"([+-]?)\s*([a-z](?:\s*\*\s*[a-z])*)", rule):
        product = Fraction(1)
        for name in term.split("*"):
            product *= values[name.strip()]
        total += -product if sign == "-" else product
    return total


def evaluate(term: str | Equation, values: dict[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        return Fraction(term) if term.isdigit() else values[term]
    return OPERATIONS[term.operator](evaluate(term.left, values), evaluate(term.right, values))


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of these. Uses `random()` alone, the method whose stream Python promises not to change."""
    return options[int(rng.random() * len(options))]

"""Worked solutions of the embedded problems in many wordings: order of the steps, steps taken together, sentences.

Knows nothing of streams or of what is held out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

from evals.demo.scenarios import Equation, Lexicon, Scenario, Step, pick

TERSE = 0.4
"""Share of the problems of three or more steps whose solution takes some of the steps together in one equation."""
SWAPPED = 0.3
"""Share of the sums and products that are written the other way round."""
CONNECTORS = {
    "first": ["", "", "First, "],
    "middle": ["", "", "Then ", "Next, "],
    "last": ["", "", "So ", "Therefore "],
}
STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}


def solution(rng: Random, scenario: Scenario, values: dict[str, int], words: Words) -> str:
    """A worked solution: steps in an order that their numbers allow, some taken together, in one of many wordings."""
    steps = in_some_order(rng, scenario.steps)
    if len(steps) > 2 and rng.random() < TERSE:
        for _ in range(1 + int(rng.random() * (len(steps) - 2))):
            steps = taken_together(rng, steps)
    lines = []
    for place, step in enumerate(steps):
        equation = f"{written(rng, step.equation, values)} = {values[step.result]}"
        sentence = words.fill(pick(rng, step.sentences), values, equation)
        where = "first" if place == 0 else "last" if place == len(steps) - 1 else "middle"
        lines.append(words.connected(pick(rng, CONNECTORS[where]), sentence))
    return "\n".join([*lines, f"#### {values[steps[-1].result]}"])


def in_some_order(rng: Random, steps: Sequence[Step]) -> list[Step]:
    """The steps, each after those whose results it uses."""
    waiting, ordered = list(steps), []
    while waiting:
        results = {step.result for step in waiting}
        step = pick(rng, [step for step in waiting if not results & set(operands(step.equation))])
        waiting.remove(step)
        ordered.append(step)
    return ordered


def taken_together(rng: Random, steps: list[Step]) -> list[Step]:
    """The steps with one of them, whose result is used once, written into the equation of the one that uses it."""
    used = [name for step in steps for name in operands(step.equation)]
    inner = pick(rng, [step for step in steps[:-1] if used.count(step.result) == 1])
    rest = [step for step in steps if step is not inner]
    return [step._replace(equation=substituted(step.equation, inner)) for step in rest]


def substituted(equation: Equation, inner: Step) -> Equation:
    def operand(term: str | Equation) -> str | Equation:
        if isinstance(term, Equation):
            return substituted(term, inner)
        return inner.equation if term == inner.result else term

    return Equation(operand(equation.left), equation.operator, operand(equation.right))


def operands(term: str | Equation) -> list[str]:
    """The names and numbers in an equation."""
    return [term] if isinstance(term, str) else operands(term.left) + operands(term.right)


def written(rng: Random, term: str | Equation, values: dict[str, int]) -> str:
    """An equation's left side in digits, with the brackets it needs."""
    if isinstance(term, str):
        return term if term.isdigit() else str(values[term])
    left, operator, right = term
    if operator in "+*" and rng.random() < SWAPPED:
        left, right = right, left
    strength = STRENGTH[operator]
    needed = strength + (operator in "-/")
    parts = [written(rng, left, values), written(rng, right, values)]
    if isinstance(left, Equation) and STRENGTH[left.operator] < strength:
        parts[0] = f"({parts[0]})"
    if isinstance(right, Equation) and STRENGTH[right.operator] < needed:
        parts[1] = f"({parts[1]})"
    return f"{parts[0]} {operator} {parts[1]}"


class Words:
    """The words of one problem, chosen when they are first asked for and the same from then on."""

    def __init__(self, rng: Random, lexicon: Lexicon) -> None:
        self._rng, self._lexicon = rng, lexicon
        name, they = pick(rng, lexicon.people)
        friend, _ = pick(rng, [person for person in lexicon.people if person[0] != name])
        their, them = {"he": ("his", "him"), "she": ("her", "her")}[they]
        self._chosen = {"name": name, "friend": friend, "they": they, "their": their, "them": them}
        self._chosen |= {"They": they.capitalize(), "Their": their.capitalize()}

    def fill(self, template: str, values: dict[str, int], equation: str = "") -> str:
        """The template with its alternatives chosen and its fields filled in."""
        text = re.sub(r"\[([^\]]*)\]", lambda found: pick(self._rng, found[1].split("|")), template)
        return re.sub(r"\{([^}]*)\}", lambda found: self._field(found[1], values, equation), text)

    def connected(self, connector: str, sentence: str) -> str:
        """The sentence after a word such as `So`; a name keeps its capital."""
        names = (self._chosen["name"], self._chosen["friend"])
        if not connector or sentence.startswith(names):
            return connector + sentence
        return connector + sentence[0].lower() + sentence[1:]

    def _field(self, field: str, values: dict[str, int], equation: str) -> str:
        if field == "=":
            return equation
        return str(values[field]) if field in values else self._word(field)

    def _word(self, field: str) -> str:
        if field not in self._chosen:
            taken = {self._word(field[:-1])} if field.endswith("2") else set()
            options = [word for word in self._lexicon.words[field.rstrip("2")] if word not in taken]
            self._chosen[field] = pick(self._rng, options)
        return self._chosen[field]

"""Generates the embedded problems: arithmetic word problems of two to four steps in GSM8K's format, from a seed.

`row(seed, index)` is a pure function; `scenarios.yaml` holds what the problems are about. A question belongs to the
held-out part or to the training part by its own hash, so the two share no question whatever seeds they are drawn from.

    python -m demo_training.problems      # writes evals/demo/problems.jsonl again, byte for byte
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import yaml

FOLDER = Path(__file__).parents[1] / "evals" / "demo"
"""The folder of what is embedded: the problems, the model and its card."""
TRAIN_SEED, TEST_SEED, VALIDATION_SEED = 0, 1, 2
TEST_ROWS = 200
HELD_OUT_SHARE = 20
"""One question in this many is held out."""
TERSE = 0.4
"""Share of the problems of three or more steps whose solution takes some of the steps together in one equation."""
SWAPPED = 0.3
"""Share of the sums and products that are written the other way round."""
CONNECTORS = {
    "first": ["", "", "First, "],
    "middle": ["", "", "Then ", "Next, "],
    "last": ["", "", "So ", "Therefore "],
}
OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}
PRONOUNS = {"they", "They", "their", "Their", "them"}

T = TypeVar("T")


class Row(NamedTuple):
    """A line of a data set in GSM8K's format."""

    question: str
    answer: str
    """Sentences with equations, one a line, then `#### gold`."""


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
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("scenarios.yaml").read_text(encoding="utf-8"))
    people = tuple((name, pronoun) for pronoun, names in data["people"].items() for name in names)
    scenarios = [read_scenario(entry, question) for entry in data["scenarios"] for question in entry["question"]]
    return Lexicon(people, data["words"]), tuple(scenarios)


def read_scenario(entry: dict[str, Any], question: str) -> Scenario:
    """A scenario with one of its questions, and of its sentences those whose fields all occur in the question."""
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
    """One of the options. Uses `random()` alone, the method whose stream Python promises not to change."""
    return options[int(rng.random() * len(options))]


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
        text = re.sub(r"\[([^\]]*)\]", lambda match: pick(self._rng, match[1].split("|")), template)
        return re.sub(r"\{([^}]*)\}", lambda match: self._field(match[1], values, equation), text)

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


def row(seed: int, index: int) -> Row:
    """Problem `index` of the stream `seed`, held out or not."""
    lexicon, scenarios = library()
    rng = Random(f"{seed}/{index}")
    scenario = pick(rng, scenarios)
    values = draw_values(rng, scenario)
    words = Words(rng, lexicon)
    question = words.fill(scenario.question, values)
    return Row(question, solution(rng, scenario, values, words))


def held_out(question: str) -> bool:
    """Whether this question may never be trained on: decided by SHA-256 of its text alone."""
    return int.from_bytes(sha256(question.encode()).digest()[:8], "big") % HELD_OUT_SHARE == 0


def rows(seed: int, held: bool) -> Iterator[Row]:
    """The endless stream of a seed's problems: those held out, or those that may be trained on."""
    return (one for one in (row(seed, index) for index in count()) if held_out(one.question) == held)


def distinct(stream: Iterator[Row], number: int, taken: Sequence[Row] = ()) -> list[Row]:
    """The first `number` rows, no question twice and none that is among those `taken`."""
    seen = {one.question for one in taken}
    return list(islice((one for one in stream if not (one.question in seen or seen.add(one.question))), number))


def demo_rows() -> list[Row]:
    """The rows of problems.jsonl."""
    return distinct(rows(TEST_SEED, held=True), TEST_ROWS)


def validation_rows(number: int) -> list[Row]:
    """Held-out rows none of which is in problems.jsonl: what a training run may look at."""
    return distinct(rows(VALIDATION_SEED, held=True), number, demo_rows())


def as_jsonl(rows: Sequence[Row]) -> str:
    """The rows as the text of a JSONL file."""
    return "".join(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in rows)


def main() -> None:
    (FOLDER / "problems.jsonl").write_text(as_jsonl(demo_rows()), encoding="utf-8")


if __name__ == "__main__":
    main()

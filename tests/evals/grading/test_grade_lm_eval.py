"""The scores strict and flexible against lm-evaluation-harness: restated here from its task files, and as installed."""

import random
import re

from evals.grading.lm_eval import flexible, strict
from support.interop import needs_theirs, theirs

GOLDS = ["18", "1,450,000", "1450000", "-10", "0", "276000", "2,125", "7"]
FORMS = [
    "#### {x}", "#### {x}.", "#### ${x}", "####{x}", "####  {x}", "### {x}", "#### {x}\n#### {y}", "#### \n{x}",
    "The answer is {x}", "The answer is {x}.", "The answer is {x}\n", "The answer is ${x}.", "the answer is {x}.",
    "So {y}+{z}={x}.", "<<{y}*{z}={x}>>{x} eggs", "{x} dollars, not {y}...", "{x}%", "{x} - {y}", "{y}-{x}", "-{x}",
    r"\boxed{{{x}}}", r"$\boxed{{{x}}}$.", "**{x}**", "({x})", "{x}/{y}", "{x},{y}", "$ {x}", "{x}$", "no number", "",
    "x\u00a0{x}\u2212{y}", "\u0663\u0664 {x}", "{x}\r\n", "#### {x} ", "A#### {x}", "#### {x},", "#### .{x}", "#### -",
    "The answer is {x}, {y}", "The answer is .", "$$", "..", "I\u0130 {x}",
]  # fmt: skip


def outputs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, solution) pairs by rules: one to four forms with the gold, its neighbours and its other spellings."""
    rng, made = random.Random(seed), []
    for _ in range(count):
        gold = rng.choice(GOLDS)
        bare = gold.replace(",", "")
        number = int(bare)
        spellings = [gold, bare, f"{number:,}", f"{bare}.00", f"{bare}.0", f"-{bare}", f"{number + 1}", f"0{bare}"]
        parts = [
            rng.choice(FORMS).format(**{name: rng.choice(spellings) for name in "xyz"})
            for _ in range(rng.randint(1, 4))
        ]
        solution = rng.choice(["It is so.\n#### {}", "He has 3*4=<<3*4=12>>12 at $5.\n#### {}", "#### {}"]).format(gold)
        made.append((rng.choice(["\n", " ", "\n\n", ". "]).join(parts), solution))
    return made


def restated(text: str, solution: str) -> list[list[object]]:
    """[extracted, right] of strict-match, of the chain-of-thought tasks' strict-match, and of flexible-extract."""
    found: list[list[object]] = []
    filters = [
        (r"#### (\-?[0-9\.\,]+)", 0),
        (r"The answer is (\-?[0-9\.\,]+).", 0),
        (r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
    ]
    for pattern, select in filters:
        matches = re.findall(pattern, text)
        match = matches[select] if matches else "[invalid]"
        if isinstance(match, tuple):
            match = ([group for group in match if group] or ["[invalid]"])[0]
        sides = [match.strip(), solution]
        for ignored in (",", r"\$", r"(?s).*#### ", r"\.$"):
            sides = [re.sub(ignored, "", side) for side in sides]
        found.append([match.strip(), sides[0].lower() == sides[1].lower()])
    return found


def ours(text: str, solution: str) -> list[list[object]]:
    grades = strict(text, solution), strict(text, solution, cot=True), flexible(text, solution)
    return [["[invalid]" if grade.answer is None else grade.answer, grade.correct] for grade in grades]


def test_every_decision_is_that_of_the_restated_rules() -> None:
    pairs = outputs(4000)
    assert [ours(*pair) for pair in pairs] == [restated(*pair) for pair in pairs]
    rights = [sum(bool(ours(*pair)[i][1]) for pair in pairs) for i in range(3)]
    assert all(200 < right < 3800 for right in rights), "the rules must reach both verdicts"


THEIRS = r"""
from importlib.resources import files
import yaml
from lm_eval.filters.extraction import RegexFilter
from lm_eval.api.metrics import exact_match_fn

def task(name):
    text = (files("lm_eval") / f"tasks/gsm8k/{name}.yaml").read_text()
    return yaml.safe_load(text)

def apply(task, filter_name, text, solution):
    rules = {one["name"]: one["filter"][0] for one in task["filter_list"]}[filter_name]
    settings = {key: value for key, value in rules.items() if key != "function"}
    extracted = list(RegexFilter(**settings).apply([[text]], [{}]))[0][0]
    metric = {key: value for key, value in task["metric_list"][0].items() if "ignore" in key}
    score = exact_match_fn(predictions=[extracted], references=[solution], **metric)["exact_match"]
    return [extracted, bool(score)]

plain, cot = task("gsm8k"), task("gsm8k-cot-zeroshot")
ways = [(plain, "strict-match"), (cot, "strict-match"), (plain, "flexible-extract")]
answer = [[apply(*way, *pair) for way in ways] for pair in given]
"""


@needs_theirs
def test_every_decision_is_that_of_the_installed_package() -> None:
    pairs = outputs(2500, seed=1)
    assert [ours(*pair) for pair in pairs] == theirs(THEIRS, pairs)

"""Graders: published tables of what they must answer, every gold answer of GSM8K, and hostile texts."""

import json
import random
import time
from functools import cache
from pathlib import Path

import pytest

from evals.grading.lm_eval import flexible, strict
from evals.grading.numeric import asks_percent, numeric
from evals.stopping import cut
from evals.types import Grade, Problem, UserError
from support.places import ROOT
from support.shared_data import GSM8K_TEST, GSM8K_TRAIN, SHARED, needs_shared

STOPS = ("Question:", "</s>", "<|im_end|>")


def problem(gold: str) -> Problem:
    return Problem.from_answer(0, "How much is it?", f"It is what it is.\n#### {gold}")


@cache
def stored(file: Path) -> list[Problem]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [Problem.from_answer(i, row["question"], row["answer"]) for i, row in enumerate(map(json.loads, lines))]


# text ({n}: the gold, {c}: with commas, {x}: times 100, {p}: plus 1), whether it is right, and how many of five golds
# each grader must judge so
SHOOT_OUT: dict[str, tuple[str, bool, int, int, int]] = {
    "hash": ("reasoning 3*6=18.\n#### {n}", True, 5, 5, 5),
    "hash_comma": ("reasoning.\n#### {c}", True, 5, 5, 5),
    "hash_dollar_dot": ("reasoning.\n#### ${n}.", True, 0, 5, 5),
    "hash_dot": ("reasoning.\n#### {n}.", True, 5, 5, 5),
    "hash_.00": ("reasoning.\n#### {n}.00", True, 0, 0, 5),
    "cot": ("reasoning. The answer is {n}.", True, 0, 5, 5),
    "cot_dollar": ("reasoning. The answer is ${n}.", True, 0, 5, 5),
    "llama": ("reasoning. The final answer is {n}", True, 0, 5, 5),
    "llama_dot": ("reasoning. The final answer is {n}.", True, 0, 5, 5),
    "boxed": (r"reasoning. Thus the answer is $\boxed{{n}}$.", True, 0, 0, 5),
    "boxed_comma": (r"reasoning. Thus the answer is $\boxed{{c}}$.", True, 0, 0, 5),
    "boxed_units": (r"reasoning. Thus \[\boxed{{n} \text{ dollars}}\]", True, 0, 5, 5),
    "boxed_usd": (r"reasoning. Thus \[\boxed{\${n}}\]", True, 0, 5, 5),
    "boxed_.00": (r"reasoning. Thus $\boxed{{n}.00}$.", True, 0, 0, 5),
    "boxed_then_num": (r"reasoning. Thus $\boxed{{n}}$. Checking: 7 items in 2 boxes.", True, 0, 0, 5),
    "bold": ("reasoning. **Answer: {n}**", True, 0, 5, 5),
    "ANSWER": ("reasoning.\n\nANSWER: {n}", True, 0, 5, 5),
    "ANSWER_usd": ("reasoning.\n\nANSWER: ${c}", True, 0, 5, 5),
    "prose_units": ("So in total she makes {n} dollars per day.", True, 0, 5, 5),
    "prose_eq": ("So 3 + 4 = {n}", True, 0, 5, 5),
    "hash_then_next_q": ("reasoning.\n#### {n}\n\nQuestion: Tom has 5 pens.\nAnswer: #### 99", True, 5, 5, 5),
    "W_x100": (r"reasoning. Thus the answer is $\boxed{{x}}$.", False, 5, 5, 5),
    "W_percent": (r"reasoning. Thus the answer is $\boxed{{n}\%}$.", False, 5, 5, 5),
    "W_plus1": ("reasoning.\n\nANSWER: {p}", False, 5, 5, 5),
    "W_mention": ("There are {n} eggs. She sells some. The answer is 3.", False, 5, 5, 5),
}


@pytest.mark.parametrize("form", SHOOT_OUT)
def test_shoot_out(form: str) -> None:
    template, right, *expected = SHOOT_OUT[form]
    agreed = [0, 0, 0]
    for n in (18, 1450000, -10, 276000, 2125):
        text = template
        for name, shown in {"n": f"{n}", "c": f"{n:,}", "x": f"{n * 100}", "p": f"{n + 1}"}.items():
            text = text.replace("{" + name + "}", shown)
        text, row = cut(text, STOPS), problem(str(n))
        for i, grade in enumerate((strict(text, row.solution), flexible(text, row.solution), numeric(text, row))):
            agreed[i] += grade.correct == right
    assert agreed == expected


def test_shoot_out_totals() -> None:
    _, _, *columns = zip(*SHOOT_OUT.values(), strict=True)
    assert [sum(column) for column in columns] == [40, 100, 125]


@pytest.mark.parametrize(
    ("gold", "text", "answer", "correct"),
    [
        ("18", "#### 18.00", "18.00", False),
        ("18", "#### 18\n#### 19", "18", True),
        ("18", "#### $18.", None, False),
        ("18", r"Thus the answer is $\boxed{18}$.", None, False),
        ("1,450,000", "#### 1450000.", "1450000.", True),
        ("18", "####18", None, False),
    ],
)
def test_strict_keeps_its_faults(gold: str, text: str, answer: str | None, correct: bool) -> None:
    assert strict(text, problem(gold).solution) == Grade(correct, answer, "number" if answer else "none")


@pytest.mark.parametrize(
    ("gold", "text", "answer", "correct"),
    [
        ("18", r"Thus the answer is $\boxed{18}$.", "$.", False),
        ("18", "#### 18.00", "18.00", False),
        ("18", "18 ... done", "...", False),
        ("18", "= 18.\n\nHope this helps...", "...", False),
        ("18", "#### 18\n#### 19", "19", False),
        ("18", "#### $18.", "$18.", True),
        ("-10", "So 16-10", "-10", True),
        ("6", "So 16-10", "-10", False),
        ("5", "only 5 here", "5", True),
        ("5", "none here", None, False),
    ],
)
def test_flexible_keeps_its_faults(gold: str, text: str, answer: str | None, correct: bool) -> None:
    assert flexible(text, problem(gold).solution) == Grade(correct, answer, "number" if answer else "none")


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("18", r"$\boxed{x=18}$"),
        ("18", "The answer is 3*6=18 dollars."),
        ("18", r"\boxed{18}. But then \boxed{"),
        ("18", "The answer is 18. Hope that helps in 3 days."),
        ("18", "= 18.\n\nHope this helps..."),
        ("18", "#### 18\nThat took 5 steps."),
        ("18", "The **answer is:** **18** eggs"),
        ("18", "#### 18\n#### "),
        ("18", r"\boxed{\text{18 eggs}}"),
        ("-10", r"\boxed{-\$10}"),
        ("-10", "The answer is $-10."),
        ("-10", "The answer is $\u221210."),
        ("1450000", r"\boxed{1{,}450{,}000}"),
        ("1450000", r"\boxed{1,\!450,\!000}"),
        ("6", "So 16-10=6"),
        ("18", "\\boxed{18\u00a0\\text{km}}"),
    ],
)
def test_numeric_accepts(gold: str, text: str) -> None:
    grade = numeric(text, problem(gold))
    assert grade == Grade(True, gold)


@pytest.mark.parametrize(
    ("gold", "text", "kind"),
    [
        ("18", r"\boxed{18,20}", "several"),
        ("18", r"\boxed{18 \text{ or } 20}", "several"),
        ("18", r"\boxed{18.0000001}", "number"),
        ("18", r"\boxed{}", "none"),
        ("18", "", "none"),
        ("18", "no idea", "none"),
        ("-10", "The answer is 10.", "number"),
        ("1450000", r"\boxed{1,450,001}", "number"),
        ("6", "So 16-10", "number"),
        ("8", r"\boxed{\frac{18}{2}}", "number"),
        ("9", r"\boxed{\sqrt{2}}", "complex"),
        ("9", "The answer is 3x.", "complex"),
        ("9", "The answer is 18,2.", "several"),
        ("18", r"\boxed{18\%}", "number"),
        ("18", "The answer is 18 percent.", "number"),
        ("18", r"\boxed{x}", "complex"),
    ],
)
def test_numeric_refuses(gold: str, text: str, kind: str) -> None:
    grade = numeric(text, problem(gold))
    assert (grade.correct, grade.kind) == (False, kind)
    assert (grade.answer is None) == (kind == "none")


def test_numeric_names_a_problem_without_a_number() -> None:
    with pytest.raises(UserError, match=r"Problem 7: .*'eighteen'"):
        numeric("18", Problem.from_answer(7, "?", "So.\n#### eighteen"))


GOLD = "GSM8K's own answers: 1,319 of 1,319 under all three scores"
TRAIN = "GSM8K's own answers in its training set: 7,473 of 7,473 under all three scores"


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        pytest.param(ROOT / "evals/demo/problems.jsonl", 200, id="demo-200"),
        pytest.param(SHARED / GSM8K_TEST, 1319, marks=needs_shared(GSM8K_TEST, claim=GOLD), id="test-1319"),
        pytest.param(SHARED / GSM8K_TRAIN, 7473, marks=needs_shared(GSM8K_TRAIN, claim=TRAIN), id="train-7473"),
    ],
)
def test_reference_solutions_are_right_by_all_graders(file: Path, rows: int) -> None:
    problems = stored(file)
    assert len(problems) == rows
    for row in problems:
        grades = strict(row.solution, row.solution), flexible(row.solution, row.solution), numeric(row.solution, row)
        assert all(grade.correct for grade in grades), row


@pytest.mark.parametrize(
    ("question", "solution", "counts"),
    [
        ("What percent of them are red?", "So 18 of 100 are red.", True),
        ("He has 100. By what percentage did it grow?", "It grew by 18.", True),
        ("What percent are red? And how many are blue?", "There are 18 blue.", False),
        ("How many are red? ", "That is 18%.", True),
        ("How many are red?", "That is 18 percent.", True),
        ("How many are red?", "That is 18%.\nSo 18 are red.", False),
        ("How many are red?", "That is 118% of them.", False),
        ("How many are red?", "That is 0.18% of them.", False),
        ("How many are red?", "So 18 are red.", False),
        ("", "So 18 are red.", False),
    ],
)
def test_per_cent_counts_where_question_or_solution_ask_for_it(question: str, solution: str, counts: bool) -> None:
    row = Problem.from_answer(0, question, f"{solution}\n#### 18")
    assert asks_percent(row) is counts
    for text in (r"\boxed{18\%}", "The answer is 18 percent."):
        assert numeric(text, row) == Grade(counts, "18%", "number")
    assert numeric("18", row).correct


@pytest.mark.parametrize(("solution", "gold"), [("That is 1200%.", "1,200"), ("That is 1,200%.", "1200")])
def test_per_cent_counts_however_the_number_is_written(solution: str, gold: str) -> None:
    assert asks_percent(Problem.from_answer(0, "How much is it?", f"{solution}\n#### {gold}"))


@needs_shared(GSM8K_TEST, claim="numeric takes a percentage for 25 of GSM8K's 1,319 problems, which ask for one")
def test_per_cent_counts_where_it_is_asked_for() -> None:
    problems = stored(SHARED / GSM8K_TEST)
    flagged = [row.problem_id for row in problems if asks_percent(row)]
    accepted = [row.problem_id for row in problems if numeric(rf"\boxed{{{row.gold}\%}}", row).correct]
    assert len(flagged) == 25
    assert accepted == flagged


PIECES = [
    *"0123456789.,-$%{}\\#=/*+^ \n:é’\u00a0\u2212٣\U0001f600\ufffd", r"\boxed{", r"\fbox {", r"\text{", "####", "#### ",
    "The answer is ", "Result: ", r"\frac", "1,234", "percent", "**", "{,}",
]  # fmt: skip


def test_graders_survive_any_text() -> None:
    rng, row = random.Random(0), problem("18")
    for _ in range(5000):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 40)))
        for grade in (strict(text, row.solution), flexible(text, row.solution), numeric(text, row)):
            assert (grade.answer is None) == (grade.kind == "none")
            assert not (grade.correct and grade.kind != "number")


UNITS = [
    *".$-{}\\ \n=*%1a", "1,", "1,111,", "\\boxed{", "\\boxed{1", "\\boxed{}", "#### ", "\\text{", "answer: ",
    "answer is 1 ", "answer", "1=", "1/", "1.", "\\text{1}", "#### 1\n",
    "1 ", "1'111", "(", "\\frac{", "\\frac{1}", "1\\frac{1", "\\sqrt{", "sqrt(", "a ", "a-", "ab", "1 and ", "-1 ",
    "2^", "9*", "1:", "<think>", "####", "#### answer ", "1 a ", "(a", "1 million ", "\u2009111", "=-", "^{",
    "per ", "1 to ",
]  # fmt: skip


def test_graders_take_linear_time() -> None:
    row = problem("18")

    def cost(unit: str, length: int) -> float:
        """The best of three times in CPU seconds, so that what else runs does not count."""
        body = unit * (length // len(unit))
        times = []
        for _ in range(3):
            began = time.process_time()
            for text in (body, body + "/", "\\boxed{" + body + "}", "The answer is " + body + "/"):
                strict(text, row.solution)
                flexible(text, row.solution)
                numeric(text, row)
            times.append(time.process_time() - began)
        return min(times)

    for unit in UNITS:
        assert cost(unit, 20_000) < 6 * cost(unit, 5_000) + 0.05, f"quadratic time of {unit!r} would be 16 times"

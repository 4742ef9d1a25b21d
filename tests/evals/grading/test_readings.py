"""What counts as what: kinds of answers in the places where they stand, each with its right verdict."""

import pytest

from evals.grading.formula import formula
from evals.grading.grade import score_name
from evals.grading.numeric import number_vote, numeric
from evals.types import Problem

PLACES = ("The answer is {}.", "#### {}", r"So $\boxed{{{}}}$.", "The final answer: {}\n\nHope this helps.")

RIGHT = {
    "plain": [("24", "24"), ("24.00", "24"), ("$24", "24"), ("1,250,000", "1250000")],
    "fraction": [(r"\frac{48}{2}", "24"), ("48/2", "24"), (r"\dfrac{5}{2}", "2.5"), ("12 + 12", "24")],
    "root": [(r"\sqrt{576}", "24"), ("√81", "9"), ("sqrt(81)", "9"), (r"2\sqrt{144}", "24")],
    "power": [("3^4", "81"), ("3^{4}", "81"), ("3⁴", "81"), ("3**4", "81")],
    "mixed": [("3 1/4", "3.25"), (r"3\frac{1}{4}", "3.25"), ("3¼", "3.25"), ("3 and 1/4", "3.25")],
    "scientific": [(r"2.5 \times 10^4", "25000"), ("2.5e4", "25000"), ("2.5 × 10⁴", "25000")],
    "thousands": [("25\u202f000", "25000"), ("25'000", "25000"), ("25\u2009000", "25000"), (r"25{,}000", "25000")],
    "scale": [("3 million", "3000000"), ("$1.5 billion", "1500000000"), ("40 thousand", "40000")],
    "sign": [("-24", "-24"), ("- 24", "-24"), ("–24", "-24"), ("\u221224", "-24"), ("negative 24", "-24")],
    "unit": [("24 cm^2", "24"), ("24 km/h", "24"), ("24 eggs (total)", "24"), ("24-inch", "24"), ("24 m³", "24")],
    "latex unit": [(r"24\text{ cm}^2", "24"), (r"24 \mbox{ km/h}", "24"), (r"24\text{-inch}", "24")],
    "not joined": [("24 dollars per day for 5 days", "24"), ("24 miles in 3 hours", "24"), ("24 of the 30", "24")],
    "full width": [("２４", "24"), ("２，５００", "2500")],
    "bold": [("**24**", "24"), ("__24__", "24"), ("**24** dollars", "24")],
}

WRONG = {
    "part": [(r"\frac{48}{2}", "48"), ("3^4", "3"), ("3 1/4", "3"), ("2.5e4", "2.5"), ("48 / 2", "48"), ("24x", "24")],
    "root": [(r"\sqrt{81}", "81"), ("√81", "81"), (r"3\sqrt{2}", "3")],
    "several": [("24 or 25", "24"), ("24 and 25", "24"), ("24 to 25", "24"), ("between 24 and 25", "24")],
    "joined": [("24, 25", "24"), ("4:30", "4"), ("24:25", "24"), ("24 hours and 30 minutes", "24"), ("24–25", "24")],
    "sign": [("-24", "24"), ("- 24", "24"), ("negative 24", "24"), ("–24", "24")],
    "scale": [("3 million", "3"), ("25'000", "25"), ("25\u202f000", "25")],
    "latex": [(r"\log_2 24", "24"), (r"2\pi", "2"), (r"\binom{24}{2}", "24"), (r"x + 24", "24")],
}


def cases(table: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str, str]]:
    return [(place, *case) for kind in table.values() for case in kind for place in PLACES]


def right(text: str, gold: str) -> bool:
    return numeric(text, Problem.from_answer(0, "How much is it?", f"So.\n#### {gold}")).correct


@pytest.mark.parametrize(("place", "answer", "gold"), cases(RIGHT))
def test_the_whole_answer_is_right(place: str, answer: str, gold: str) -> None:
    assert right(place.format(answer), gold)


@pytest.mark.parametrize(("place", "answer", "gold"), cases(WRONG))
def test_a_part_of_the_answer_is_not(place: str, answer: str, gold: str) -> None:
    assert not right(place.format(answer), gold)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("#### Step 2: Add\n12 + 12 = 24\n\nThe answer is 24.", "24"),
        ("#### 2. Add the eggs\n12 + 12 = 24", "24"),
        ("#### Part 7\n**Final answer: 24**", "24"),
        ("#### Final answer: **24**", "24"),
        ("#### Answer - 24", "24"),
        ("Answer – 24", "24"),
        ("Answer: - 24", "-24"),
        ("Answer:\n- 24 eggs", "24"),
        ("The balance is - 24.", "-24"),
        ("She has 50 - 26 = 24", "24"),
        ("一共有24个。", "24"),
        ("คำตอบคือ24บาท", "24"),
        ("Ответ:24яйца", "24"),
        ("That makes $24/day.", "24"),
        ("The area is 24 cm^2.", "24"),
        (r"So it is $\frac{48}{2}$", "24"),
    ],
)
def test_places_and_scripts(text: str, gold: str) -> None:
    assert right(text, gold)


def test_a_word_with_digits_is_no_answer() -> None:
    for text in ("It is model x24b.",):
        assert number_vote(text) is None


def test_millions_count_as_they_are_asked_for() -> None:
    asked = Problem.from_answer(0, "It is a lot. How many millions did it earn?", "So.\n#### 3")
    assert numeric("The answer is 3 million.", asked).correct
    assert numeric("The answer is 3.", asked).correct
    assert not right("The answer is 3 million.", "3")


def test_equal_numbers_vote_alike() -> None:
    assert {number_vote(text) for text in (r"\boxed{\frac{5}{2}}", "#### 2.50", "The answer is 2 1/2.")} == {"2.5"}


GOLDS = [
    r"\text{B}", r"\text{June 20}", r"\pi", "p - q", "(3,5]", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "7",
    r"\frac{14}{3}", r"90^\circ", r"10\%",
    r"\{1,2,3\}", r"\frac{1}{2} x", "(6,31,-1)", "x=5", r"36\text{ cm}^2", r"2 \text{ hours } 30 \text{ minutes}",
    "1011_2", r"\infty", r"x \ge 5", r"137 \frac{1}{2}", "\\begin{pmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{pmatrix}",
    r"So $\boxed{\frac{3}{4}}$, as 2 < 5.", r"0.\overline{3}", r"12\text{ (mod }20)",
]  # fmt: skip


@pytest.mark.parametrize("gold", GOLDS)
def test_every_form_of_gold_is_right_against_itself(gold: str) -> None:
    assert formula(f"#### {gold}", gold).correct


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\text{B}", r"\text{C}"), (r"\text{June 20}", r"\text{July 20}"), ("1011_2", "1011_3"), ("1011_2", "1101_2"),
        (r"2 \text{ hours } 30 \text{ minutes}", r"2 \text{ hours } 31 \text{ minutes}"), (r"\frac{1}{3}", "0.3333333"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"), ("p - q", "q - p"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 0 \\ 3 \end{pmatrix}"), ("(3,5]", "(3,5)"),
        ("\\begin{pmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{pmatrix}", "\\begin{pmatrix}\n1 & 2 \\\\\n3 & 5\n\\end{pmatrix}"),
        (r"0.\overline{3}", r"0.\overline{6}"), (r"12\text{ (mod }20)", r"12\text{ (mod }27)"), ("7", "7.0000001"),
        ("x + 2", "$x+2$+12"), ("x + 2", "$x+2$-(12)"), ("x + 2", "$x+2$ = 5"),
    ],
)  # fmt: skip
def test_another_formula_is_wrong(gold: str, answer: str) -> None:
    assert not formula(rf"So \boxed{{{answer}}}", gold).correct


def test_the_score_of_latex_has_its_own_name_in_tables() -> None:
    assert [score_name("numeric", task) for task in ("gsm8k", "math", "choice")] == ["numeric", "math", "numeric"]
    assert score_name("strict", "math") == "strict"

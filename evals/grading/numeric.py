r"""Grades answers that are numbers: `numeric` is ours, `strict` and `flexible` are lm-evaluation-harness's.

`numeric` reads the final answer of a text as a decimal number and compares exactly. It looks for it in this order: the
last closed, non-empty `\boxed{}` or `\fbox{}`; the last `####` with a digit on its line; the last "answer is",
"result =" or the like with a digit in its sentence; the text's last number.
No tolerance, no rounding, no factor 100: 18.00 is 18, 18.0000001 is not. Every step takes time linear in the text.

An answer of kind `complex` (a fraction, a formula) is not correct here; grade.py has a symbolic checker decide those.

`strict` and `flexible` decide as lm-eval 0.4.13 does, by strings. Their faults are kept on purpose, so that a score can
stand beside published ones.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from decimal import Decimal
from typing import NamedTuple

from evals.types import Grade, Problem, UserError

NUMBER = re.compile(
    r"(?<![\w.,/])([-\u2212]?)[$€£]?([-\u2212]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)"
    r"(?![\d/^]|[.,]\d)(\s?(?:%|percent\b))?"
)
"""Sign, currency, sign, digits (commas only as exact groups of thousands), per cent."""

BRACE = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\[{}]|([{}])")
PHRASE = re.compile(r"(?:answer|result)\s*(?:is|:|=)[\s:*]*", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?](?!\w)|\n")
DIGIT = re.compile(r"\d")
DIGITS = re.compile(r"\d+(?:\.\d+)?")
OPERATOR = re.compile(r"[+*/^\\×÷]|[\w)}\]]\s*[-\u2212]")
UNITS = re.compile(r"(?:[^\W\d_]|[\s$€£.])*")
WRAPPER = re.compile(r"\\(?:textbf|text|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
SPACE = re.compile(r"\\[ ;]|[\u00a0\u202f\u2009]")
NOTHING = re.compile(r"\\[!,]|\*\*")
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
COT_STRICT = re.compile(r"The answer is (\-?[0-9\.\,]+).")
"""The `strict-match` of the chain-of-thought tasks. Its last `.` is any character, so that a text which ends in
`The answer is 18` gives 1."""
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
FINAL_DOT = re.compile(r"\.$")
MAX_NESTING = 4
"""Wrappers like \\text{\\textbf{18}} are opened this deep; deeper ones stay and make the answer `complex`."""


class Found(NamedTuple):
    """The answer extracted from a text: `kind` is number, several, complex or none; `value` is set for a number."""

    kind: str
    shown: str | None = None
    value: Decimal | None = None
    percent: bool = False


def numeric(text: str, problem: Problem) -> Grade:
    """Grade whether the final answer of `text` (cut at its stop string) is the problem's gold.

    The grade's answer is the number without commas and currency, or what stands in its place if `several` or `complex`.
    A percentage counts only if the problem asks for one. Raises UserError if the gold is no number.
    """
    gold = NUMBER.fullmatch(problem.gold)
    if gold is None:
        raise UserError(f"Problem {problem.problem_id}: the gold is {problem.gold!r}, not a number; correct the data.")
    answer = extract(text)
    correct = answer.value == value(gold) and (not answer.percent or asks_percent(problem))
    return Grade(correct, answer.shown, answer.kind)


def number_vote(text: str) -> str | None:
    """The final number of a text for a vote, equal numbers written alike: 18 for 18.00, 18% for 18.0 per cent."""
    answer = extract(text)
    if answer.value is None:
        return None
    digits = f"{answer.value:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return ("0" if not answer.value else digits) + ("%" if answer.percent else "")


def asks_percent(problem: Problem) -> bool:
    """Whether the answer is a percentage, by the last line of the reasoning or the question's last sentence."""
    last_line = problem.reasoning.rpartition("\n")[2]
    plain, written = last_line.replace(",", ""), problem.gold.replace(",", "")
    if re.search(rf"(?<![\d.]){re.escape(written)}\s?(?:%|percent\b)", plain):
        return True
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", problem.question.strip()) if part]
    return bool(sentences) and "percent" in sentences[-1].lower()


def extract(text: str) -> Found:
    """The final answer of a text, looked for in the order that the module describes."""
    text = cleaned(text)
    if box := last_box(text):
        return boxed(after_equals(box))
    if segment := after_hashes(text) or after_phrase(text):
        segment = after_equals(segment)
        first = NUMBER.search(segment)
        return number(first) if first else unreadable(segment)
    numbers = list(NUMBER.finditer(text))
    return number(numbers[-1]) if numbers else Found("none")


def final_text(text: str) -> str | None:
    """The final answer as it is written, looked for in the same places, after `cleaned`."""
    text = cleaned(text)
    if segment := last_box(text) or after_hashes(text) or after_phrase(text):
        return segment.strip().rstrip(".").strip("$ ")
    numbers = list(NUMBER.finditer(text))
    return numbers[-1][0].strip() if numbers else None


def cleaned(text: str) -> str:
    """The text without the typography of LaTeX and Markdown that can stand inside a number."""
    text = NOTHING.sub("", SPACE.sub(" ", text))
    text = text.replace("{,}", ",").replace(r"\$", "$").replace(r"\%", "%")
    for _ in range(MAX_NESTING):
        text, opened = WRAPPER.subn(r"\1", text)
        if not opened:
            break
    return text


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` that is closed and not empty."""
    opened: list[tuple[int, bool]] = []
    best: tuple[int, str] | None = None
    for token in BRACE.finditer(text):
        if token[1] or token[2] == "{":
            opened.append((token.end(), bool(token[1])))
        elif token[2] == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (best is None or start > best[0]):
                content = text[start : token.start()].strip()
                best = (start, content) if content else best
    return best[1] if best else None


def after_hashes(text: str) -> str | None:
    """Rest of the line after the last `####` that a digit follows on its line."""
    for line in reversed(text.split("\n")):
        if "####" in line:
            last_digit = max((match.start() for match in DIGIT.finditer(line)), default=0)
            hashes = line.rfind("####", 0, last_digit)
            if hashes >= 0:
                return line[hashes + len("####") :]
    return None


def after_phrase(text: str) -> str | None:
    """Rest of the sentence after the last phrase such as "the answer is" that a digit follows in its sentence."""
    phrases = [match.end() for match in PHRASE.finditer(text)]
    if not phrases:
        return None
    ends = [match.start() for match in SENTENCE_END.finditer(text)] + [len(text)]
    digits = [match.start() for match in DIGIT.finditer(text)]
    for start in reversed(phrases):
        end, digit = ends[bisect_left(ends, start)], bisect_left(digits, start)
        if digit < len(digits) and digits[digit] < end:
            return text[start:end]
    return None


def after_equals(segment: str) -> str:
    """What follows the last `=`, unless no digit does."""
    rest = segment.rpartition("=")[2]
    return rest if DIGIT.search(rest) else segment


def boxed(content: str) -> Found:
    """The answer in a box: a number if it holds exactly one, with only unit words and currency signs around it."""
    numbers = list(NUMBER.finditer(content))
    if len(numbers) != 1:
        return unreadable(content)
    around = content[: numbers[0].start()] + " " + content[numbers[0].end() :]
    return number(numbers[0]) if UNITS.fullmatch(around) else unreadable(content)


def unreadable(segment: str) -> Found:
    """An answer that is no number: `several` for groups of digits that no operator joins, `complex` for all else."""
    several = len(DIGITS.findall(segment)) >= 2 and not OPERATOR.search(segment)
    return Found("several" if several else "complex", segment.strip())


def number(match: re.Match[str]) -> Found:
    """The answer in a match of NUMBER."""
    decimal = value(match)
    percent = match[4] is not None
    return Found("number", f"{decimal:f}{'%' if percent else ''}", decimal, percent)


def value(match: re.Match[str]) -> Decimal:
    """The number that a match of NUMBER writes; two signs cancel."""
    sign = "-" if bool(match[1]) != bool(match[2]) else ""
    return Decimal(sign + match[3].replace(",", ""))


def strict(text: str, solution: str, cot: bool = False) -> Grade:
    """lm-eval's `strict-match`: the first number after `#### ` (`cot`: `The answer is `) is the gold string.

    `text` is the answer, already cut at its stop string; lm-eval compares with the whole solution, `#### gold` at its
    end, as `normalised` cuts it.
    The grade's answer is the extracted string, None where lm-eval says `[invalid]`.
    """
    match = (COT_STRICT if cot else STRICT).search(text)
    return compared(match[1] if match else None, solution)


def flexible(text: str, solution: str) -> Grade:
    """lm-eval's `flexible-extract`: as `strict`, for the last thing in the text that looks like a number."""
    matches = list(FLEXIBLE.finditer(text))
    return compared(matches[-1][0] if matches else None, solution)


def compared(extracted: str | None, solution: str) -> Grade:
    """The grade of an extracted string, `strict` and `flexible` alike."""
    if extracted is None:
        return Grade(False, None, "none")
    return Grade(normalised(extracted) == normalised(solution), extracted, "number")


def normalised(text: str) -> str:
    r"""A string as lm-eval compares it: without its `regexes_to_ignore`, in their order, then in lower case.

    The patterns are `,`, `\$`, `(?s).*#### ` and `\.$`. The third is written as a search from the right: the regular
    expression needs quadratic time on long texts.
    """
    bare = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return FINAL_DOT.sub("", bare).lower()

r"""Grades answers that are numbers or LaTeX: numbers are compared exactly, all else by a symbolic checker.

A formula needs no digit, so that where `numeric` finds nothing marked this looks on: the last line if it is `#### …`,
then the formula after the last "answer is".
"""

from __future__ import annotations

import re

from evals.grading.numeric import vote_of
from evals.grading.place import PHRASE, SENTENCE_END, find, last_box, last_line
from evals.grading.reading import PARTS, last, read
from evals.grading.spelling import bare, plain
from evals.grading.symbolic import equal
from evals.types import Grade

BASE = re.compile(r"(\w+)_\{?(\d+)\}?")
COMPOUND = re.compile(rf"\s*(?:[\d.]+\s*{PARTS}\s*(?:,|and\b)?\s*){{2,}}", re.IGNORECASE)
NAME = re.compile(r"\s*(?!negative|minus)[^\W\d_]{2,}", re.IGNORECASE)
"""A gold that begins with a word, such as a date, is more than its number."""
UNREAD = re.compile(r"\\begin\{cases\}|\\p?mod(?![a-z])|\(\s*mod\b|[\d.]\s*\\overline")
"""What the symbolic checker passes over, so that it finds equal what is not."""
NUMBERS = re.compile(r"\d+(?:\.\d+)?")
WITHIN = re.compile(r"(?<=[\w)}\]])\$(?=\s*[+*/^=<>]|-[\w\\({])")
"""A dollar within a formula, which goes on behind it."""


def formula(text: str, gold: str) -> Grade:
    """Grade whether the final answer of `text` equals `gold`: a number, LaTeX, or a worked solution with it in a box.

    The same spelling is right; two numbers are compared exactly, whatever their units, and a percentage is right only
    where the gold is one; what has a base or several units is compared part by part; all else math-verify decides.
    """
    segment = final_text(text)
    if segment is None:
        return Grade(False, None, "none")
    wanted = last_box(plain(gold)) or plain(gold).strip()
    given, right = shown(segment), shown(wanted)
    if given == right:
        return Grade(True, segment, "complex")
    first, second = read(bare(segment), whole=True), read(bare(wanted), whole=True)
    if first.value is not None and second.value is not None and not NAME.match(bare(wanted)):
        return Grade(first.value == second.value and first.percent <= second.percent, first.shown, "number")
    if (base := BASE.fullmatch(right)) and (other := BASE.fullmatch(given)):
        return Grade(base.groups() == other.groups(), segment, "complex")
    if COMPOUND.fullmatch(bare(wanted)):
        return Grade(NUMBERS.findall(given) == NUMBERS.findall(right), segment, "several")
    if UNREAD.search(bare(wanted)) and UNREAD.search(bare(segment)):
        return Grade(False, segment, "complex")
    return judged(equal(" ".join(wanted.split()), " ".join(segment.split())), segment)


def judged(right: bool | None, answer: str) -> Grade:
    """The grade of a symbolic verdict; None is `undecided`."""
    return Grade(bool(right), answer, "undecided" if right is None else "complex")


def formula_vote(text: str) -> str | None:
    """The final answer of a text for a vote: a number as `number_vote` writes it, a formula as it is written."""
    segment = final_text(text)
    return segment and (vote_of(read(bare(segment), whole=True)) or shown(segment))


def final_text(text: str) -> str | None:
    """The final answer as it is written, in one spelling."""
    text = WITHIN.sub("", plain(text))
    if place := find(text):
        return place.text.strip().rstrip(".").strip("$ ")
    if segment := last_line(text) or after_phrase(text):
        return segment
    return last(bare(text)).shown


def after_phrase(text: str) -> str | None:
    """The formula directly after the last phrase, in dollars or by a command of LaTeX."""
    for phrase in reversed(list(PHRASE.finditer(text))):
        end = SENTENCE_END.search(text, phrase.end())
        sentence = text[phrase.end() : end.start() if end else len(text)].strip()
        if sentence.startswith(("$", "\\")):
            return sentence.strip("$ ")
    return None


def shown(text: str) -> str:
    """The text without what only spaces it or says that it is text, so that equal spellings are equal."""
    return "".join(bare(text).split())

r"""Finds where in a text its final answer stands.

In this order: the last closed, non-empty `\boxed{}` or `\fbox{}`; the last `####` directly before a number; the last
"answer is", "result =" or the like with a digit in its sentence. Every step takes time linear in the text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Literal, NamedTuple

BRACE = re.compile(r"(\\(?:boxed|fbox)\s*\{)|\\[{}]|([{}])")
OWN_WORD = r"(?:the\s+)?(?:final\s+)?(?:answer|result)\b\s*(?:is\b)?"
HASHES = re.compile(
    rf"####[ \t]*({OWN_WORD}(?:\s*[-–—](?=\s))?\s*)?"
    r"(?:[ \t:=~(\[{$€£¥₹+–—-]|\\[(\[]|[A-Za-z][ \t]*(?==)|minus\b|negative\b)*(?=\.?\d|\\[dt]?frac|\\sqrt)",
    re.IGNORECASE,
)
"""`####` before a number; group 1 is the answer's own word, and a dash that separates it."""
LIST_ITEM = re.compile(r"\d+[.):]\s+[^\W\d]")
PHRASE = re.compile(
    r"(?:answer|result)(?:\s*(?:is\b|:|=)[\s:*]*|\s*[-–—](?=\s)[\s*]*|[-–—])(?:(?<=\n)[-*•]\s+)?", re.IGNORECASE
)
"""A dash directly after the word separates, one after "is", `:` or `=` is a sign unless it begins an item of a list."""
SENTENCE_END = re.compile(r"[.!?](?!\w)|\n")
ENVIRONMENT = re.compile(r"\\begin\{(\w+)\}.*?\\end\{\1\}", re.DOTALL)
DIGIT = re.compile(r"\d")


class Place(NamedTuple):
    """A final answer as it is written, and by what it was found."""

    text: str
    mark: Literal["box", "hashes", "phrase"]
    start: int
    """Where its mark begins."""


def find(text: str) -> Place | None:
    """The final answer of a text in one spelling; None if none is marked as that."""
    if box := last_box(text):
        return Place(box, "box", 0)
    return after_hashes(text) or after_phrase(text)


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


def after_hashes(text: str) -> Place | None:
    """Rest of the line after the last `####` that stands directly before a number and heads nothing."""
    for mark in reversed(list(HASHES.finditer(text))):
        number, start = mark.end(), mark.end(1) if mark[1] else mark.start() + len("####")
        end = text.find("\n", number)
        end = len(text) if end < 0 else end
        if not (LIST_ITEM.match(text, number) and text[end:].strip()):
            return Place(text[start:end], "hashes", mark.start())
    return None


def last_line(text: str) -> str | None:
    """What stands behind the last `####` if it is the text's last line, or a matrix that begins there."""
    _, mark, rest = text.rpartition("####")
    rest = rest.strip()
    return rest.rstrip(".").strip("$ ") if mark and "\n" not in ENVIRONMENT.sub("", rest) else None


def after_phrase(text: str) -> Place | None:
    """Rest of the sentence after the last phrase such as "the answer is" that a digit follows in its sentence."""
    phrases = list(PHRASE.finditer(text))
    if not phrases:
        return None
    ends = [match.start() for match in SENTENCE_END.finditer(text)] + [len(text)]
    digits = [match.start() for match in DIGIT.finditer(text)]
    for phrase in reversed(phrases):
        start = phrase.end()
        end, digit = ends[bisect_left(ends, start)], bisect_left(digits, start)
        if digit < len(digits) and digits[digit] < end:
            return Place(text[start:end], "phrase", phrase.start())
    return None


def after_equals(segment: str) -> str:
    """What follows the last `=`, unless no digit does."""
    rest = segment.rpartition("=")[2]
    return rest if DIGIT.search(rest) else segment

"""Reads a final answer as one number: its sign, the words of its unit, and whether other numbers are joined to it.

An answer is never read by a part of it. Every step takes time linear in the text.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from evals.grading.expression import DIGITS, Parsed, Value, product_at, sum_at, written

CURRENCY = "$€£¥₹"
BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
FRACTION, ROOT = rf"\\[dt]?frac\s*(?:{BRACES}|\d)\s*(?:{BRACES}|\d)", rf"\\sqrt\s*(?:{BRACES}|\d)"
POWER = r"\s*\^\s*(?:\{[^{}]*\}|-?\d+)"
TIMES_TEN = rf"\s*(?:\\times|\\cdot|[×*·]|x)\s*10{POWER}"
OPERAND = re.compile(
    rf"(?<![A-Za-z0-9_.,/\d])(?:\d+(?:/\d+)+|(?:{DIGITS})(?:{TIMES_TEN}|\s+\d+/\d+|\s*{FRACTION})?|{FRACTION}|{ROOT})"
    rf"(?:{POWER})?"
)
"""A number with all that makes it one; letters, digits and `_` of ASCII before it bar it."""
SIGN = re.compile(
    rf"(?:(?:^|[=:]|\b(?:is|are|was|be|equals))\s*([-–—](?!\s)|[-–]|minus\b)|(?<![\w)}}\]%.,/])([-–—])(?!\s)|\b(negative)\b)"
    rf"\s*[{CURRENCY}]?[\s(]*$",
    re.IGNORECASE,
)
"""What a sign can be: a dash that touches the number and nothing else, or that stands where a number is due; words."""
OPENING = re.compile(r"[(\s]*$")
INNER = re.compile(
    r"(?:[\w)}\]]\s*[+*/^×÷·]|(?:\b[b-z]|[\d)}\]])\s*-|[_^]|(?<![<>])[<>≤≥≠]|\b[A-Za-z]\("
    r"|\\(?!approx|sim|[Rr]ightarrow|implies|therefore|to\b|q?quad)[A-Za-z]+(?:[_^]?\{[^{}]*\}|[_^]\w)*)[{(\s]*$"
)
"""What before a number makes it the later part of a formula."""

WORD = r"(?>[^\W\d_]+(?:['.-][^\W\d_]+)*\.?)"
UNIT = (
    rf"(?:{WORD}|/\s*{WORD}|-(?={WORD})|\((?>\s*{WORD}\s*)+\)|\^\s*\{{?\s*-?(?:\d|\\circ|\\prime|{WORD})\s*\}}?"
    rf"|\\(?:circ|degree|prime|cdot)(?![A-Za-z])|[°'\"{CURRENCY}.)}}\]%])"
)
APART = (
    r"(?:per|for|in|of|out|at|on|each|every|from|with|after|before|by|because|since|so|which|that|when|if|as|is|are|was"
    r"|than|a|an|the)"
)
UNITS = re.compile(rf"(?>\s*{UNIT})*\s*")
PROSE = re.compile(rf"(?>\s*(?!\b{APART}\b){UNIT})*\s*\b{APART}\b[^+*^×÷\\=<>{{}}]*", re.IGNORECASE)
AROUND = re.compile(rf"(?>{WORD}|[\s{CURRENCY}.:({{\[~+-])*")
NEXT = (
    r"\s*(?:(?:another|also|then|even)\s+)?[(\[]?\s*"
    rf"(?:[-–]|minus\s|negative\s)?\s*[{CURRENCY}]?\s*(?=\.?\d|\\[dt]?frac|\\sqrt)"
)
PARTS = (
    r"(?:years?|months?|weeks?|days?|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s|feet|foot|ft|inch(?:es)?"
    r"|yards?|yds?|met(?:er|re)s?|cm|km|kg|g|pounds?|lbs?|ounces?|oz|dollars?|cents?|gallons?|quarts?|pints?)\b\.?"
)
JOINED = re.compile(
    rf"(?>\s*(?!\b(?:{APART}|and|or|to|through)\b){UNIT}){{0,4}}\s*"
    rf"(?:[,;&]\s*(?:(?:and|or)\b)?|,?\s*\b(?:and|or|through)\b|–){NEXT}"
    rf"|\s*[.,:](?=\d)|\s+:{NEXT}"
    rf"|(?P<unit>\s+{WORD})?\s+(?:to|vs\.?|versus)\b{NEXT}\S+(?(unit)(?P=unit)\b)"
    rf"|\s+(?=[{CURRENCY}]?\d)|\s*{PARTS}\s*\d+(?:\.\d+)?\s*{PARTS}",
    re.IGNORECASE,
)
"""Behind a number and the words of its unit: what joins another one to it. "per", "for" and "in" do not."""
GOES_ON = re.compile(
    r"\s*(?:_|\^(?!\s*\{?\s*(?:\\circ|\\prime|th|st|nd|rd|o\b))|[<>](?![<>])|[≤≥≠±]|\\(?:[lg]eq?|neq?|pmod|mod|pm|ldots|cup)\b)"
)
"""Behind a number: it is the beginning of something else."""
JOINED_BEFORE = re.compile(rf"\bbetween\s+[{CURRENCY}]?(?:{DIGITS})\s+and\s+[{CURRENCY}]?$", re.IGNORECASE)
VARIABLE = re.compile(r"\s+(?![mgshlLVWNJCFKAIa])[A-Za-z](?!\w|/|\.)")
"""In a box: a letter behind a number that is no unit."""
RATIO = re.compile(r"\d+(?:/\d+)+")
BEFORE_RATIO = re.compile(rf"(?:^|[=:]|\b(?:is|are|was|equals))\s*[{CURRENCY}]?-?$", re.IGNORECASE)
BEHIND_RATIO = re.compile(r"\s*(?:of|the)\b")
UNIT_POWER = re.compile(r"[A-Za-z]\s*\^\s*\{?\s*-?$")
CLOCK = re.compile(r"\d:$")
BARRED = re.compile(r"[.,]\d")
OPERATOR = re.compile(r"[+*/^\\×÷]|[\w)}\]]\s*-")
NUMBERS = re.compile(r"\d+(?:\.\d+)?")
LOOK_BACK = 60
"""Characters before a number in which its sign is looked for."""


class Found(NamedTuple):
    """The answer extracted from a text; `value` is set for a number."""

    kind: Literal["number", "several", "complex", "none"]
    shown: str | None = None
    value: Value | None = None
    percent: bool = False


def read(segment: str, whole: bool) -> Found:
    """The number in a marked answer; with `whole` (a box) nothing but the words of its unit may stand around it."""
    first = OPERAND.search(segment)
    if first is None or INNER.search(segment, max(0, first.start() - LOOK_BACK), first.start()):
        return unreadable(segment)
    start = start_of(segment, first.start())
    parsed = sum_at(segment, start) or sum_at(segment, first.start())
    if parsed is None:
        return unreadable(segment)
    if JOINED.match(segment, parsed.end):
        return Found("several", segment.strip())
    if GOES_ON.match(segment, parsed.end) or (whole and not alone(segment, start, parsed.end)):
        return unreadable(segment)
    return number(segment[start : parsed.end], parsed)


def last(text: str) -> Found:
    """The last number of a text; a fraction only where one is due, and not of something else."""
    for match in reversed(list(OPERAND.finditer(text))):
        before, end = max(0, match.start() - LOOK_BACK), match.end()
        if BARRED.match(text, end) or UNIT_POWER.search(text, before, match.start()):
            continue
        if RATIO.fullmatch(match[0]) and (
            match[0].count("/") > 1
            or BEHIND_RATIO.match(text, end)
            or not BEFORE_RATIO.search(text, before, match.start())
        ):
            continue
        start = start_of(text, match.start())
        parsed = product_at(text, start) or product_at(text, match.start())
        if parsed and (
            JOINED_BEFORE.search(text, before, match.start())
            or (len(match[0]) == 2 and CLOCK.search(text, before, match.start()))
        ):
            return Found("several", text[before:end].strip())
        if parsed:
            return number(text[start : parsed.end], parsed)
    return Found("none")


def start_of(text: str, at: int) -> int:
    """Where the expression begins whose first number stands at `at`: with its sign and the brackets before it."""
    before = max(0, at - LOOK_BACK)
    if sign := SIGN.search(text, before, at):
        return sign.start(sign.lastindex or 0)
    opening = OPENING.search(text, before, at)
    return opening.start() if opening else at


def alone(content: str, start: int, end: int) -> bool:
    """Whether words alone stand around a number: those of its unit, and what is said of it ("per day for 5 days")."""
    rest = content[end:]
    if VARIABLE.match(rest):
        return False
    return bool(AROUND.fullmatch(content, 0, start) and (UNITS.fullmatch(rest) or PROSE.fullmatch(rest)))


def unreadable(segment: str) -> Found:
    """An answer that is no number: `several` for groups of digits that no operator joins, `complex` for all else."""
    several = len(NUMBERS.findall(segment)) >= 2 and not OPERATOR.search(segment)
    return Found("several" if several else "complex", segment.strip())


def number(text: str, parsed: Parsed) -> Found:
    """The answer that an expression is, `text` as it stands: without an exact value it is `complex`."""
    if parsed.value is None:
        return Found("complex", text.strip())
    return Found("number", f"{written(parsed.value)}{'%' if parsed.percent else ''}", parsed.value, parsed.percent)

r"""Reads an arithmetic expression where it stands in a text: how far it goes, and its exact value where it has one.

A recursive descent over `bare` text: sums of products of powers of numbers, fractions, roots, brackets and symbols,
plain or LaTeX. A value is exact or none: there is none with a symbol (`3x`, `\pi`) in it, a root that is not rational,
or beyond the limits, which keep the time of hostile texts linear.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from fractions import Fraction
from math import isqrt
from typing import NamedTuple

Value = Decimal | Fraction
MAX_DEPTH, MAX_BITS, MAX_EXPONENT = 12, 2048, 1024
"""Of brackets within brackets, of numerators and denominators, and of powers, where a value is computed."""
PLACES = 40
"""Decimal places with which a computed value is written; one that has more is written as a fraction."""

DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+"
"""A number without sign: commas only as exact groups of thousands."""
NUMBER = re.compile(rf"\s*([$€£¥₹]?)\s*({DIGITS})([eE][+-]?\d{{1,3}}(?!\w))?")
SPACED = re.compile(r"\s*[$€£¥₹]?\s*(\d{1,3}(?: \d{3})+)(?!\d|[.,/]\d| \d)")
MIXED = re.compile(r"\s+(?:and\s+)?(\d{1,9})\s?/\s?(\d{1,9})(?!\d|[./]\d)|\s+and\s+(?:a|one)\s+(half|third|quarter)\b")
SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion)\b(?!-)|([kK])(?!\w)")
MONEY = re.compile(r"\s?(mn?|bn?)\b", re.IGNORECASE)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "k": 3, "m": 6, "b": 9}
PERCENT = re.compile(r"\s?(?:%|per\s?cent\b)")
SIGN = re.compile(r"\s*([-+–—]|(?:minus|negative)\b)\s*")
PLUS = re.compile(r"\s*(?:([+-])|(plus|minus)\b(?=\s*[$\d.(\\]))")
TIMES = re.compile(
    r"\s*(?:\\(times|cdot|ast|div)(?![A-Za-z])|([*/×÷·])|(x)(?=\s*[$\d.(\\])|(times|multiplied\s+by|divided\s+by)\b(?=\s*[$\d.(\\]))"
)
PRODUCT = re.compile(
    r"\s*(?=\\(?:[dt]?frac|sqrt|pi|tau|theta|alpha|beta|gamma|lambda|mu|phi|omega|sigma|infty|sin|cos|tan|log|ln|binom)"
    r"(?![A-Za-z]))|(?=\()"
)
"""Where a factor follows without a sign between."""
POWER = re.compile(r"\s*\^(?!\s*\{?\s*(?:\\circ|\\prime|th|st|nd|rd|o\b))\s*")
FRACTION, ROOT = re.compile(r"\s*\\[dt]?frac(?![A-Za-z])\s*"), re.compile(r"\s*\\sqrt(?![A-Za-z])\s*")
DIGIT = re.compile(r"\s*(\d)")
BRACES = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")
OPEN = re.compile(r"\s*([({])")
SYMBOL = re.compile(r"\s*(?:\\[A-Za-z]+(?:\s*[_^]?\{(?:[^{}]|\{[^{}]*\})*\})*|[A-Za-z](?![A-Za-z]))")
LETTERS = re.compile(r"[A-Za-z]+(?![A-Za-z])")
SHORT_UNIT = re.compile(
    "[mgshlLVWNJCFKA]|[ckm]m|[km]g|[mdc][lL]|lb|oz|hr|ft|in|yd|mi|[ap]m|[AP]M|st|nd|rd|th|[kKMGT][bB]|[kmM]W|[kM]?Hz|ha"
    "|pt|qt|sq|cc"
)
"""Letters that may touch a number as its unit; others of up to two letters are variables."""


class Parsed(NamedTuple):
    """An expression of a text: where it ends, and its value if it has an exact one."""

    end: int
    value: Value | None
    percent: bool = False


MINUS_ONE = Parsed(0, Decimal(-1))


def sum_at(text: str, at: int, depth: int = 0, symbols: bool = False) -> Parsed | None:
    """The sum that begins at `at`, with `symbols` also by a letter or a command; None if none does."""
    left = product_at(text, at, depth, symbols)
    while left and (sign := PLUS.match(text, left.end)):
        right = product_at(text, sign.end(), depth, symbols=True)
        if right is None:
            break
        left = combined(sign[1] or sign[2], left, right)
    return left


def product_at(text: str, at: int, depth: int = 0, symbols: bool = False) -> Parsed | None:
    """The product that begins at `at`, as `sum_at`; `2 million` is one, `3x` another."""
    left = power_at(text, at, depth, symbols)
    while left:
        if sign := TIMES.match(text, left.end):
            operator = "/" if (sign[1] or sign[2] or sign[4] or "*")[:3] in ("/", "÷", "div") else "*"
            right = power_at(text, sign.end(), depth, symbols=sign[2] != "/" or not is_unit(text, sign.end()))
        elif joint := PRODUCT.match(text, left.end):
            operator, right = "*", power_at(text, joint.end(), depth, symbols=True)
        elif letters := variables_at(text, left.end):
            operator, right = "*", raised(text, Parsed(letters.end(), None), depth)
        else:
            break
        if right is None:
            break
        left = combined(operator, left, right)
    return left


def is_unit(text: str, at: int) -> bool:
    """Whether letters that are a short unit stand at `at`."""
    letters = LETTERS.match(text, at)
    return letters is not None and bool(SHORT_UNIT.fullmatch(letters[0]))


def variables_at(text: str, at: int) -> re.Match[str] | None:
    """The letters that touch a number if they are variables: up to two that are no unit, or x, y and z alone."""
    letters = LETTERS.match(text, at)
    if letters is None or SHORT_UNIT.fullmatch(letters[0]) or (len(letters[0]) > 2 and set(letters[0]) - {*"xyz"}):
        return None
    return letters


def power_at(text: str, at: int, depth: int, symbols: bool) -> Parsed | None:
    """A factor with its sign and its power."""
    if (sign := SIGN.match(text, at)) and sign.end() < len(text):
        inner = power_at(text, sign.end(), depth + 1, symbols) if depth < MAX_DEPTH else None
        return inner and (inner if sign[1] == "+" else combined("*", MINUS_ONE, inner, sign=True))
    base = factor_at(text, at, depth, symbols)
    base = base and raised(text, base, depth)
    percent = base and PERCENT.match(text, base.end)
    return base._replace(end=percent.end(), percent=True) if base and percent else base


def raised(text: str, base: Parsed, depth: int) -> Parsed:
    """The factor with the power behind it, if one is."""
    mark = POWER.match(text, base.end)
    exponent = mark and argument_at(text, mark.end(), depth, symbols=True)
    if mark and exponent is None and text.startswith("-", mark.end()):
        exponent = number_at(text, mark.end() + 1, depth)
        exponent = exponent and combined("*", MINUS_ONE, exponent)
    return combined("^", base, exponent) if exponent else base


def factor_at(text: str, at: int, depth: int, symbols: bool) -> Parsed | None:
    """A number, fraction, root, bracket, or with `symbols` a letter or a command."""
    if opened := OPEN.match(text, at):
        return bracket_at(text, opened, depth)
    if command := FRACTION.match(text, at):
        above = argument_at(text, command.end(), depth)
        below = above and argument_at(text, above.end, depth)
        return below and combined("/", above, below) if above else None
    if command := ROOT.match(text, at):
        inner = argument_at(text, command.end(), depth)
        return inner and Parsed(inner.end, square_root(inner.value))
    if number := number_at(text, at, depth):
        return number
    symbol = SYMBOL.match(text, at) if symbols else None
    return symbol and Parsed(symbol.end(), None)


def bracket_at(text: str, opened: re.Match[str], depth: int) -> Parsed | None:
    """What a bracket holds, if that is one sum and the bracket is closed."""
    inner = sum_at(text, opened.end(), depth + 1, symbols=True) if depth < MAX_DEPTH else None
    if inner is None:
        return None
    end = (
        len(text) - len(text[inner.end :].lstrip())
        if inner.end < len(text) and text[inner.end].isspace()
        else inner.end
    )
    closed = text.startswith(")" if opened[1] == "(" else "}", end)
    return inner._replace(end=end + 1) if closed else None


def argument_at(text: str, at: int, depth: int, symbols: bool = False) -> Parsed | None:
    """What a command takes, a bracket, whatever it holds, or a digit; with `symbols` what `^` does, any number."""
    if opened := OPEN.match(text, at):
        inner = bracket_at(text, opened, depth)
        if inner is None and not symbols and (held := BRACES.match(text, opened.start(1))):
            return Parsed(held.end(), None)
        return inner
    if symbols:
        return number_at(text, at, depth) or factor_at(text, at, depth, symbols=text[at : at + 1] != "\\")
    digit = DIGIT.match(text, at)
    return digit and Parsed(digit.end(), Decimal(digit[1]))


def number_at(text: str, at: int, depth: int) -> Parsed | None:
    """A number with its fraction (1 1/2), its scale (million) and its per cent."""
    found = NUMBER.match(text, at)
    if found is None:
        return None
    end, value = found.end(), Decimal(found[2].replace(",", "") + (found[3] or ""))
    if spaced := SPACED.match(text, at):
        end, value = spaced.end(), Decimal(spaced[1].replace(" ", ""))
    result = Parsed(end, value)
    if found[2].isdecimal():
        result = mixed(text, result, depth)
    scale = SCALE.match(text, result.end) or (MONEY.match(text, result.end) if found[1] else None)
    if scale:
        name = scale[0].strip().lower()
        tens = Decimal(10 ** SCALES[name if name in SCALES else name[0]])
        result = combined("*", result._replace(end=scale.end()), Parsed(scale.end(), tens))
    return result


def mixed(text: str, whole: Parsed, depth: int) -> Parsed:
    """The whole number with the proper fraction behind it, if one is."""
    part = None
    if found := MIXED.match(text, whole.end):
        above, below = (
            (1, {"half": 2, "third": 3, "quarter": 4}[found[3]]) if found[3] else (int(found[1]), int(found[2]))
        )
        part = Parsed(found.end(), Fraction(above, below)) if below else None
    elif depth < MAX_DEPTH and FRACTION.match(text, whole.end):
        part = factor_at(text, whole.end, max(depth + 1, MAX_DEPTH - 2), symbols=False)
    if part is None or part.value is None or not 0 < part.value < 1:
        return whole
    return combined("+", whole, part)


def combined(operator: str, left: Parsed, right: Parsed, sign: bool = False) -> Parsed:
    """The two as one that ends with the right one; without a value if it is not exact or beyond the limits."""
    value = None
    if left.value is not None and right.value is not None and (sign or not (left.percent or right.percent)):
        value = computed(operator, left.value, right.value)
    return Parsed(right.end, value, left.percent or right.percent)


def computed(operator: str, left: Value, right: Value) -> Value | None:
    """The exact result; None without one or beyond the limits."""
    if isinstance(right, Decimal) and operator == "*" and left == -1:
        return right.copy_negate()
    a, b = fraction(left), fraction(right)
    if a is None or b is None or (operator == "/" and not b):
        return None
    if operator == "^":
        if b.denominator != 1 or abs(b) > MAX_EXPONENT or size(a) * abs(b) > MAX_BITS or (not a and b < 0):
            return None
        result = a ** int(b)
    else:
        result = {"*": a * b, "/": a / (b or 1), "+": a + b, "plus": a + b, "-": a - b, "minus": a - b}[operator]
    return result if size(result) <= MAX_BITS else None


def square_root(value: Value | None) -> Fraction | None:
    """The root, if it is rational."""
    square = None if value is None else fraction(value)
    if square is None or square < 0:
        return None
    root = Fraction(isqrt(square.numerator), isqrt(square.denominator))
    return root if root * root == square else None


def size(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def fraction(value: Value) -> Fraction | None:
    """The value to compute with; None if it is beyond the limits."""
    if isinstance(value, Decimal):
        _, digits, exponent = value.as_tuple()
        if len(digits) + abs(int(exponent)) > MAX_BITS // 4:
            return None
    return Fraction(value)


def written(value: Value) -> str:
    """The value in digits: a number as it was written, a computed one in its shortest form."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if value.denominator == 1:
        return str(value.numerator)
    if 10**PLACES % value.denominator:
        return f"{value.numerator}/{value.denominator}"
    digits = Decimal(value.numerator * (10**PLACES // value.denominator))
    return f"{digits.scaleb(-PLACES, Context(prec=MAX_BITS)):f}".rstrip("0")

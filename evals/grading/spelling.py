r"""One spelling for what can be written in many: digits and dashes of other scripts, typography of LaTeX and Markdown.

`plain` keeps LaTeX readable to a symbolic checker; `bare` also drops what it needs and a number does not (`\text`).
Every step takes time linear in the text.
"""

from __future__ import annotations

import re

FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
CHARACTERS = str.maketrans(
    {
        **FULL_WIDTH,
        **dict.fromkeys("\u2010\u2011\u2012\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2007\u2009\u200a\u202f\u3000", " "),
        **dict.fromkeys("\u2044\u2215", "/"),
        **dict.fromkeys("\u22c5\u2219\u2217", "·"),
        "\u2018": "'",
        "\u2019": "'",
        "\u2015": "\u2014",
        "\u3002": ". ",
        "½": " 1/2",
        "⅓": " 1/3",
        "⅔": " 2/3",
        "¼": " 1/4",
        "¾": " 3/4",
    }
)
"""En dash and em dash stay: between numbers they are no minus."""
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
EXPONENT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
GROUPS = re.compile(r"(?<![\w.,'\u2019])\d{1,3}(?:['\u2019\u00a0\u2009\u202f]\d{3})+(?!\d)")
"""Thousands by apostrophe or thin space."""
ROOT = re.compile(r"(?:√|\\?\bsqrt)\s*\(([^()]*)\)|√\s*(\d+(?:\.\d+)?)")
TYPOGRAPHY = re.compile(r"(\\\\)|\\([$%])|\{(,)\}|((?<=[\d)])\*\*(?=[\d(]))|(\\[!,]|\*\*|__)|\\[ ;:]|~")
"""A row separator, a sign that LaTeX has to escape, a comma without space, a power, nothing and bold, spaces."""
WRAPPER = re.compile(r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf|it)|mbox|operatorname)\s*\{([^{}]*)\}")
LAYOUT = re.compile(r"\\(?:left|right|displaystyle|big|Big)(?![A-Za-z])|(?<!\\)\\[()\[\]]|\\q?quad(?![A-Za-z])")
MAX_NESTING = 4
"""Wrappers like \\text{\\textbf{18}} are opened this deep; deeper ones stay and make the answer `complex`."""


def plain(text: str) -> str:
    """The text in one spelling, its LaTeX still LaTeX."""
    if "'" in text or not text.isascii():
        text = GROUPS.sub(lambda group: "".join(re.findall(r"\d", group[0])), text)
        text = EXPONENT.sub(lambda raised: f"^{{{raised[0].translate(RAISED)}}}", text.translate(CHARACTERS))
    if "√" in text or "sqrt" in text:
        text = ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    if any(mark in text for mark in ("\\", "**", "__", "~", "{,}")):
        text = TYPOGRAPHY.sub(spelled, text)
    return text


def spelled(match: re.Match[str]) -> str:
    """What stands for a match of TYPOGRAPHY."""
    if match[4]:
        return "^"
    return match[1] or match[2] or match[3] or ("" if match[5] else " ")


def bare(text: str) -> str:
    r"""A plain text without `\text`, `\left` and the like: spaces stand for what they kept apart."""
    if "\\" not in text:
        return text
    for _ in range(MAX_NESTING):
        text, opened = WRAPPER.subn(r" \1 ", text)
        if not opened:
            break
    return LAYOUT.sub(" ", text)

"""The GSM8K scores of lm-evaluation-harness (0.4.13), decision for decision. Knows no numbers: it compares strings.

Their faults are kept on purpose, so that a score can stand beside published ones; `numeric.py` is the repaired grader.
"""

from __future__ import annotations

import re

from evals.types import Grade

STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
COT_STRICT = re.compile(r"The answer is (\-?[0-9\.\,]+).")
"""The `strict-match` of the chain-of-thought tasks. Its last `.` is any character, so that a text which ends in
`The answer is 18` gives 1."""
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
FINAL_DOT = re.compile(r"\.$")


def strict(text: str, answer: str, pattern: re.Pattern[str] = STRICT) -> Grade:
    """`strict-match`: the first number after `#### ` (or what `pattern` says) equals the gold as a string.

    `text` is the answer, already cut at its stop string; `answer` is the data set's solution, `#### gold` included.
    The grade's answer is the extracted string, None where lm-eval says `[invalid]`.
    """
    found = pattern.search(text)
    return grade(found[1] if found else None, answer)


def flexible(text: str, answer: str) -> Grade:
    """`flexible-extract`: the last thing that looks like a number equals the gold as a string. Else as `strict`."""
    found = list(FLEXIBLE.finditer(text))
    return grade(found[-1][0] if found else None, answer)


def grade(extracted: str | None, answer: str) -> Grade:
    """The verdict on an extracted string."""
    if extracted is None:
        return Grade(False, None, "none")
    return Grade(normalised(extracted) == normalised(answer), extracted, "number")


def normalised(text: str) -> str:
    r"""What both sides become before they are compared: lm-eval's `regexes_to_ignore` in their order, then lower case.

    The patterns are `,`, `\$`, `(?s).*#### ` and `\.$`. The third is written as a search from the right: the regular
    expression needs quadratic time on long texts.
    """
    bare = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return FINAL_DOT.sub("", bare).lower()

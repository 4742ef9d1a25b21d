"""The scores `strict` and `flexible`, decided as lm-evaluation-harness 0.4.13 does, by strings.

Their faults are kept on purpose, so that a score can stand beside published ones.
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

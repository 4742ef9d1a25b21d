"""What a text that was cut off at the token limit had answered by then.

Its last number is no answer: it is whatever stood where the text was cut. An answer counts that is marked (a closed
box, `####`, a phrase) and that no continuation would change: `#### 18` may become 180, `#### 18 eggs` may not.
"""

from __future__ import annotations

import re

from evals.grading.numeric import extract

ENDED = re.compile(r"[.!?]\s|[。！？\n]")
"""Where a sentence has ended."""
CONTINUATIONS = ("\n7", "\n8", "7", "7/8", "million", "%")
"""What a cut-off text might have gone on with. A later line replaces an answer that is not marked, unless it happens to
have the same number, hence two of them; the others would make the last number another one."""


def finished(text: str) -> str | None:
    """The cut-off text if its answer is whole, else the text up to where its last sentence ended, if that has one; None
    where neither does."""
    ends = [match.end() for match in ENDED.finditer(text)]
    return next((kept for kept in (text, text[: ends[-1] if ends else 0]) if is_whole(kept)), None)


def is_whole(text: str) -> bool:
    """Whether the final answer of the text is there and stays the same however the text goes on."""
    answer = extract(text)
    return answer.kind != "none" and all(extract(text + more) == answer for more in CONTINUATIONS)

"""What a text that was cut off at the token limit had answered by then.

Its last number is no answer: it is whatever stood where the text was cut. An answer counts that is marked (a closed
box, `####`, a phrase) and that no continuation would change: `#### 18` may become 180, `#### 18 eggs` may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from evals.grading.numeric import extract, read_at
from evals.grading.place import find
from evals.grading.spelling import bare, plain

ENDED = re.compile(r"[.!?]\s|[。！？\n]")
"""Where a sentence has ended."""
CONTINUATIONS = ("\n7", "\n8", "7", "7/8", "million", "%")
"""What a cut-off text might have gone on with. A later line replaces an answer that is not marked, unless it happens to
have the same number, hence two of them; the others would make the last number another one."""


def finished(text: str) -> str | None:
    """The cut-off text if its answer is whole, else the text up to where its last sentence ended, if that has one; None
    where neither does."""
    return text if is_whole(text) else next(filter(is_whole, up_to_last_end(text)), None)


def up_to_last_end(text: str) -> Iterator[str]:
    """The text up to where its last sentence ended, if one did."""
    ends = [match.end() for match in ENDED.finditer(text)]
    yield from (text[:end] for end in ends[-1:])


def is_whole(text: str) -> bool:
    """Whether the final answer of the text is there and stays the same however the text goes on.

    What is not marked never does, since a later line replaces it, and a closed box always. Of any other text only what
    follows the mark is looked at again.
    """
    spelled = bare(plain(text))
    place = find(spelled)
    if place is None:
        return False
    answer, rest = read_at(place), spelled[place.start :]
    return place.mark == "box" or all(extract(rest + more) == answer for more in CONTINUATIONS)

"""Stop strings: cuts a text at the earliest one, and tells whether an answer's tokens have reached one.

A stop string ends an answer for good, as the EOS token does, so the rule below must be a function of the answer's
tokens alone: it keeps no state between calls except what it has learnt about single tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from evals.types import UserError

UNDECODABLE = "\ufffd"
"""What a decoder writes for bytes that are no (or not yet a) character."""

MARGIN = 8
"""Characters of context beyond the longest stop string: a tail that begins inside a character is wrong by at most 3."""


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """`text` up to the earliest stop string, which is not kept; the whole text if there is none."""
    return text[: min((at for stop in stop_strings if (at := text.find(stop)) >= 0), default=len(text))]


class StopStrings:
    """Tells whether the decoded text of an answer's token ids contains a stop string; made for `Prompt.stopped`.

    It is called after every token. The last token alone decides almost always (each is examined once, when it is first
    seen); otherwise the end of the answer is decoded, and only a hit or a broken character decodes all of it.

    Exact if it was called before for every shorter beginning and was False, as in generation: what is new then
    ends in the last token. In a byte-level vocabulary a text contains a stop string if and only if its bytes do,
    because a stop string begins with the first byte of a character, where every decoder starts afresh. So a token whose
    own text is whole can complete a stop string only if it contains one or begins with the end of one; a token that
    breaks a character is always suspect. Vocabularies that drop a leading space when they decode are covered by
    trying both.
    """

    def __init__(self, stop_strings: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        """`decode` maps token ids to text. Raises UserError for a stop string that no answer can be said to contain."""
        for stop in stop_strings:
            if not stop or UNDECODABLE in stop:
                raise UserError(
                    f"The stop string {stop!r} in task.stop cannot be found in a text: it is empty or has U+FFFD, "
                    "which stands for undecodable bytes; remove it."
                )
        self.stop_strings = tuple(stop_strings)
        self._decode = decode
        self._ends = {stop[start:] for stop in self.stop_strings for start in range(len(stop))}
        self._longest = max(map(len, self.stop_strings), default=0)
        self._length = cache(self._suspect)

    def __call__(self, tokens: Sequence[int]) -> bool:
        """True if the text of `tokens` contains a stop string; see the class for when this is exact."""
        if not tokens:
            return False
        length = self._length(tokens[-1])
        if length is None:  # almost always, and after every token
            return False
        end = self._end(tokens, self._longest + MARGIN + length)
        return (UNDECODABLE in end or self._hit(end)) and self._hit(self._decode(tokens))

    def _hit(self, text: str) -> bool:
        return any(stop in text for stop in self.stop_strings)

    def _suspect(self, token: int) -> int | None:
        """Length of this token's text, None where no stop string can end within it."""
        text = self._decode([token])
        spellings = (text, " " + text, text.lstrip(" "))
        completes = UNDECODABLE in text or any(
            self._hit(spelling) or any(spelling.startswith(end) for end in self._ends) for spelling in spellings
        )
        return len(text) if completes else None

    def _end(self, tokens: Sequence[int], needed: int) -> str:
        """Text of the last tokens, `needed` characters and more: a stop string can end anywhere in the last token."""
        count = self._longest + MARGIN
        while count < len(tokens):
            text = self._decode(tokens[-count:])
            if len(text) >= needed:
                return text
            count *= 2
        return self._decode(tokens)

"""Thoughts: how much of an answer is a model's thinking before it answers, which is not graded.

What stands before the last end-of-thought token is thought, whoever opened it: many chat templates end in the token
that opens one. A thought that is opened and never ended has no answer behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from evals.types import Thought

OPENINGS = {
    "</think>": "<think>",
    "[/THINK]": "[THINK]",
    "<|END_THINKING|>": "<|START_THINKING|>",
    "</seed:think>": "<seed:think>",
    "<|channel|>final<|message|>": "<|channel|>analysis<|message|>",
}
"""What ends a thought of models that have one -> what opens it."""
USUAL_END = next(iter(OPENINGS))


def end_in(template: str) -> str:
    """The end-of-thought token that a chat template names; the usual one where it names none."""
    return next((end for end in OPENINGS if end in template), USUAL_END)


def opening_of(end: str) -> str | None:
    """What opens a thought that `end` ends: the same without its slash; None where that is unknown."""
    return OPENINGS.get(end) or (end.replace("/", "", 1) if "/" in end else None)


def thought_in(text: str, end: str) -> Thought:
    """How much of a text is thought, by the text alone; `end`: what ends one, empty for none."""
    closed = text.rfind(end) + len(end) if end and end in text else 0
    opening = opening_of(end)
    return "open" if opening and opening in text[closed:] else closed


class Thoughts(NamedTuple):
    """Tells how much of a model's answer is thought, by the tokens of it.

    Where the tokenizer has the end as one token, only that counts, not its characters; elsewhere the text decides.
    """

    end: str
    decode: Callable[[Sequence[int]], str]
    added: Mapping[str, int]
    """The tokens that the tokenizer has beside its vocabulary, such as those that begin a turn."""

    def opened_by(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt leaves a thought open: behind its last added token, which may be the opening itself.

        What comes before, such as a user's words about thoughts, opens none.
        """
        added = set(self.added.values())
        last = next((i for i in range(len(prompt) - 1, -1, -1) if prompt[i] in added), 0)
        return thought_in(self.decode(prompt[last:]), self.end) == "open"

    def of(self, tokens: Sequence[int], text: str, opened: bool) -> Thought:
        """How much of `text`, the text of these answer tokens, is thought, if the prompt has `opened` one or not."""
        thought = self._of(tokens, text)
        return "open" if opened and not thought else thought

    def _of(self, tokens: Sequence[int], text: str) -> Thought:
        end, opening = self.added.get(self.end), self.added.get(opening_of(self.end) or "")
        if end is None:
            return thought_in(text, self.end)
        ends = [place for place, token in enumerate(tokens, start=1) if token == end]
        if opening is not None and opening in tokens[ends[-1] if ends else 0 :]:
            return "open"
        return min(len(self.decode(tokens[: ends[-1]])), len(text)) if ends else 0

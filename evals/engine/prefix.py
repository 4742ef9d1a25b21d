"""Which pages hold which prompt: an index of written pages by their tokens. Knows no sequence and no count of owners.

A page is named by the page before it and its own tokens, so that a chain of pages stands for a whole prefix. Whoever
owns a page owns those before it too, and an entry vanishes with its page, so that what is found is alive and right.
"""

from __future__ import annotations

from collections.abc import Sequence

Key = tuple[int, tuple[int, ...]]
"""The page before, -1 for none, and the page's tokens."""


class PrefixIndex:
    """Chains of full pages of prompt tokens. They are entered and found in whole units of `unit` pages."""

    def __init__(self, page_tokens: int, unit: int) -> None:
        self._size, self._unit = page_tokens, unit
        self._page: dict[Key, int] = {}
        self._key: dict[int, Key] = {}

    def find(self, tokens: Sequence[int]) -> list[int]:
        """The longest chain of pages for a prefix of `tokens`, in whole units; shorter than a unit is empty."""
        found: list[int] = []
        for key_tokens in self._split(tokens):
            page = self._page.get((found[-1] if found else -1, key_tokens))
            if page is None:
                break
            found.append(page)
        return found[: len(found) // self._unit * self._unit]

    def add(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Enter the pages that hold `tokens` from the first on, as far as they make whole units.

        Ends where another page stands for the same tokens: what follows could not be found.
        """
        before = -1
        for page, key_tokens in zip(pages, self._split(tokens), strict=False):
            if self._page.setdefault((before, key_tokens), page) != page:
                return
            self._key[page] = (before, key_tokens)
            before = page

    def forget(self, page: int) -> None:
        """The page is free: nothing may find it any more."""
        key = self._key.pop(page, None)
        if key is not None:
            del self._page[key]

    def pages(self) -> set[int]:
        """All that can be found; for the audit."""
        return set(self._key)

    def _split(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """Tokens of each page, as far as they make whole units."""
        length = len(tokens) // (self._size * self._unit) * self._unit
        return [tuple(tokens[i * self._size : (i + 1) * self._size]) for i in range(length)]

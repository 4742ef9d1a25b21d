"""Which pages hold which prompt: an index of written pages by their tokens. Knows no sequence and no count of owners.

A page is named by the page before it and the tokens of the unit that it was written in, so that a chain of pages stands
for a whole prefix. Whoever owns a page owns those before it too, and an entry vanishes with its page, so that what is
found is alive and right.
"""

from __future__ import annotations

from collections.abc import Sequence

Key = tuple[int, tuple[int, ...]]
"""The page before, -1 for none, and the unit's tokens."""


class PrefixIndex:
    """Chains of pages of prompt tokens, found in whole units of `unit` pages or as far as the whole prompt."""

    def __init__(self, page_tokens: int, unit: int) -> None:
        self._size, self._unit = page_tokens, unit
        self._pages: dict[Key, dict[int, None]] = {}
        """Oldest first. The last page of a prompt, which its sequence goes on in, has a copy in every sequence."""
        self._key: dict[int, Key] = {}

    def find(self, tokens: Sequence[int]) -> list[int]:
        """Pages that hold all of `tokens`, or else the longest prefix that is whole units."""
        found: list[int] = []
        for content in self._split(tokens):
            pages = self._pages.get((found[-1] if found else -1, content))
            if pages is None:
                return found[: len(found) // self._unit * self._unit]
            found.append(next(iter(pages)))
        return found

    def add(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Enter the pages that hold `tokens` from the first on."""
        before = -1
        for page, content in zip(pages, self._split(tokens), strict=False):
            self._key[page] = before, content
            self._pages.setdefault(self._key[page], {})[page] = None
            before = page

    def forget(self, page: int) -> None:
        """The page is free: nothing may find it any more."""
        key = self._key.pop(page, None)
        if key is not None:
            del self._pages[key][page]
            if not self._pages[key]:
                del self._pages[key]

    def pages(self) -> set[int]:
        """All that can be found; for the audit."""
        return set(self._key)

    def _split(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """Of every page the tokens of its unit; the last unit is what remains."""
        span = self._size * self._unit
        units = [tuple(tokens[start : start + span]) for start in range(0, len(tokens), span)]
        return [unit for unit in units for _ in range(0, len(unit), self._size)]

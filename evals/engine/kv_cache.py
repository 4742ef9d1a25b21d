"""The page pool: which sequence owns which pages of keys and values.

A sequence is a list of pages of `PAGE` tokens. A shared page is never written to, so that sequences share whole pages
by counting references; one that branches inside a page has a copy of that page. A sequence gets pages up to its limit
when it opens and returns the surplus when it ends: none grows in flight. Pages of prompts are found again by their
tokens as long as a sequence owns them. Page numbers never reach arithmetic: results do not depend on the allocation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evals.types import Handle

PAGE = 16
"""Tokens per page."""

SCRATCH = 0
"""The page that rows without a sequence write to; what is read from it never affects a result."""

PrefixKey = tuple[int, tuple[int, ...]]
"""Key of a page in the prefix index: the page before it, -1 for none, and the tokens of its unit."""


class PrefixIndex:
    """Finds the pages that hold the tokens of a prompt, in whole units of `unit` pages or the whole prompt."""

    def __init__(self, page_tokens: int, unit: int) -> None:
        self._size, self._unit = page_tokens, unit
        self._pages: dict[PrefixKey, dict[int, None]] = {}
        """Pages by key, oldest first; every sequence has its own copy of a prompt's last page, to go on in."""
        self._key: dict[int, PrefixKey] = {}

    def find(self, tokens: Sequence[int]) -> list[int]:
        """Pages that hold all of `tokens`, or else the longest prefix that is whole units."""
        prefix: list[int] = []
        for content in self._split(tokens):
            pages = self._pages.get((prefix[-1] if prefix else -1, content))
            if pages is None:
                return prefix[: len(prefix) // self._unit * self._unit]
            prefix.append(next(iter(pages)))
        return prefix

    def add(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Enter the pages that hold `tokens` from the first on."""
        before = -1
        for page, content in zip(pages, self._split(tokens), strict=False):
            self._key[page] = before, content
            self._pages.setdefault(self._key[page], {})[page] = None
            before = page

    def forget(self, page: int) -> None:
        """Remove a page that is free from now on."""
        key = self._key.pop(page, None)
        if key is not None:
            del self._pages[key][page]
            if not self._pages[key]:
                del self._pages[key]

    def _split(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """The tokens of every page's unit, page by page; the last unit may be shorter."""
        span = self._size * self._unit
        units = [tuple(tokens[start : start + span]) for start in range(0, len(tokens), span)]
        return [unit for unit in units for _ in range(0, len(unit), self._size)]


class Allocation(NamedTuple):
    """The pages given to a new sequence, and what has to be done to them before it is written to."""

    handle: Handle
    pages: tuple[int, ...]
    """All its pages, in order of position."""
    fresh: tuple[int, ...]
    """Those it owns alone; they may hold anything and have to be cleared."""
    copy: tuple[int, int] | None
    """(from, to): the page to copy, of whose tokens the first are shared; `to` is the first of `fresh`."""


class PagePool:
    """Gives pages to sequences and counts the references to each page; not thread-safe."""

    def __init__(self, num_pages: int, share_unit: int = 1) -> None:
        """`num_pages` includes the scratch page; beginnings of prompts are shared in whole units of `share_unit` pages.

        Raises ValueError for less than two pages.
        """
        self._share_unit = share_unit
        self._pages: dict[Handle, list[int]] = {}
        self._next = 0
        self.reset(num_pages)

    def reset(self, num_pages: int) -> None:
        """Start anew with so many pages, all free: sequences stay held, under their handles, without pages.

        Raises ValueError for less than two pages.
        """
        if num_pages < 2:
            raise ValueError(f"a pool of {num_pages} pages has none to lend: one is the scratch page")
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, SCRATCH, -1))
        self._count = [0] * num_pages
        self._pages = {handle: [] for handle in self._pages}
        self._prefixes = PrefixIndex(PAGE, self._share_unit)

    @property
    def num_free(self) -> int:
        """Pages that belong to no sequence."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages that belong to a sequence."""
        return self.capacity - self.num_free

    @property
    def capacity(self) -> int:
        """Pages that all sequences together can have."""
        return self.num_pages - 1

    @staticmethod
    def pages_for(position: int, limit: int) -> int:
        """Pages that a sequence needs of its own if it starts writing at `position` and grows to `limit` tokens.

        The last token of a sequence is never fed to the model by the sequence itself, so it needs no place.
        """
        return -(-max(limit - 1, position + 1) // PAGE) - position // PAGE

    def open(self, parent: Handle | None, position: int, limit: int) -> Allocation:
        """A new sequence that shares its parent's first `position` tokens and can grow to `limit` tokens.

        Raises ValueError for an unknown parent or one that is too short, MemoryError if the free pages do not suffice.
        """
        inherited = [] if parent is None else self._pages_of(parent)
        if len(inherited) * PAGE < position:
            raise ValueError(f"the parent holds {len(inherited)} pages, which do not reach position {position}")
        return self._open(inherited, position, limit)

    def open_prompt(self, prefix: Sequence[int], limit: int) -> tuple[Allocation, int]:
        """A new sequence that begins with `prefix` and can grow to `limit` tokens, and how many tokens are written.

        It shares what the pages of others hold: the prefix up to its last token, or else whole units of it. The caller
        has to write the rest before anything reads it; then others may share it too. Raises MemoryError as `open` does.
        """
        written = prefix[:-1]
        shared = self._prefixes.find(written)
        present = min(len(shared) * PAGE, len(written))
        allocation = self._open(shared, present, limit)
        self._prefixes.add(written, allocation.pages)
        return allocation, present

    def reaches(self, handle: Handle, position: int) -> bool:
        """Whether a sequence has pages for its first `position` tokens; after `reset` it has not."""
        return len(self._pages_of(handle)) * PAGE >= position

    def distinct(self, handles: Iterable[Handle]) -> int:
        """Number of pages that these sequences have together, shared ones counted once."""
        return len(set().union(*(self._pages_of(handle) for handle in handles)))

    def end(self, handle: Handle, length: int) -> None:
        """Return the surplus pages of a sequence that has ended with `length` tokens, the last of them not written."""
        pages = self._pages_of(handle)
        used = -(-(length - 1) // PAGE)
        surplus = pages[used:]
        del pages[used:]
        self._release(surplus)

    def fork(self, handle: Handle) -> Handle:
        """A second handle of an ended sequence; its pages stay until both are dropped."""
        return self._add(self._pages_of(handle))

    def drop(self, handle: Handle) -> None:
        """Release a sequence; pages that others share stay. Raises ValueError for an unknown handle."""
        pages = self._pages_of(handle)
        del self._pages[handle]
        self._release(pages)

    def _pages_of(self, handle: Handle) -> list[int]:
        if handle not in self._pages:
            raise ValueError(f"sequence {handle} is not held: it was released, or never was")
        return self._pages[handle]

    def _open(self, inherited: Sequence[int], position: int, limit: int) -> Allocation:
        shared, rest = divmod(position, PAGE)
        needed = self.pages_for(position, limit)
        if needed > self.num_free:
            raise MemoryError(f"{needed} pages are needed and {self.num_free} are free")
        fresh = [self._free.pop() for _ in range(needed)]
        handle = self._add([*inherited[:shared], *fresh])
        copy = (inherited[shared], fresh[0]) if rest else None
        return Allocation(handle, tuple(self._pages[handle]), tuple(fresh), copy)

    def _add(self, pages: Sequence[int]) -> Handle:
        handle = Handle(self._next)
        self._next += 1
        self._pages[handle] = list(pages)
        for page in pages:
            self._count[page] += 1
        return handle

    def _release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._count[page] -= 1
            if self._count[page] == 0:
                self._prefixes.forget(page)
                self._free.append(page)

"""The page pool: which sequence owns which pages of keys and values. Knows no model, no chain and no request.

A sequence is a list of pages of `PAGE` tokens. Nobody writes to a page that is shared, so that sequences share whole
pages by counting references; a draft copies the one page that it shares in part. A draft reserves pages up to its limit
when it opens and returns the surplus when it ends: nothing grows in flight. Pages of prompts are found again by their
tokens as long as somebody owns them. Page numbers never reach arithmetic, so that results do not
depend on the allocation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evals.types import Handle

PAGE = 16
"""Tokens per page."""

SCRATCH = 0
"""The page that rows without a sequence write to; nobody reads it for anything that counts."""

PrefixKey = tuple[int, tuple[int, ...]]
"""The page before, -1 for none, and the unit's tokens."""


class PrefixIndex:
    """Chains of pages of prompt tokens, found in whole units of `unit` pages or as far as the whole prompt."""

    def __init__(self, page_tokens: int, unit: int) -> None:
        self._size, self._unit = page_tokens, unit
        self._pages: dict[PrefixKey, dict[int, None]] = {}
        """Oldest first. The last page of a prompt, which its sequence goes on in, has a copy in every sequence."""
        self._key: dict[int, PrefixKey] = {}

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

    def _split(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """Of every page the tokens of its unit; the last unit is what remains."""
        span = self._size * self._unit
        units = [tuple(tokens[start : start + span]) for start in range(0, len(tokens), span)]
        return [unit for unit in units for _ in range(0, len(unit), self._size)]


class Allocation(NamedTuple):
    """A new sequence and what has to happen to its pages before it is written to."""

    handle: Handle
    pages: tuple[int, ...]
    """All its pages, in order of position."""
    fresh: tuple[int, ...]
    """Those it owns alone; they may hold anything and have to be cleared."""
    copy: tuple[int, int] | None
    """(from, to): the page whose beginning is another sequence's; `to` is the first of `fresh`."""


class PagePool:
    """Bookkeeping of pages: open, end, keep, drop, fork and share. Plain Python; not thread-safe."""

    def __init__(self, num_pages: int, share_unit: int = 1) -> None:
        """`num_pages` counts the scratch page; beginnings of prompts are shared in whole units of `share_unit` pages.

        Raises ValueError for less than two pages.
        """
        self._share_unit = share_unit
        self._pages: dict[Handle, list[int]] = {}
        self._parent: dict[Handle, Handle] = {}
        self._next = 0
        self.reset(num_pages)

    def reset(self, num_pages: int) -> None:
        """Have so many pages, all of them free: sequences stay held, under their handles, without any.

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
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages that belong to some sequence."""
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

    def open(self, parent: Handle | None, position: int, limit: int, replaces: Handle | None = None) -> Allocation:
        """A sequence that shares the parent's first `position` tokens and writes from there on, to `limit` tokens.

        `replaces` is the handle that `keep` releases, where that is another name of the parent. Raises
        ValueError for an unknown parent or one that is too short, MemoryError if the free pages do not suffice.
        """
        inherited = [] if parent is None else self._pages_of(parent)
        if len(inherited) * PAGE < position:
            raise ValueError(f"the parent holds {len(inherited)} pages, which do not reach position {position}")
        return self._open(inherited, position, limit, parent if replaces is None else replaces)

    def open_prompt(self, prefix: Sequence[int], limit: int, replaces: Handle | None = None) -> tuple[Allocation, int]:
        """A sequence that is to hold `prefix` and grow to `limit` tokens, and how many of them are there already.

        It shares what somebody's pages hold: all of it up to the last token, or else whole units. The rest the caller
        has to write before anything reads it, whereupon others may share it too. `replaces` is the handle that `keep`
        releases. Raises MemoryError as `open` does.
        """
        written = prefix[:-1]
        found = self._prefixes.find(written)
        present = min(len(found) * PAGE, len(written))
        allocation = self._open(found, present, limit, replaces)
        self._prefixes.add(written, allocation.pages)
        return allocation, present

    def reaches(self, handle: Handle, position: int) -> bool:
        """Whether a sequence has pages for its first `position` tokens; after `reset` it has not."""
        return len(self._pages_of(handle)) * PAGE >= position

    def distinct(self, handles: Iterable[Handle]) -> int:
        """Pages that these sequences have together."""
        return len(set().union(*(self._pages_of(handle) for handle in handles)))

    def end(self, handle: Handle, length: int) -> None:
        """The sequence has ended with `length` tokens, the last of them not written: its surplus pages go back."""
        pages = self._pages_of(handle)
        used = -(-(length - 1) // PAGE)
        surplus = pages[used:]
        del pages[used:]
        self._release(surplus)

    def fork(self, handle: Handle) -> Handle:
        """A second name for an ended sequence; it lives until both are dropped."""
        return self._add(self._pages_of(handle), None)

    def drop(self, handle: Handle) -> None:
        """Release a sequence; pages that others share stay. Raises ValueError for an unknown handle."""
        pages = self._pages_of(handle)
        del self._pages[handle]
        self._parent.pop(handle, None)
        self._release(pages)

    def keep(self, handle: Handle) -> Handle | None:
        """This draft replaces its parent, which is dropped if it is still held; returns the handle dropped."""
        self._pages_of(handle)
        parent = self._parent.pop(handle, None)
        if parent is None or parent not in self._pages:
            return None
        self.drop(parent)
        return parent

    def _pages_of(self, handle: Handle) -> list[int]:
        if handle not in self._pages:
            raise ValueError(f"sequence {handle} is not held: it was released, or never was")
        return self._pages[handle]

    def _open(self, inherited: Sequence[int], position: int, limit: int, replaces: Handle | None) -> Allocation:
        shared, rest = divmod(position, PAGE)
        needed = self.pages_for(position, limit)
        if needed > self.num_free:
            raise MemoryError(f"{needed} pages are needed and {self.num_free} are free")
        fresh = [self._free.pop() for _ in range(needed)]
        handle = self._add([*inherited[:shared], *fresh], replaces)
        copy = (inherited[shared], fresh[0]) if rest else None
        return Allocation(handle, tuple(self._pages[handle]), tuple(fresh), copy)

    def _add(self, pages: Sequence[int], parent: Handle | None) -> Handle:
        handle = Handle(self._next)
        self._next += 1
        self._pages[handle] = list(pages)
        if parent is not None:
            self._parent[handle] = parent
        for page in pages:
            self._count[page] += 1
        return handle

    def _release(self, pages: Iterable[int]) -> None:
        for page in pages:
            self._count[page] -= 1
            if self._count[page] == 0:
                self._prefixes.forget(page)
                self._free.append(page)

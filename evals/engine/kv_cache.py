"""The page pool: which sequence owns which pages of keys and values. Knows no model, no chain and no request.

A sequence is a list of pages of `PAGE` tokens. Nobody writes to a page that is shared, so that sequences share whole
pages by counting references; a draft copies the one page that it shares in part. A draft reserves pages up to its limit
when it opens and returns the surplus when it ends: nothing grows in flight. Pages of prompts are found again by their
tokens (prefix.py) as long as somebody owns them. Page numbers never reach arithmetic, so that results do not
depend on the allocation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from evals.engine.prefix import PrefixIndex
from evals.types import Handle

PAGE = 16
"""Tokens per page."""

SCRATCH = 0
"""The page that rows without a sequence write to; nobody reads it for anything that counts."""


class Opening(NamedTuple):
    """A new sequence and what has to happen to its pages before it is written to."""

    handle: Handle
    pages: tuple[int, ...]
    """All its pages, in order of position."""
    fresh: tuple[int, ...]
    """Those it owns alone; they may hold anything and have to be cleared."""
    copy: tuple[int, int] | None
    """(from, to): the page whose beginning is another sequence's; `to` is the first of `fresh`."""


class PagePool:
    """Bookkeeping of pages: open, end, keep, drop, fork, share, and an audit. Plain Python; not thread-safe."""

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
        return self.num_pages - 1 - len(self._free)

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

    def open(self, parent: Handle | None, position: int, limit: int, replaces: Handle | None = None) -> Opening:
        """A sequence that shares the parent's first `position` tokens and writes from there on, to `limit` tokens.

        `replaces` is the handle that `keep` releases, where that is another name of the parent. Raises
        ValueError for an unknown parent or one that is too short, MemoryError if the free pages do not suffice.
        """
        inherited = [] if parent is None else self._pages_of(parent)
        if len(inherited) * PAGE < position:
            raise ValueError(f"the parent holds {len(inherited)} pages, which do not reach position {position}")
        return self._open(inherited, position, limit, parent if replaces is None else replaces)

    def open_prompt(self, prefix: Sequence[int], limit: int, replaces: Handle | None = None) -> tuple[Opening, int]:
        """A sequence that is to hold `prefix` and grow to `limit` tokens, and how many of them are there already.

        It shares what somebody's pages hold: all of it up to the last token, or else whole units. The rest the caller
        has to write before anything reads it, whereupon others may share it too. `replaces` is the handle that `keep`
        releases. Raises MemoryError as `open` does.
        """
        written = prefix[:-1]
        found = self._prefixes.find(written)
        present = min(len(found) * PAGE, len(written))
        opening = self._open(found, present, limit, replaces)
        self._prefixes.add(written, opening.pages)
        return opening, present

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

    def audit(self) -> None:
        """Recount everything. Raises RuntimeError naming the first page whose count is wrong."""
        counted = Counter(page for pages in self._pages.values() for page in pages)
        free = set(self._free)
        if len(free) != len(self._free):
            raise RuntimeError("a page is free twice")
        for page in range(self.num_pages):
            if counted[page] != self._count[page]:
                raise RuntimeError(f"page {page} counts {self._count[page]} owners and has {counted[page]}")
            if page != SCRATCH and (page in free) == (counted[page] > 0):
                raise RuntimeError(f"page {page} is {'both free and owned' if page in free else 'lost'}")
        if counted[SCRATCH] or SCRATCH in free:
            raise RuntimeError("the scratch page was given away")
        if dead := self._prefixes.pages() & free:
            raise RuntimeError(f"page {min(dead)} is free and can be found by its tokens")

    def _pages_of(self, handle: Handle) -> list[int]:
        if handle not in self._pages:
            raise ValueError(f"sequence {handle} is not held: it was released, or never was")
        return self._pages[handle]

    def _take(self, count: int) -> list[int]:
        if count > len(self._free):
            raise MemoryError(f"{count} pages are needed and {len(self._free)} are free")
        return [self._free.pop() for _ in range(count)]

    def _open(self, inherited: Sequence[int], position: int, limit: int, replaces: Handle | None) -> Opening:
        shared, rest = divmod(position, PAGE)
        fresh = self._take(self.pages_for(position, limit))
        handle = self._add([*inherited[:shared], *fresh], replaces)
        copy = (inherited[shared], fresh[0]) if rest else None
        return Opening(handle, tuple(self._pages[handle]), tuple(fresh), copy)

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


class CacheShape(NamedTuple):
    """Shape of the keys, and of the values, of every attention layer."""

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    devices: tuple[torch.device, ...] = ()
    """Of every layer, where a model lies on several; else all are where the model is."""

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        return 2 * self.num_layers * self.num_heads * self.head_dim * PAGE * self.dtype.itemsize


class KeysValues:
    """The tensors behind a pool, one for the layers of each device: [2, layers, pages, heads, PAGE, head_dim], keys
    first."""

    def __init__(self, shape: CacheShape, num_pages: int, device: torch.device) -> None:
        rest = (num_pages, shape.num_heads, PAGE, shape.head_dim)
        self.parts: list[torch.Tensor] = []
        for place, layers in groupby(shape.devices or (device,) * shape.num_layers):
            self.parts.append(torch.zeros(2, len(list(layers)), *rest, dtype=shape.dtype, device=place))

    @property
    def tensor(self) -> torch.Tensor:
        """That of all layers. Raises ValueError where they lie on several devices."""
        (part,) = self.parts
        return part

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each [pages, heads, PAGE, head_dim] and by all appearances alone in its memory.

        A compiler that sees two tensors of one storage being written to copies the storage to keep them apart.
        """
        for part in self.parts:
            if index < part.shape[1]:
                return apart(part[0, index]), apart(part[1, index])
            index -= part.shape[1]
        raise IndexError("there are not as many layers")

    def prepare(self, openings: Sequence[Opening]) -> None:
        """Copy the pages that new sequences share in part, and clear the others that they own.

        Copies come first: a page that is copied from may have been released since, and be one of those to clear.
        Attention reads whole pages and masks what is not visible; a NaN that an earlier sequence left would pass the
        mask.
        """
        copies = [opening.copy for opening in openings if opening.copy is not None]
        copied = {to for _, to in copies}
        clear = [page for opening in openings for page in opening.fresh if page not in copied]
        if copies:
            for part in self.parts:
                sources, targets = torch.tensor(copies, device=part.device).T
                part.index_copy_(2, targets, part.index_select(2, sources))
        if clear:
            self.fill(clear, 0.0)

    def fill(self, pages: Sequence[int], value: float) -> None:
        """Set every number in these pages."""
        for part in self.parts:
            part.index_fill_(2, torch.tensor(pages, dtype=torch.long, device=part.device), value)


def unwritten(openings: Sequence[Opening]) -> list[Opening]:
    """Those whose copy has to be made again once prompts are written: it is of a page that one before them owns."""
    fresh: set[int] = set()
    found = []
    for opening in openings:
        if opening.copy is not None and opening.copy[0] in fresh:
            found.append(opening._replace(fresh=()))
        fresh.update(opening.fresh)
    return found


def apart(part: torch.Tensor) -> torch.Tensor:
    """The same memory as this contiguous part of a tensor, as a storage of its own."""
    start = part.storage_offset() * part.itemsize
    storage = part.untyped_storage()[start : start + part.numel() * part.itemsize]
    return torch.empty(0, dtype=part.dtype, device=part.device).set_(storage, 0, part.shape, part.stride())

"""Checks the counts of a page pool from outside."""

from __future__ import annotations

from collections import Counter

from evals.engine.kv_cache import SCRATCH, PagePool


def audit(pool: PagePool) -> None:
    """Recount everything. Raises RuntimeError naming the first page whose count is wrong."""
    counted = Counter(page for pages in pool._pages.values() for page in pages)
    free = set(pool._free)
    if len(free) != len(pool._free):
        raise RuntimeError("a page is free twice")
    for page in range(pool.num_pages):
        if counted[page] != pool._count[page]:
            raise RuntimeError(f"page {page} counts {pool._count[page]} owners and has {counted[page]}")
        if page != SCRATCH and (page in free) == (counted[page] > 0):
            raise RuntimeError(f"page {page} is {'both free and owned' if page in free else 'lost'}")
    if counted[SCRATCH] or SCRATCH in free:
        raise RuntimeError("the scratch page was given away")
    if dead := set(pool._prefixes._key) & free:
        raise RuntimeError(f"page {min(dead)} is free and can be found by its tokens")

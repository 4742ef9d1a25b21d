"""The page pool against a model of it: random opens, keeps, drops, forks, shares and cancels over real tensors."""

from __future__ import annotations

import random

import pytest
import torch

from evals.engine.kv_cache import PAGE, SCRATCH, PagePool
from evals.engine.model import CacheShape, KeysValues, pending_copies
from evals.types import Handle
from support.pages import audit

SHAPE = CacheShape(num_layers=1, num_heads=1, head_dim=1, dtype=torch.float32)


class Mirror:
    """What every held sequence should contain, beside a pool and its tensors; freed pages become NaN at once."""

    def __init__(self, num_pages: int, seed: int, share_unit: int = 1) -> None:
        self.random = random.Random(seed)
        self.pool = PagePool(num_pages, share_unit)
        self.shared = 0
        self.cache = KeysValues(SHAPE, num_pages, torch.device("cpu"))
        self.numbers = self.cache.tensor.view(2, num_pages, PAGE)
        self.running: dict[Handle, tuple[list[float], int, int]] = {}  # content, first position of its own, limit
        self.ended: dict[Handle, list[float]] = {}  # content: one number per token, the last one not written
        self.parents: dict[Handle, Handle] = {}
        self.pages: dict[Handle, tuple[int, ...]] = {}
        self.prompts: dict[Handle, list[int]] = {}  # tokens of prompts, each the parity of its number
        self.counter = 0.0

    def open(self) -> None:
        parent = self.random.choice([None, *self.ended]) if self.ended else None
        inherited = self.ended[parent] if parent is not None else []
        start = self.random.randint(1, len(inherited)) - 1 if inherited else 0
        limit = start + 1 + self.random.randint(1, 70)
        needed = self.pool.pages_for(start, limit)
        if needed > self.pool.num_free:
            with pytest.raises(MemoryError):
                self.pool.open(parent, start, limit)
            return
        before = self.pool.num_free
        allocation = self.pool.open(parent, start, limit)
        assert before - self.pool.num_free == needed == len(allocation.fresh)
        self.cache.prepare([allocation])
        assert torch.isfinite(self.numbers[:, list(allocation.pages)]).all()
        self.pages[allocation.handle] = allocation.pages
        self.running[allocation.handle] = (inherited[:start], start, limit)
        if parent is not None:
            self.parents[allocation.handle] = parent

    def open_prompt(self) -> None:
        """One of a few prompts that begin alike: what is not found is written at once."""
        tokens = [0] * 40 + [self.random.randrange(2)] * self.random.randint(1, 90)
        limit = len(tokens) + self.random.randint(1, 40)
        if self.pool.pages_for(0, limit) > self.pool.num_free:
            return
        allocation, present = self.pool.open_prompt(tokens, limit)
        self.shared += present
        self.cache.prepare([allocation])
        stored = self.numbers[:, list(allocation.pages)].flatten(1)
        content = stored[0, :present].tolist()
        assert stored[1, :present].tolist() == [-number for number in content]
        assert [number > 0 for number in content] == [True] * present  # written, and not by a stranger
        self.pages[allocation.handle] = allocation.pages
        self.prompts[allocation.handle] = tokens[:-1]
        for token in tokens[present:-1]:
            self.put(allocation.handle, content, token)
        self.running[allocation.handle] = (content, len(content), limit)

    def put(self, handle: Handle, content: list[float], token: int = 0) -> None:
        """Write the next number of a sequence; it says which token it stands for."""
        self.counter += 2
        page, offset = self.pages[handle][len(content) // PAGE], len(content) % PAGE
        number = self.counter + token
        self.numbers[:, page, offset] = torch.tensor([number, -number])
        content.append(number)

    def write(self) -> None:
        """A few steps of one running sequence; a full one ends."""
        if not self.running:
            return
        handle = self.random.choice(list(self.running))
        content, start, limit = self.running[handle]
        for _ in range(self.random.randint(1, 25)):
            if len(content) == limit - 1:
                break
            self.put(handle, content)
        if len(content) == limit - 1 or (len(content) > start and self.random.random() < 0.5):
            self.pool.end(handle, len(content) + 1)
            self.pages[handle] = self.pages[handle][: -(-len(content) // PAGE)]
            self.ended[handle] = [*content, 0.0]
            del self.running[handle]

    def keep(self) -> None:
        children = [handle for handle in self.ended if handle in self.parents]
        if children:
            child = self.random.choice(children)
            parent = self.parents.pop(child)
            if parent in self.ended:
                self.pool.drop(parent)
                self.forget(parent)

    def drop(self) -> None:
        if self.ended:
            handle = self.random.choice(list(self.ended))
            self.pool.drop(handle)
            self.forget(handle)

    def cancel(self) -> None:
        if self.running:
            handle = self.random.choice(list(self.running))
            del self.running[handle]
            self.pool.drop(handle)
            self.forget(handle)

    def fork(self) -> None:
        if self.ended and len(self.ended) < 12:
            handle = self.random.choice(list(self.ended))
            twin = self.pool.fork(handle)
            self.ended[twin], self.pages[twin] = list(self.ended[handle]), self.pages[handle]

    def forget(self, handle: Handle) -> None:
        self.ended.pop(handle, None)
        self.parents.pop(handle, None)
        self.prompts.pop(handle, None)
        del self.pages[handle]

    def check(self) -> None:
        """The pool agrees, what is held is intact, and what is free is poisoned."""
        owned = {page for pages in self.pages.values() for page in pages}
        assert SCRATCH not in owned
        assert self.pool.num_used == len(owned)
        free = [page for page in range(1, self.pool.num_pages) if page not in owned]
        self.cache.fill(free, torch.nan)
        contents = {handle: content for handle, (content, _, _) in self.running.items()}
        contents |= {handle: content[:-1] for handle, content in self.ended.items()}
        for handle, content in contents.items():
            stored = self.numbers[:, list(self.pages[handle])].flatten(1)[:, : len(content)]
            assert stored.tolist() == [content, [-number for number in content]]
        for handle, tokens in self.prompts.items():
            assert [int(number) % 2 for number in contents[handle][: len(tokens)]] == tokens


@pytest.mark.parametrize("share_unit", [1, 4])
def test_random_operations_agree_with_the_model(share_unit: int) -> None:
    """10,000 of them, freed pages filled with NaN: nothing leaks, nothing is free twice, nothing stale is read."""
    mirror = Mirror(num_pages=64, seed=share_unit, share_unit=share_unit)
    moves = [mirror.open, mirror.open_prompt, mirror.write, mirror.keep, mirror.drop, mirror.cancel, mirror.fork]
    weights = [4, 3, 10, 2, 3, 1, 1]
    for _ in range(5_000):
        mirror.random.choices(moves, weights)[0]()
        mirror.check()
        audit(mirror.pool)
    assert mirror.shared > 1_000
    for handle in [*mirror.running, *mirror.ended]:
        mirror.pool.drop(handle)
    assert mirror.pool.num_used == 0
    audit(mirror.pool)


def test_whole_pages_are_shared_and_the_partial_one_is_copied() -> None:
    pool = PagePool(16)
    first = pool.open(None, 0, 60)
    assert first.copy is None
    pool.end(first.handle, 60)
    child = pool.open(first.handle, 35, 60)
    assert child.pages[:2] == first.pages[:2]
    assert child.copy == (first.pages[2], child.pages[2])
    assert child.fresh == child.pages[2:]
    whole = pool.open(first.handle, 32, 60)
    assert whole.copy is None
    assert whole.pages[:2] == first.pages[:2]


@pytest.mark.parametrize(("length", "pages"), [(17, 1), (18, 2)])  # 16 and 17 tokens are written
def test_surplus_returns_when_a_sequence_ends(length: int, pages: int) -> None:
    pool = PagePool(20)
    allocation = pool.open(None, 0, 200)
    assert pool.num_used == 13
    pool.end(allocation.handle, length)
    assert pool.num_used == pages
    pool.drop(allocation.handle)
    assert pool.num_used == 0


def test_misuse_is_refused() -> None:
    pool = PagePool(4)
    allocation = pool.open(None, 0, 20)
    pool.end(allocation.handle, 10)
    with pytest.raises(ValueError, match="do not reach position 30"):
        pool.open(allocation.handle, 30, 40)
    pool.drop(allocation.handle)
    for call in (pool.drop, pool.fork):
        with pytest.raises(ValueError, match="not held"):
            call(allocation.handle)
    with pytest.raises(ValueError, match="scratch"):
        PagePool(1)


def test_the_audit_finds_a_wrong_count() -> None:
    pool = PagePool(4)
    pool.open(None, 0, 20)
    pool._count[1] += 1
    with pytest.raises(RuntimeError, match="page 1 counts 2 owners and has 1"):
        audit(pool)


def test_the_audit_finds_an_entry_that_outlived_its_page() -> None:
    pool = PagePool(4)
    allocation, _ = pool.open_prompt(range(40), 41)
    pool._prefixes.forget = lambda page: None  # type: ignore[method-assign]
    pool.drop(allocation.handle)
    with pytest.raises(RuntimeError, match="page 1 is free and can be found by its tokens"):
        audit(pool)


def test_a_prompt_shares_what_is_there_and_says_how_much() -> None:
    pool = PagePool(20)
    first, present = pool.open_prompt(range(40), 60)
    assert (present, len(first.pages)) == (0, 4)
    second, present = pool.open_prompt([*range(40), 1], 60)
    assert present == 32
    assert second.pages[:2] == first.pages[:2]
    assert second.fresh == second.pages[2:]
    _, present = pool.open_prompt(range(32), 60)  # its last token is not written beforehand
    assert present == 16
    assert pool.distinct([first.handle, second.handle]) == 6
    third, present = pool.open_prompt(range(40), 60)  # the same: the page that it goes on in is its own
    assert present == 39
    assert third.copy == (first.pages[2], third.pages[2])
    assert third.fresh == third.pages[2:]
    pool.drop(first.handle)
    fourth, present = pool.open_prompt(range(40), 60)
    assert (present, fourth.copy) == (39, (third.pages[2], fourth.pages[2]))
    pool.drop(third.handle)
    pool.drop(fourth.handle)
    assert pool.open_prompt(range(40), 60)[1] == 32
    audit(pool)


def test_what_is_copied_from_a_page_of_the_same_round_waits_until_that_is_written() -> None:
    pool = PagePool(20)
    old, _ = pool.open_prompt(range(9), 20)
    early, _ = pool.open_prompt(range(9), 20)
    new, _ = pool.open_prompt(range(1, 9), 20)
    late = [pool.open_prompt(range(1, 9), 20)[0] for _ in range(2)]
    again = pending_copies([early, new, *late])
    assert [(one.copy, one.fresh) for one in again] == [((new.pages[0], one.pages[0]), ()) for one in late]
    assert early.copy == (old.pages[0], early.pages[0])


def test_page_bytes() -> None:
    assert CacheShape(28, 2, 128, torch.bfloat16).page_bytes == 28 * 1024 * PAGE


def test_a_page_released_and_lent_again_is_copied_before_it_is_cleared() -> None:
    """A child is opened, its parent dropped, and the next sequence gets the very page that the child copies from."""
    pool = PagePool(4)
    cache = KeysValues(CacheShape(1, 1, 2, torch.float32), pool.num_pages, torch.device("cpu"))
    parent = pool.open(None, 0, 9)
    cache.fill(parent.pages, 7.0)
    pool.end(parent.handle, 9)
    child = pool.open(parent.handle, 5, 9)
    pool.drop(parent.handle)
    other = pool.open(None, 0, 9)
    assert other.pages == parent.pages
    cache.prepare([child, other])
    assert (cache.tensor[:, :, child.pages[0]] == 7.0).all()
    assert (cache.tensor[:, :, other.pages[0]] == 0.0).all()

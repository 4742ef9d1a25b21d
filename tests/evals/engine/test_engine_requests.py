"""The semantics of one request: uniforms, stop conditions, exclusion, floors, edges. On a tiny random model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from evals.engine.engine import Engine
from evals.rng import Purpose, RandomKey, uniform
from evals.stopping import StopStrings
from evals.types import Bound, Chain, Completion, Request, Submit
from support.figures import figures
from support.pages import audit
from support.tiny_models import (
    VOCABULARY,
    Pair,
    assert_statistics,
    engine,
    make,
    prompt,
    request,
    run_one,
    sample,
    single,
)

ALPHA = 2.0


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("qwen2")


@pytest.fixture(scope="module")
def on(pair: Pair) -> Engine:
    return engine(pair.model)


def law(pair: Pair, prefix: Sequence[int], alpha: float = ALPHA) -> np.ndarray:
    """q over the vocabulary after `prefix`."""
    log_q = alpha * pair.logits(prefix)[-1].double().log_softmax(-1)
    return log_q.softmax(-1).numpy()


def test_tokens_follow_the_keyed_uniforms(pair: Pair, on: Engine) -> None:
    """Every token is the inverse CDF of the uniform of its position in the answer; beyond one block, too."""
    to = prompt(1, 9, max_new=100)
    prefix = (*to.token_ids, 5, 6, 7)
    found = run_one(on, request(to, 90, ALPHA, prefix=prefix, key=(3, 1, 4)), to, seed=11)
    tokens = list(prefix)
    for token in found.tokens:
        cumulative = np.cumsum(law(pair, tokens))
        u = uniform(RandomKey(11, 3, 1, 4), len(tokens) - len(to.token_ids), Purpose.TOKEN)
        position = np.searchsorted(cumulative, u * cumulative[-1], side="right")
        if position != token:  # the only excuse is an edge of the CDF within rounding
            assert abs(cumulative[min(position, token)] - u) < 1e-5
        tokens.append(token)
    assert found.ended == "length"


def test_seed_and_key_matter(on: Engine) -> None:
    to = prompt(2)
    asked = request(to, alpha=1.0)
    answers = [
        run_one(on, asked, to, 1),
        run_one(on, asked, to, 2),
        run_one(on, asked._replace(key=asked.key.of(1)), to, 1),
        run_one(on, asked._replace(key=asked.key.of(0, 1)), to, 1),
    ]
    assert len({found.tokens for found in answers}) == 4
    assert run_one(on, asked, to, 1).tokens == answers[0].tokens


def test_a_prompt_of_one_token_needs_no_prefill(pair: Pair, on: Engine) -> None:
    to = prompt(3, length=1)
    found = run_one(on, request(to, 20, ALPHA), to)
    assert found.prefilled == 0
    assert_statistics(pair, to.token_ids, found, ALPHA)


def test_eos_may_be_the_first_token(on: Engine) -> None:
    to = prompt(4, eos=range(VOCABULARY))
    found = run_one(on, request(to), to)
    assert (len(found.tokens), found.ended, found.handle is None) == (1, "eos", False)


def test_order_of_stop_conditions(on: Engine) -> None:
    """EOS before a stop string before the limit before the floor."""
    everything = range(VOCABULARY)
    cases = [
        (prompt(4, eos=everything, stopped=lambda answer: True), "eos"),
        (prompt(4, stopped=lambda answer: True), "stop"),
        (prompt(4), "length"),
    ]
    for to, ended in cases:
        assert run_one(on, request(to, 1, floor=1e9), to).ended == ended
    assert run_one(on, request(to, 2, floor=1e9), to).ended == "floor"


def test_a_stop_string_inside_a_token_ends_the_answer_and_the_token_stays(on: Engine) -> None:
    words = [f"<{i}>" for i in range(VOCABULARY)]
    free = prompt(5, max_new=60)
    tokens = run_one(on, request(free), free).tokens
    words[tokens[7]] = "a stop| b"  # `top| b` would need the middle of this token
    stopped = StopStrings(["top|"], lambda ids: "".join(words[i] for i in ids))
    to = free._replace(stopped=stopped)
    found = run_one(on, request(to), to)
    assert found.ended == "stop"
    assert found.tokens == tokens[: tokens.index(tokens[7]) + 1]


def test_the_stop_rule_sees_the_whole_answer_and_nothing_else(on: Engine) -> None:
    seen: list[tuple[int, ...]] = []

    def stopped(answer: Sequence[int]) -> bool:
        seen.append(tuple(answer))
        return False

    to = prompt(6, stopped=stopped)
    found = run_one(on, request(to, 3, prefix=(*to.token_ids, 8, 9)), to)
    assert seen == [(8, 9, *found.tokens[:n]) for n in (1, 2, 3)]


def test_exclusion_holds_for_the_first_token_only(pair: Pair, on: Engine) -> None:
    to = prompt(7, max_new=30)
    for draw in range(40):
        asked = request(to, 30, 1.0, key=(draw, 0, 0))
        token = run_one(on, asked, to).tokens[0]
        found = run_one(on, asked._replace(exclude=token), to)
        assert found.tokens[0] != token
        assert_statistics(pair, to.token_ids, found, 1.0)
        if token in found.tokens[1:]:
            break
    else:
        pytest.fail("the excluded token never came back later")


def carry(log_q: ArrayLike) -> float:
    """C of an answer's tokens, from its definition as a sum of products."""
    q = np.exp(np.asarray(log_q))
    return float(sum(np.prod(q[m:]) for m in range(len(q))))


def bound(kind: Bound, log_q: Sequence[float]) -> float:
    """What is subtracted after an incomplete answer whose tokens have these log q."""
    length = len(log_q)
    return {"length": math.log(length + 1), "nonnull": math.log(length - carry(log_q)), "constant": 0.0}[kind]


BOUNDS: list[Bound] = ["length", "nonnull", "constant"]


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_floor_stops_exactly_where_its_bound_says(kind: Bound) -> None:
    """Beside the prediction for this bound, those of the other two: mixed up, they would show."""
    alpha = 1.2
    on = engine(make("qwen2", spread=0.8).model, slots=25, max_length=200)
    to = prompt(8, max_new=60)
    state = run_one(on, request(to, 25, alpha), to)
    start = 10
    prefix = to.token_ids + state.tokens[:start]
    asked = request(to, 50, alpha, prefix=prefix, key=(0, 0, 1), carry=carry(state.log_q[:start]))
    whole = run_one(on, asked, to)
    log_q = [*state.log_q[:start], *whole.log_q]
    sums = np.cumsum([0.0, *whole.log_z[1:]])
    alike: Counter[Bound] = Counter()
    floors = np.linspace(sums[45] - 4, -0.5, 25).tolist()
    stopped = [Chain(to, single(asked._replace(floor=floor, bound=kind))) for floor in floors]
    for floor, ended in zip(floors, on.run(stopped), strict=True):
        predicted = {
            other: next(
                (n for n in range(1, 50) if sums[n - 1] - bound(other, log_q[: start + n]) < floor),
                50,
            )
            for other in BOUNDS
        }
        found = figures(ended).completion
        assert len(found.tokens) == predicted[kind]
        assert found.ended == ("length" if predicted[kind] == 50 else "floor")
        assert found.tokens == whole.tokens[: len(found.tokens)]
        alike.update(other for other in BOUNDS if predicted[other] == predicted[kind])
    assert all(alike[other] <= len(floors) - 3 for other in BOUNDS if other != kind), alike


def test_the_first_log_z_is_not_in_the_sum_and_equality_goes_on(pair: Pair, on: Engine) -> None:
    to = prompt(9)
    whole = run_one(on, request(to, 3, ALPHA), to)
    total = 0.0 + float(whole.log_z[1])
    asked = request(to, 3, ALPHA, bound="constant")
    assert len(run_one(on, asked._replace(floor=total), to).tokens) == 3
    assert len(run_one(on, asked._replace(floor=float(np.nextafter(total, 0))), to).tokens) == 2
    assert len(run_one(on, asked._replace(floor=-1e-300), to).tokens) == 2


def test_certain_tokens_never_abort_under_the_nonnull_bound() -> None:
    from evals.engine.chain_state import DecodeState

    to = prompt(1)
    slot = DecodeState(request(to, floor=1e9, bound="nonnull"), to)
    assert slot.add(5, 0.0, 0.0) is None  # q = 1: every move from here is null, G is 0 so far
    assert slot.add(5, math.log(0.5), 0.0) == "floor"


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"prefix": ()}, "prefix of at least one token"),
    ({"max_new": 0}, "max_new is at least 1"),
    ({"max_new": 1000}, "longest sequence, 160"),
    ({"alpha": 0.0}, "alpha is 0"),
    ({"alpha": math.nan}, "alpha is nan"),
    ({"alpha": 0.5, "floor": -3.0}, "log Z only falls for alpha >= 1"),
    ({"alpha": 2.0, "floor": math.nan}, "floor of nan"),
    ({"bound": "other"}, "bound is 'other'"),
    ({"origin": -1}, "origin -1"),
    ({"origin": 99}, "origin 99"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_p": 0.0}, "top_p 0"),
    ({"top_p": 1.5}, "top_p 1.5"),
    ({"prefix": (1, -1)}, "outside the vocabulary"),
    ({"prefix": (1, VOCABULARY)}, "outside the vocabulary"),
    ({"exclude": -2}, "excluded token -2"),
    ({"exclude": VOCABULARY}, f"excluded token {VOCABULARY}"),
    ({"parent": 77}, "does not hold sequence 77"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID, ids=[m for _, m in INVALID])
def test_requests_that_cannot_be_served(fields: dict[str, Any], message: str, on: Engine) -> None:
    to = prompt(10)
    with pytest.raises(ValueError, match=message):
        run_one(on, request(to)._replace(**{"origin": 0, **fields}), to)
    audit(on._pool)
    assert on.counters().kv_pages_used == 0


def test_a_parent_that_does_not_start_with_the_prefix(on: Engine) -> None:
    to = prompt(11)

    def script() -> Any:
        (_, found) = yield [Submit(0, request(to, 5))]
        wrong = (*to.token_ids, (found.tokens[0] + 1) % VOCABULARY)
        yield [Submit(1, request(to, 5, prefix=wrong, parent=found.handle))]

    with pytest.raises(ValueError, match="do not start with the request's prefix"):
        on.run([Chain(to, script())])
    assert on.counters().kv_pages_used == 0


def test_truncated_requests_share_a_batch_with_others(pair: Pair, on: Engine) -> None:
    to = prompt(12, max_new=20)
    plain, cut = request(to, alpha=1.0), request(to, alpha=1.0, top_k=2, key=(1, 0, 0))
    alone = [run_one(on, asked, to) for asked in (plain, cut)]
    both = [figures(found).completion for found in on.run([Chain(to, single(a)) for a in (plain, cut)])]
    for one, together in zip(alone, both, strict=True):
        assert one.tokens == together.tokens
        np.testing.assert_array_equal(one.log_q, together.log_q)
    logits = pair.logits([*to.token_ids, *both[1].tokens])[len(to.token_ids) - 1 : -1]
    likeliest = logits.topk(2).indices.tolist()
    assert all(token in two for token, two in zip(both[1].tokens, likeliest, strict=True))


def test_length_of_the_engine_is_inclusive(on: Engine) -> None:
    to = prompt(13, 60, max_new=100)
    found: Completion = run_one(on, request(to, 100), to)
    assert len(found.tokens) == 100
    asked: Request = request(to, 100, prefix=(*to.token_ids, 5))
    with pytest.raises(ValueError, match=r"61 \+ 100 tokens exceed"):
        run_one(on, asked, to)
    assert sample().tokens == ()

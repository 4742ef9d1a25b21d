"""The semantics of one request: uniforms, stop conditions, exclusion, watches, edges. On a tiny random model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evals.engine.engine import Engine
from evals.rng import Purpose, RandomKey, uniform
from evals.stopping import StopStrings
from evals.types import Chain, Completion, Request, Submit, Watch
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
    """EOS before a stop string before the limit before what gives the request up."""

    def at_once() -> Watch:
        return lambda log_q, log_z: True

    everything = range(VOCABULARY)
    cases = [
        (prompt(4, eos=everything, stopped=lambda answer: True), "eos"),
        (prompt(4, stopped=lambda answer: True), "stop"),
        (prompt(4), "length"),
    ]
    for to, ended in cases:
        assert run_one(on, request(to, 1, give_up=at_once), to).ended == ended
    assert run_one(on, request(to, 2, give_up=at_once), to).ended == "given_up"


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


def test_a_watch_is_told_every_token_that_is_not_the_last_and_ends_the_request(on: Engine) -> None:
    told: list[list[tuple[float, float]]] = []

    def give_up() -> Watch:
        told.append([])
        return lambda *statistics: told[-1].append(statistics) or len(told[-1]) == 5

    to = prompt(8)
    found = run_one(on, request(to, 20, ALPHA, give_up=give_up), to)
    assert found.ended == "given_up"
    assert told == [list(zip(found.log_q.tolist(), found.log_z.tolist(), strict=True))]
    short = run_one(on, request(to, 4, ALPHA, give_up=give_up), to)
    assert (short.ended, short.tokens) == ("length", found.tokens[:4])
    assert told[1:] == [told[0][:3]], "a watch of its own, which is not asked where the request has ended"


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"prefix": ()}, "prefix of at least one token"),
    ({"max_new": 0}, "max_new is at least 1"),
    ({"max_new": 1000}, "longest sequence, 160"),
    ({"alpha": 0.0}, "alpha is 0"),
    ({"alpha": math.nan}, "alpha is nan"),
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

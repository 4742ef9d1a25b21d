"""Cases that every family of models has to pass, on any decoder: prompts on both sides of windows and pages,
prefilled together, decoded beside each other, rewound, dropped and kept. Not collected by itself."""

from __future__ import annotations

import math
from typing import Any

from evals.engine.engine import Engine
from evals.types import Drop, Keep, Prompt, Steps, Submit
from support.decoder_cases import Results, answers
from support.tiny_models import Pair, assert_statistics, prompt, request, sample

LENGTHS = (1, 5, 16, 17, 40)
SEED = 3


def branches(index: int, to: Prompt) -> Steps:
    """A sequence, a branch of it that is dropped, one that is kept, and a rewind of that one."""
    move, length = iter(range(4)), len(to.token_ids)

    def ask(**fields: Any) -> Any:
        asked = request(to, key=(index, 0, next(move)), **fields)
        (_, found) = yield [Submit(0, asked)]
        assert len(found.tokens) == asked.max_new
        assert found.prefilled == (0 if asked.parent is not None else length - 1)
        return found, asked.prefix + found.tokens

    first, tokens = yield from ask(max_new=30)
    branch, _ = yield from ask(max_new=20, prefix=tokens[: length + 9], parent=first.handle)
    yield [Drop(branch.handle)]
    branch, tokens = yield from ask(max_new=25, prefix=tokens[: length + 3], parent=first.handle, alpha=1.0)
    yield [Keep(branch.handle)]
    again, _ = yield from ask(max_new=8, prefix=tokens[: length + 20], parent=branch.handle, alpha=math.inf)
    return sample(again)


def branched(on: Engine) -> Results:
    """The completions of `branches` of prompts of all lengths."""
    found = answers(on, [prompt(i, length) for i, length in enumerate(LENGTHS)], branches)
    assert len(found.log) == 4 * len(LENGTHS)
    return found


def assert_plain(pair: Pair, found: Results, tolerance: float) -> None:
    """All log q and log Z are those of plain forward passes, to `tolerance` times the largest logit."""
    scale = max(1.0, float(pair.logits(prompt(0, 60).token_ids).abs().max()))
    for asked, completion in found.log.items():
        assert_statistics(pair, asked.prefix, completion, asked.alpha, tolerance * scale)

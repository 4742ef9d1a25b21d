"""The engine on trained models, the embedded one and a larger: equal to `generate`, to plain passes, to itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from evals.config import EngineConfig
from evals.engine.checkpoint import load_model
from evals.engine.model import Model
from evals.rng import RandomKey
from evals.samplers.power import Power
from evals.types import Chain, Prompt, Request
from support.figures import figures
from support.places import ROOT
from support.shared_data import GSM8K_MODEL, GSM8K_TEST, SHARED, needs_shared
from support.tiny_models import Pair, assert_statistics, engine, single

MAX_NEW = 64


class Trained(NamedTuple):
    """A model and the problems that it was trained for."""

    folder: Path
    data: Path


EMBEDDED = Trained(ROOT / "evals/demo/model", ROOT / "evals/demo/problems.jsonl")
LARGER = Trained(SHARED / GSM8K_MODEL, SHARED / GSM8K_TEST)


def needs_larger(claim: str) -> pytest.MarkDecorator:
    return needs_shared(GSM8K_MODEL, GSM8K_TEST, claim=f"{claim}, with a model trained on GSM8K")


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest) -> Trained:
    return request.param


@pytest.fixture(scope="module")
def model(trained: Trained) -> Model:
    return load_model(str(trained.folder), EngineConfig(), "cpu", num_threads=1)


@pytest.fixture(scope="module")
def plain(trained: Trained) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(trained.folder, dtype=torch.float32).eval()


def prompts(trained: Trained, model: Model, count: int, max_new: int = MAX_NEW) -> list[Prompt]:
    lines = trained.data.read_text().splitlines()[:count]
    texts = [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]
    return [Prompt(tuple(model.tokenizer.encode(text)), max_new, model.tokenizer.eos_ids) for text in texts]


RIGHT = needs_larger("The right engine: tokens and probabilities are the library's")


@pytest.mark.parametrize(
    ("trained", "count"),
    [
        pytest.param(EMBEDDED, 4, id="embedded-4"),
        pytest.param(LARGER, 3, marks=RIGHT, id="gsm8k-25m-3"),
        pytest.param(LARGER, 50, marks=[pytest.mark.slow, RIGHT], id="gsm8k-25m-50"),
    ],
    indirect=["trained"],
)
def test_greedy_tokens_equal_generate(trained: Trained, count: int, model: Model, plain: torch.nn.Module) -> None:
    asked = prompts(trained, model, count)
    requests = [
        Request(p.token_ids, MAX_NEW, math.inf, RandomKey(0, i, 0), len(p.token_ids)) for i, p in enumerate(asked)
    ]
    chains = [Chain(p, single(request)) for p, request in zip(asked, requests, strict=True)]
    for to, found in zip(asked, engine(model, 10, 400).run(chains), strict=True):
        ids = torch.tensor([to.token_ids])
        whole = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW, do_sample=False)  # type: ignore[operator]
        assert found.tokens == tuple(whole[0, ids.shape[1] :].tolist())
        assert (found.log_q == 0).all()
        assert_statistics(Pair(model, plain), to.token_ids, found, math.inf)


SAME = needs_larger("The same answers for any number of slots")


@pytest.mark.parametrize(
    ("trained", "count", "max_new"),
    [
        pytest.param(EMBEDDED, 2, 40, id="embedded"),
        pytest.param(LARGER, 5, 72, marks=[pytest.mark.slow, SAME], id="gsm8k-25m"),
    ],
    indirect=["trained"],
)
def test_power_sampling_is_the_same_for_any_number_of_slots_and_equals_a_plain_forward(
    trained: Trained, count: int, max_new: int, model: Model, plain: torch.nn.Module
) -> None:
    asked = prompts(trained, model, count, max_new)

    def chains() -> list[Chain]:
        return [Chain(p, Power(4.0, 4).chain(p, RandomKey(7, i, 0))) for i, p in enumerate(asked)]

    results = [engine(model, slots, 400).run(chains()) for slots in (8, 1, 3)]
    for i, to in enumerate(asked):
        one = results[0][i]
        for other in results[1:]:
            assert one.tokens == other[i].tokens
            assert one.log_q.tobytes() == other[i].log_q.tobytes()
            assert one.log_z.tobytes() == other[i].log_z.tobytes()
        assert_statistics(Pair(model, plain), to.token_ids, one, 4.0)
    assert sum(figures(sample).accepted for sample in results[0]) > 0


@pytest.mark.parametrize(
    "trained",
    [pytest.param(EMBEDDED, id="embedded"), pytest.param(LARGER, marks=RIGHT, id="gsm8k-25m")],
    indirect=True,
)
def test_half_precision_passes_the_self_check(trained: Trained) -> None:
    on = engine(load_model(str(trained.folder), EngineConfig(dtype="bfloat16"), "cpu"), 2, 400)
    to = prompts(trained, on.model, 1, 8)[0]
    found = on.run([Chain(to, single(Request(to.token_ids, 8, 1.0, RandomKey(0, 0, 0), len(to.token_ids))))])
    assert len(found[0].tokens) == 8

"""The engine on a real model of 25M parameters: equal to `generate`, to plain forward passes, and to itself."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from evals.config import EngineConfig
from evals.engine.checkpoint import load_model
from evals.engine.model import Model
from evals.samplers.power import Power
from evals.types import Chain, Prompt, Request
from support.places import ROOT
from support.tiny_models import Pair, assert_statistics, engine, single

SHARED = ROOT.parent / "shared"
FOLDER, DATA = SHARED / "models/gsm8k-25m", SHARED / "data/gsm8k/test.jsonl"
MAX_NEW = 64

pytestmark = pytest.mark.skipif(not (FOLDER.is_dir() and DATA.is_file()), reason=f"{FOLDER} or {DATA} is absent")


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(str(FOLDER), EngineConfig(), "cpu", num_threads=1)


@pytest.fixture(scope="module")
def plain() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def prompts(model: Model, count: int, max_new: int = MAX_NEW) -> list[Prompt]:
    lines = DATA.read_text().splitlines()[:count]
    texts = [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]
    return [Prompt(tuple(model.tokenizer.encode(text)), max_new, model.tokenizer.eos_ids) for text in texts]


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_greedy_tokens_equal_generate(count: int, model: Model, plain: torch.nn.Module) -> None:
    asked = prompts(model, count)
    requests = [Request(p.token_ids, MAX_NEW, math.inf, (i, 0, 0), len(p.token_ids)) for i, p in enumerate(asked)]
    chains = [Chain(p, single(request)) for p, request in zip(asked, requests, strict=True)]
    for to, found in zip(asked, engine(model, 10, 400).run(chains, 0), strict=True):
        ids = torch.tensor([to.token_ids])
        whole = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW, do_sample=False)  # type: ignore[operator]
        assert found.tokens == tuple(whole[0, ids.shape[1] :].tolist())
        assert (found.log_q == 0).all()
        assert_statistics(Pair(model, plain), to.token_ids, found, math.inf)


@pytest.mark.slow
def test_power_sampling_is_the_same_for_any_number_of_slots_and_equals_a_plain_forward(
    model: Model, plain: torch.nn.Module
) -> None:
    asked = prompts(model, 5, 72)

    def chains() -> list[Chain]:
        return [Chain(p, Power(4.0, 4).chain(p, 7, i, 0)) for i, p in enumerate(asked)]

    results = [engine(model, slots, 400).run(chains(), 7) for slots in (8, 1, 3)]
    for i, to in enumerate(asked):
        one = results[0][i]
        for other in results[1:]:
            assert one.tokens == other[i].tokens
            assert one.log_q.tobytes() == other[i].log_q.tobytes()
            assert one.log_z.tobytes() == other[i].log_z.tobytes()
        assert_statistics(Pair(model, plain), to.token_ids, one, 4.0)
    assert sum(sample.chain["accepted"] for sample in results[0]) > 0


def test_half_precision_passes_the_self_check() -> None:
    on = engine(load_model(str(FOLDER), EngineConfig(dtype="bfloat16"), "cpu"), 2, 400)
    to = prompts(on.model, 1, 8)[0]
    found = on.run([Chain(to, single(Request(to.token_ids, 8, 1.0, (0, 0, 0), len(to.token_ids))))], 0)
    assert len(found[0].tokens) == 8

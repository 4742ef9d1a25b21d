"""The law of the whole: production chains on the production engine and a real transformer that can be enumerated."""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from evals.config import EngineConfig
from evals.engine import chain_state
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.engine.model import Model
from evals.rng import RandomKey
from evals.samplers import metropolis
from evals.samplers.candidates import Snis
from evals.samplers.power import Power
from evals.samplers.smc import Smc
from evals.types import Chain
from support.law import SAVINGS, UNIFORMS, p_value
from support.pages import audit
from support.toy import EOS, ToyLM
from support.toy_crowd import distance, enumerated, mean_weights

SEED, SLOTS = 11, 128
PROMPT_IDS = (1, 3, 2)


@pytest.fixture(scope="module")
def network() -> Qwen2ForCausalLM:
    """A transformer of four tokens, the first of which ends an answer."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=4, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.35, pad_token_id=None,
        bos_token_id=None, eos_token_id=EOS,
    )  # fmt: skip
    return Qwen2ForCausalLM._from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def horizon(request: pytest.FixtureRequest) -> int:
    """Longest answer: 5 tokens in the slow tests, which take longer to enumerate."""
    return getattr(request, "param", 4)


@pytest.fixture(scope="module")
def law(network: Qwen2ForCausalLM, horizon: int) -> ToyLM:
    """The same model as a table: the logits after every prefix, by plain forward passes."""
    toy = ToyLM(0, vocabulary=4, horizon=horizon)
    with torch.inference_mode():
        for prefix in toy.table:
            toy.table[prefix] = network(torch.tensor([[*PROMPT_IDS, *prefix]])).logits[0, -1].double().numpy()
    return toy


@pytest.fixture(scope="module")
def engine(network: Qwen2ForCausalLM, law: ToyLM) -> Engine:
    model = Model(network, folder="four tokens")
    return Engine.build(prepare(model), EngineConfig(), slots=SLOTS, max_length=len(PROMPT_IDS) + law.horizon)


def drawn(engine: Engine, law: ToyLM, sampler: Power, count: int) -> Counter[tuple[int, ...]]:
    prompt = law.prompt()._replace(token_ids=PROMPT_IDS)
    with patch.multiple(metropolis, **UNIFORMS), patch.object(chain_state, "UNIFORMS_AT_ONCE", 8):  # no other numbers
        samples = engine.run([Chain(prompt, sampler.chain(prompt, RandomKey(SEED, i, 0))) for i in range(count)])
    audit(engine._pool)
    return Counter(sample.tokens for sample in samples)


@pytest.mark.parametrize(("horizon", "answers"), [(4, 121), (5, 364)], indirect=["horizon"])
def test_the_toy_is_spread_out(law: ToyLM, horizon: int, answers: int) -> None:
    target = law.target(2.0)
    assert len(target) == answers
    assert max(target.values()) < 0.6
    assert len({len(x) for x in target}) == horizon


KINDS = {
    "nonnull": Power(2.0, num_effective_moves=2),
    "entropy": Power(2.0, 2, cuts="entropy"),
    "blocks": Power(2.0, 2, blocks=2),
    "blocks, nonnull": Power(2.0, num_effective_moves=2, blocks=2),
}


@pytest.mark.parametrize(("replay", "early"), [(False, False), (True, True)])
def test_chains_on_the_engine_have_the_exact_law(engine: Engine, law: ToyLM, replay: bool, early: bool) -> None:
    sampler = Power(2.0, 2, replay, early)
    assert p_value(law, sampler, drawn(engine, law, sampler, 2_000)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_chains_of_every_kernel_on_the_engine_have_their_exact_law(engine: Engine, law: ToyLM, kind: str) -> None:
    assert p_value(law, KINDS[kind], drawn(engine, law, KINDS[kind], 1_000)) > 1e-3


@pytest.mark.parametrize("kind", ["snis", "smc"])
def test_weighted_answers_on_the_engine_approach_p_alpha(engine: Engine, law: ToyLM, kind: str) -> None:
    answers, target, _, _ = enumerated(law, 2.0)
    prompt = law.prompt()._replace(token_ids=PROMPT_IDS)
    found = []
    for count, answered in ((1, 300), (8, 80), (64, 30)):
        sampler = Snis(2.0, count) if kind == "snis" else Smc(2.0, count, 2, 1, 0.9)
        steps = [sampler.chain(prompt, RandomKey(SEED, i, 0)) for i in range(answered)]
        samples = engine.run([Chain(prompt, each, sampler.sequences) for each in steps])
        found.append(distance(mean_weights(samples, answers), target))
        audit(engine._pool)
    assert engine.counters().kv_pages_used == 0
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.12 > 0.06 > found[-1]


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [5], indirect=True)
@pytest.mark.parametrize(("replay", "early"), SAVINGS)
def test_20000_chains_on_the_engine_have_the_exact_law(engine: Engine, law: ToyLM, replay: bool, early: bool) -> None:
    sampler = Power(2.0, 6, replay, early)
    assert p_value(law, sampler, drawn(engine, law, sampler, 20_000)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("horizon", [5], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_20000_chains_of_every_kernel_on_the_engine_have_their_exact_law(engine: Engine, law: ToyLM, kind: str) -> None:
    assert p_value(law, KINDS[kind], drawn(engine, law, KINDS[kind], 20_000)) > 1e-3

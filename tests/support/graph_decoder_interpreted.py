"""GraphDecoder over the kernels themselves, in Triton's interpreter: no twins, no GPU.

Run by test_kernels_triton.py in a process of its own; by hand: TRITON_INTERPRET=1 pytest
tests/support/graph_decoder_interpreted.py.
"""

from __future__ import annotations

import pytest

from evals.rng import RandomKey
from evals.samplers.power import Power
from evals.types import Prompt, SamplingContext, Steps
from support.decoder_cases import answers, assert_same, lagging
from support.tiny_models import branching, engine, make


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in rows that are idle
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_power_chains_get_the_same_answers(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes a millisecond for each row and layer, hence the size."""
    monkeypatch.setattr("evals.engine.graph_decoder.PROMPT_TOKENS", (16, 32, 64))
    pair = make("llama", seed=1, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    prompts = branching([1, 20, 24], 18, max_new=6, eos=[2, 3, 4])

    def steps(index: int, to: Prompt) -> Steps:
        return Power(2.0, 2).chain(to, RandomKey(5, index, 0), SamplingContext(prefetch=2))

    theirs = answers(engine(pair.model, slots), prompts, steps)
    assert_same(pair, answers(lagging(pair, slots), prompts, steps), theirs)

"""Logits of 16-bit models in float32: the product of the hidden states and the head, or a refusal that says why."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from evals.engine import selfcheck
from evals.engine.model import Model
from evals.types import UserError
from support.family_cases import branched
from support.tiny_models import FAMILIES, Pair, engine, make

CAPPED = {"gemma2", "nanochat"}
TOKENS = list(range(3, 43))


def half(pair: Pair, dtype: torch.dtype = torch.bfloat16, float32_logits: bool = True) -> Model:
    network = copy.deepcopy(pair.network).to(dtype)
    return Model(network, folder="tiny", float32_logits=float32_logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", sorted({*FAMILIES} - CAPPED))
@torch.inference_mode()
def test_logits_are_the_float32_product_of_the_hidden_states(family: str, dtype: torch.dtype) -> None:
    pair = make(family)
    model = half(pair, dtype)
    network: Any = model.network
    model._switch("eager")
    hidden = network.base_model(input_ids=torch.tensor([TOKENS]), use_cache=False).last_hidden_state[0]
    expected = hidden.float() @ network.get_output_embeddings().weight.float().T
    logits = model.plain_logits(TOKENS, eager=True)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    rounded = half(pair, dtype, float32_logits=False).plain_logits(TOKENS, eager=True)
    assert not torch.equal(logits, rounded)
    torch.testing.assert_close(logits.to(dtype).float(), rounded, rtol=0.02, atol=0.02)


def test_an_engine_decodes_with_them_and_passes_the_self_check() -> None:
    pair = make("llama")
    model = half(pair)
    with torch.inference_mode():
        error, allowed, _ = selfcheck.compare(model, selfcheck.reference(model))
    assert error < allowed
    ours, theirs = (branched(engine(m)) for m in (model, half(pair, float32_logits=False)))
    (asked,) = {a for a in ours.log if len(a.prefix) == 40 and a.max_new == 30} & theirs.log.keys()
    assert ours.log[asked].log_q[0] != theirs.log[asked].log_q[0]
    assert abs(ours.log[asked].log_q[0] - theirs.log[asked].log_q[0]) < 0.2


@pytest.mark.parametrize("family", sorted(CAPPED))
def test_a_capped_head_is_refused(family: str) -> None:
    with pytest.raises(UserError, match=r"engine\.float32_logits is on and its logits are more than.*capped"):
        half(make(family))


def test_a_head_that_is_no_plain_linear_layer_is_refused() -> None:
    pair = make("llama")

    class Rotated(nn.Linear):
        pass

    pair.network.lm_head = Rotated(32, 61, bias=False)
    with pytest.raises(UserError, match="its head is a Rotated, not a plain linear layer"):
        half(pair)


def test_a_float32_model_is_left_as_it_is() -> None:
    pair = make("gemma2")
    model = half(pair, torch.float32)
    assert torch.equal(model.plain_logits(TOKENS, eager=True), pair.logits(TOKENS))


def test_a_bias_is_added() -> None:
    pair = make("llama")
    pair.network.lm_head = nn.Linear(32, 61, bias=True)
    model = half(pair)
    network: Any = model.network
    with torch.inference_mode():
        rounded = half(pair, float32_logits=False).plain_logits(TOKENS)
        torch.testing.assert_close(model.plain_logits(TOKENS), rounded, rtol=0.02, atol=0.02)
    assert network.lm_head.bias.abs().max() > 0.05

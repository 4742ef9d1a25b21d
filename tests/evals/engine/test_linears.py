"""Linears that read the same tensor become one product with the same results."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from evals.engine.linears import FusedSlice, fuse_linears
from support.tiny_models import make

TOKENS = torch.tensor([[5, 7, 11, 13, 17, 19, 23, 29]])
SAVED_PER_LAYER = {"qwen2": 3, "llama": 3, "gemma2": 3, "stablelm": 3, "phi3": 0, "gpt2": 0}
"""q/k/v and gate/up; Phi-3 has them in one product already, GPT-2 has no `nn.Linear` in its layers."""


def saved(network: nn.Module) -> int:
    """How many products fewer a pass has."""
    parts = [part for part in network.modules() if isinstance(part, FusedSlice)]
    return len(parts) - len({part.product for part in parts})


@pytest.mark.parametrize("family", SAVED_PER_LAYER)
@torch.inference_mode()
def test_results_stay_and_products_become_fewer(family: str) -> None:
    network = make(family).network
    fused = copy.deepcopy(network)
    layers = network.config.num_hidden_layers
    fuse_linears(fused, lambda: fused(TOKENS, use_cache=False))
    assert saved(fused) == layers * SAVED_PER_LAYER[family]
    torch.testing.assert_close(fused(TOKENS).logits, network(TOKENS).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused(TOKENS + 1).logits, network(TOKENS + 1).logits, atol=1e-5, rtol=1e-5)


class TwoReaders(nn.Module):
    """Two linears of one input, one of which has a bias, and a third that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 5, bias=False), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(self.c(x))], -1)


@torch.inference_mode()
def test_only_what_reads_one_tensor_once_is_fused_and_nothing_is_kept() -> None:
    torch.manual_seed(0)
    plain = TwoReaders()
    fused = copy.deepcopy(plain)
    x = torch.randn(2, 4)
    fuse_linears(fused, lambda: fused(x))
    assert saved(fused) == 1
    assert type(fused.c) is nn.Linear
    assert isinstance(fused.a, FusedSlice)
    torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused.b.weight, plain.b.weight)
    assert fused.a.product is fused.b.product
    assert fused.a.product._input is None
    assert fused.a.product._output is None

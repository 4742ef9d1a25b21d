"""Logits that are not rounded to the model's type: the LM head's product in float32. Knows no model's names.

In bfloat16 a logit between 16 and 32 is rounded to a multiple of 1/8, and alpha multiplies what that changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Float32Head:
    """x W^T + b of 16-bit hidden states x and a 16-bit W, summed and returned in float32."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def __call__(self, hidden: Tensor) -> Tensor:
        """[N, in] -> float32 [N, out]."""
        weight, bias = self._linear.weight, self._linear.bias
        bias = None if bias is None else bias.float()
        if hidden.device.type != "cuda":
            return functional.linear(hidden.float(), weight.float(), bias)
        product = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        return product if bias is None else product + bias


def float32_head(network: Any) -> Float32Head | str:
    """The float32 head of a causal model of the library, or why it has none, as the end of a sentence.

    That the logits are the head's product of the base model's last hidden states, and nothing more, is seen in one
    forward pass.
    """
    linear = network.get_output_embeddings()
    if type(linear) is not nn.Linear:
        return f"its head is {'missing' if linear is None else f'a {type(linear).__name__}'}, not a plain linear layer"
    inputs = {"input_ids": torch.arange(4, device=network.device)[None], "use_cache": False, "return_dict": True}
    logits = network(**inputs).logits
    hidden = network.base_model(**inputs).last_hidden_state
    if not torch.equal(linear(hidden).float(), logits.float()):
        return "its logits are more than the product of its head (they are capped or scaled)"
    return Float32Head(linear)

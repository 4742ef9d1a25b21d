"""Replaces a model's linear layers by faster ones (packed, fused), and its head by one that sums in float32."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ROWS = 16
"""Number of rows that the packed layout is chosen for; others work as well."""


class PackedLinear(nn.Module):
    """A linear layer x W^T + b whose weight is packed by oneDNN, in the place of an `nn.Linear`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


def packing_available() -> bool:
    """Whether this build of torch has the packed product."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
    )


def pack_linears(network: nn.Module) -> None:
    """Replace every float32 `nn.Linear` on the CPU in place, where this build of torch can."""
    if not packing_available():
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight.dtype == torch.float32 and child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(child))


class FusedLinear(nn.Module):
    """Linear layers with the same input as one product x [W1; W2; ...]^T + [b1; b2; ...]; keeps the latest result."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in linears])
        zeros = weight.new_zeros
        biased = any(linear.bias is not None for linear in linears)
        biases = [zeros(linear.out_features) if linear.bias is None else linear.bias.detach() for linear in linears]
        self.weight: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", torch.cat(biases) if biased else None, persistent=False)
        self._input: Tensor | None = None
        self._output: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., sum of out], computed once per tensor."""
        if self._input is not x:
            self._input, self._output = x, functional.linear(x, self.weight, self.bias)
        assert self._output is not None
        return self._output

    def forget(self) -> None:
        """Drop the references to the latest input and output."""
        self._input = self._output = None


class FusedSlice(nn.Module):
    """One linear layer's part of a fused one, in the place of that layer."""

    def __init__(self, product: FusedLinear, start: int, end: int, last: bool) -> None:
        super().__init__()
        self.product = product
        self._start, self._end, self._last = start, end, last
        self.in_features, self.out_features = product.weight.shape[1], end - start

    @property
    def weight(self) -> Tensor:
        """[out, in] the layer's rows of the fused weight."""
        return self.product.weight[self._start : self._end]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        product = self.product
        output = product(x)[..., self._start : self._end]
        if self._last:
            product.forget()
        return output


def fuse_linears(network: nn.Module, run: Callable[[], object]) -> None:
    """Fuse the linears of `network` that read the same tensor when `run` is called.

    Weights are copied group by group and the old ones released, so that at most one group is there twice.
    """
    places = {id(child): (parent, name) for parent in network.modules() for name, child in parent.named_children()}
    groups = shared_inputs(network, run)
    while groups:
        linears = groups.pop()
        fused, start = FusedLinear(linears), 0
        for linear in linears:
            parent, name = places[id(linear)]
            end = start + linear.out_features
            setattr(parent, name, FusedSlice(fused, start, end, last=linear is linears[-1]))
            start = end


def shared_inputs(network: nn.Module, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """Groups of two or more linears that read the same tensor, each in the order in which they are called."""
    readers: dict[int, list[nn.Linear]] = {}
    alive: list[Tensor] = []  # so that no two tensors of the pass have the same id

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        alive.append(inputs[0])
        readers.setdefault(id(inputs[0]), []).append(module)  # type: ignore[arg-type]

    linears = [module for module in network.modules() if type(module) is nn.Linear]
    hooks = [linear.register_forward_pre_hook(note) for linear in linears]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    calls = [id(linear) for group in readers.values() for linear in group]
    once = {linear for linear in calls if calls.count(linear) == 1}
    groups = [[linear for linear in group if id(linear) in once] for group in readers.values()]
    return [group for group in groups if len(group) > 1 and len({m.weight.dtype for m in group}) == 1]


def float32_product(linear: nn.Linear, hidden: Tensor) -> Tensor:
    """x W^T + b of 16-bit hidden states x and a 16-bit W, summed in float32: [N, in] -> float32 [N, out]."""
    weight, bias = linear.weight, None if linear.bias is None else linear.bias.float()
    if hidden.device.type != "cuda":
        return functional.linear(hidden.float(), weight.float(), bias)
    product = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    return product if bias is None else product + bias


def float32_head(network: Any) -> Callable[[Tensor], Tensor] | str:
    """The float32 head of a causal model of the library, or why it has none, as the end of a sentence.

    One forward pass checks that the logits are the head's product of the base model's last hidden states and no more.
    """
    linear = network.get_output_embeddings()
    if type(linear) is not nn.Linear:
        return f"its head is {'missing' if linear is None else f'a {type(linear).__name__}'}, not a plain linear layer"
    inputs = {"input_ids": torch.arange(4, device=network.device)[None], "use_cache": False, "return_dict": True}
    logits = network(**inputs).logits
    hidden = network.base_model(**inputs).last_hidden_state
    if not torch.equal(linear(hidden).float(), logits.float()):
        return "its logits are more than the product of its head (they are capped or scaled)"
    return partial(float32_product, linear)

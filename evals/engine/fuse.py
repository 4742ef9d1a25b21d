"""Linear layers that read the same tensor, as one matrix product (q/k/v, gate/up). Knows no model's names.

Which ones do is seen in one forward pass. Each of them is then replaced by a slice of a shared product: whoever is
asked first computes it, the others find it, and the last to be asked lets go of it. Small products are far from the
memory bandwidth, so that three in one cost little more than the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Product(nn.Module):
    """x [W1; W2; ...]^T + [b1; b2; ...] of one tensor x at a time."""

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
        """Let go of the tensor at hand."""
        self._input = self._output = None


class Slice(nn.Module):
    """Stands where one of the linears stood."""

    def __init__(self, product: Product, start: int, end: int, last: bool) -> None:
        super().__init__()
        self.product = product
        self._start, self._end, self._last = start, end, last
        self.in_features, self.out_features = product.weight.shape[1], end - start

    @property
    def weight(self) -> Tensor:
        """[out, in] rows of the shared weight."""
        return self.product.weight[self._start : self._end]

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        product = self.product
        output = product(x)[..., self._start : self._end]
        if self._last:
            product.forget()
        return output


def fuse_linears(network: nn.Module, run: Callable[[], object]) -> int:
    """Fuse the linears of `network` that read the same tensor when `run` is called; returns by how many that is fewer.

    Weights are copied group by group and the old ones released, so that at most one group is there twice.
    """
    places = {id(child): (parent, name) for parent in network.modules() for name, child in parent.named_children()}
    groups, saved = shared_inputs(network, run), 0
    while groups:
        linears = groups.pop()
        saved += len(linears) - 1
        product, start = Product(linears), 0
        for linear in linears:
            parent, name = places[id(linear)]
            end = start + linear.out_features
            setattr(parent, name, Slice(product, start, end, last=linear is linears[-1]))
            start = end
    return saved


def shared_inputs(network: nn.Module, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """Groups of two and more linears that read the same tensor, each in the order in which they are called."""
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

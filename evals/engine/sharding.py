"""One model over several devices: decoder layers in blocks, each on the device of its weights. Knows no model's names.

What comes before and after the layers (embeddings, norm, head) stays on the first device, so that tokens go in and
logits come out there. Hooks carry what a layer is called with to its device, and what the last one returns back. One
device works at a time: this is for models that do not fit one, and slower than a device that holds all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evals.types import UserError


def cuda_devices(count: int) -> list[torch.device]:
    """The first GPUs of this process. Raises UserError if it has fewer."""
    present = torch.cuda.device_count()
    if present < count:
        raise UserError(
            f"engine.tensor_parallel asks for {count} GPUs for one model and this worker has {present}; ask for at "
            "most these, or leave it out."
        )
    return [torch.device("cuda", index) for index in range(count)]


def spread(network: Any, devices: Sequence[torch.device]) -> str | None:
    """Move a causal model of the library to `devices`, in blocks of layers of about equal bytes.

    Returns why that cannot be done, as the end of a sentence; None once it is done.
    """
    found = decoder_layers(network)
    if found is None:
        return "its decoder layers cannot be told apart"
    name, layers = found
    setattr(network.base_model, name, nn.ModuleList())
    outside = size(network)
    network.to(devices[0])
    setattr(network.base_model, name, layers)
    for layer, place in zip(layers, split([size(layer) for layer in layers], outside, len(devices)), strict=True):
        layer.to(devices[place])
        carry(layer, devices[place])
    layers[-1].register_forward_hook(lambda _module, _inputs, output: moved(output, devices[0]))
    return None


def decoder_layers(network: Any) -> tuple[str, nn.ModuleList] | None:
    """The list of all decoder layers and its name in the base model."""
    count = network.config.num_hidden_layers
    for name, child in network.base_model.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return name, child
    return None


def size(module: nn.Module) -> int:
    """Bytes of all weights, each counted once."""
    return sum(tensor.numel() * tensor.itemsize for tensor in (*module.parameters(), *module.buffers()))


def split(sizes: Sequence[int], outside: int, num_devices: int) -> list[int]:
    """The device of every layer: consecutive blocks, of which the first shares its device with `outside` bytes.

    A layer goes to the device in whose share of all bytes its middle lies; so no device has more than its share and
    one layer, unless `outside` alone is more.
    """
    total, before, places = outside + sum(sizes), outside, []
    for layer in sizes:
        places.append(min(int((before + layer / 2) / total * num_devices), num_devices - 1))
        before += layer
    return places


def carry(layer: nn.Module, device: torch.device) -> None:
    """Bring whatever `layer` is called with to its device."""
    layer.register_forward_pre_hook(
        lambda _module, inputs, named: (moved(inputs, device), moved(named, device)), with_kwargs=True
    )


def moved(value: Any, device: torch.device) -> Any:
    """The same with all its tensors on `device`; tuples, lists and dictionaries are looked into."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(part, device) for part in value)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return value

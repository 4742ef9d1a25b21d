"""Loads a model from its folder, or makes one of given sizes with random weights, on one device or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from evals.config import EngineConfig
from evals.engine.execution import prepare
from evals.engine.model import UNKNOWN_LAYERS, Model, decoder_layers
from evals.engine.model_support import check_architecture, first_line, refusal
from evals.engine.tokenizer import load_tokenizer
from evals.sizing.shapes import Shape
from evals.types import UserError


def weights_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """The type of the weights: as set; auto is float32 on a CPU, bfloat16 on a GPU, float16 on one without bfloat16.

    Raises UserError where bfloat16 was asked for and the GPU has none.
    """
    lacking = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if config.dtype == "bfloat16" and lacking:
        raise UserError("The GPU has no bfloat16; set engine.dtype to float16 or auto.")
    auto = "float32" if device.type == "cpu" else "float16" if lacking else "bfloat16"
    return getattr(torch, auto if config.dtype == "auto" else config.dtype)


def load_model(folder: str, config: EngineConfig, device: str | torch.device, num_threads: int | None = None) -> Model:
    """The model of `read_model`, prepared for engines and checked. Raises UserError also where the check fails."""
    return prepare(read_model(folder, config, device, num_threads))


def read_model(folder: str, config: EngineConfig, device: str | torch.device, num_threads: int | None = None) -> Model:
    """Load the model of a local folder with its tokenizer to `device`, its attention replaced by the engine's.

    `num_threads` sets the CPU threads of this process's products. Raises UserError for a model that the engine cannot
    serve, for weights that are missing or not safetensors, and for attention that cannot be replaced.
    """
    check_architecture(folder, config.trust_remote_code)
    if not config.allow_pickle and not list(Path(folder).glob("*.safetensors")):
        raise UserError(
            f"The model folder {folder} has no safetensors weights; convert them, or set engine.allow_pickle to load "
            "pickled ones from a source you trust."
        )
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = torch.device(device)
    dtype = weights_dtype(config, device)
    logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=None if config.allow_pickle else True,
            trust_remote_code=config.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"The model in {folder} cannot be loaded: {first_line(error)}.") from error
    network, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"The weights in {folder} are incomplete: {missing[0]} and {len(missing) - 1} others are missing."
        )
    tokenizer = load_tokenizer(folder, config.trust_remote_code)
    try:
        if config.gpus_per_model == 1:
            network.to(device)
        elif not spread(network, cuda_devices(config.gpus_per_model)):
            reason = f"engine.gpus_per_model is {config.gpus_per_model} and {UNKNOWN_LAYERS}"
            raise refusal(folder, type(network).__name__, reason)
        return Model(network, tokenizer, folder, config.float32_logits)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The model in {folder} does not fit the GPU ({first_line(error)}); free the GPU or choose a smaller model."
        ) from error


def make_network(config: Any, dtype: torch.dtype, device: str) -> Any:
    """The library's model of a configuration with random weights on `device`, or without weights on `meta`."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def shape_config(shape: Shape) -> Any:
    """The library's configuration of a model of this shape."""
    return AutoConfig.for_model(**shape._asdict())


def random_model(shape: Shape, config: EngineConfig, device: str) -> Model:
    """A model of this shape with random weights on `device`, without a tokenizer."""
    return Model(make_network(shape_config(shape), weights_dtype(config, torch.device(device)), device))


def cuda_devices(count: int) -> list[torch.device]:
    """The first GPUs of this process. Raises UserError if it has fewer."""
    present = torch.cuda.device_count()
    if present < count:
        raise UserError(
            f"engine.gpus_per_model asks for {count} GPUs for one model and this worker has {present}; ask for at "
            "most these, or leave it out."
        )
    return [torch.device("cuda", index) for index in range(count)]


def spread(network: Any, devices: Sequence[torch.device]) -> bool:
    """Move a causal model of the library to `devices`, in blocks of layers of about equal bytes.

    Returns False, and does nothing, where its decoder layers cannot be told apart.
    """
    if (layers := decoder_layers(network)) is None:
        return False
    held = list(layers)
    del layers[:]
    outside = size(network)
    network.to(devices[0])
    layers.extend(held)
    for layer, place in zip(held, split([size(layer) for layer in held], outside, len(devices)), strict=True):
        carry(layer.to(devices[place]), devices[place])
    held[-1].register_forward_hook(lambda _module, _inputs, output: moved(output, devices[0]))
    return True


def size(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers, each counted once."""
    return sum(tensor.numel() * tensor.itemsize for tensor in (*module.parameters(), *module.buffers()))


def split(sizes: Sequence[int], outside: int, num_devices: int) -> list[int]:
    """The number of the device of every layer: consecutive layers go together, the first ones beside `outside` bytes.

    A layer goes to the device in whose share of all bytes its middle lies; so no device has more than its share and
    one layer, unless `outside` alone is more.
    """
    total, before, places = outside + sum(sizes), outside, []
    for layer in sizes:
        places.append(min(int((before + layer / 2) / total * num_devices), num_devices - 1))
        before += layer
    return places


def carry(layer: nn.Module, device: torch.device) -> None:
    """Have the inputs of `layer` moved to its device at every call."""
    layer.register_forward_pre_hook(
        lambda _module, inputs, named: (moved(inputs, device), moved(named, device)), with_kwargs=True
    )


def moved(value: Any, device: torch.device) -> Any:
    """`value` with all its tensors on `device`, also those in tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(moved(part, device) for part in value)
    if isinstance(value, dict):
        return {name: moved(part, device) for name, part in value.items()}
    return value

"""Loads a model from its folder, or makes one of given sizes with random weights, on one device or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from evals.config import EngineConfig
from evals.engine.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_alone, merge, unnamed_adapter
from evals.engine.execution import prepare
from evals.engine.model import UNKNOWN_LAYERS, Model, decoder_layers
from evals.engine.model_support import check_architecture, first_line, quiet, read_config, refusal, unusable_config
from evals.engine.tensors import check_finite, check_load
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


def load_model(
    folder: str,
    config: EngineConfig,
    device: str | torch.device,
    num_threads: int | None = None,
    adapter: str | None = None,
) -> Model:
    """The model of `read_model`, prepared for engines and checked. Raises UserError also where the check fails."""
    return prepare(read_model(folder, config, device, num_threads, adapter))


def read_model(
    folder: str,
    config: EngineConfig,
    device: str | torch.device,
    num_threads: int | None = None,
    adapter: str | None = None,
) -> Model:
    """Load the model of a local folder with its tokenizer to `device`, its attention replaced by the engine's.

    `num_threads` sets the CPU threads of this process's products; `adapter` is the folder of an adapter to merge.
    Raises UserError for a model that the engine cannot serve, for weights that are missing, not safetensors, not finite
    or not those of its configuration, and for attention that cannot be replaced.
    """
    check_architecture(folder, config.trust_remote_code)
    files = {path.name for path in Path(folder).glob("*.safetensors")} - {ADAPTER_WEIGHTS}
    if not config.allow_pickle and not files:
        raise UserError(
            f"The model folder {folder} has no safetensors weights; convert them, or set engine.allow_pickle to load "
            "pickled ones from a source you trust."
        )
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = torch.device(device)
    network = read_network(folder, config, weights_dtype(config, device), adapter)
    tokenizer = load_tokenizer(folder, config.trust_remote_code)
    try:
        if config.gpus_per_model == 1:
            network.to(device)
        elif not spread(network, cuda_devices(config.gpus_per_model)):
            reason = f"engine.gpus_per_model is {config.gpus_per_model} and {UNKNOWN_LAYERS}"
            raise refusal(folder, type(network).__name__, reason)
        check_finite(folder, network)
        return Model(network, tokenizer, folder, config.float32_logits)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The model in {folder} does not fit the GPU ({first_line(error)}); free the GPU or choose a smaller model."
        ) from error


def read_network(folder: str, config: EngineConfig, dtype: torch.dtype, adapter: str | None) -> Any:
    """The library's model of a folder on the CPU, every tensor of the checkpoint in its place.

    An `adapter` is merged in float32, and the result loaded as if it had been a checkpoint. Raises UserError.
    """
    options = {
        "use_safetensors": None if config.allow_pickle else True,
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": True,
    }
    if adapter is None:
        if (Path(folder) / ADAPTER_CONFIG).is_file():
            raise unnamed_adapter(folder)
        return load(folder, AutoModelForCausalLM, folder, dtype=dtype, **options)
    with base_alone(folder) as base:
        network = load(folder, AutoModelForCausalLM, base, dtype=torch.float32, **options)
    merge(network, adapter)
    if dtype == torch.float32:
        return network
    return load(folder, type(network), None, config=network.config, state_dict=network.state_dict(), dtype=dtype)


def load(folder: str, kind: Any, source: str | None, **options: Any) -> Any:
    """What a class of the library loads from `source`, checked; `folder` is for messages. Raises UserError."""
    try:
        with quiet():
            network, report = kind.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:  # the library raises anything over damaged files
        raise UserError(f"The model in {folder} cannot be loaded: {first_line(error)}.") from error
    check_load(folder, network, report)
    return network


def skeleton(folder: str, trust_remote_code: bool) -> Any | None:
    """The library's model of a folder without weights; None if the model brings code of its own.

    Raises UserError where no model can be made of its configuration.
    """
    config = read_config(folder, trust_remote_code)
    if getattr(config, "auto_map", None):
        return None
    try:
        with quiet():
            return make_network(config, torch.bfloat16, "meta")
    except Exception as error:  # the library raises anything over a damaged configuration
        raise unusable_config(folder, first_line(error)) from error


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

"""From a model's folder, or the sizes of a shape, to a model on its device. Knows no attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from evals.config import EngineConfig
from evals.engine.gate import ModelLimits, check_architecture, first_line, refusal
from evals.engine.model import Model
from evals.engine.sharding import cuda_devices, spread
from evals.engine.tokenizer import load_tokenizer
from evals.types import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_SINCE = (8, 0)  # CUDA capability


def weights_dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    """As set; by itself float32 on a CPU, bfloat16 on a GPU, and float16 on a GPU that has no bfloat16.

    Raises UserError where bfloat16 was asked for and the GPU has none.
    """
    if config.dtype == "auto" and device.type == "cpu":
        return torch.float32
    lacking = device.type == "cuda" and torch.cuda.get_device_capability(device) < BFLOAT16_SINCE
    if config.dtype == "bfloat16" and lacking:
        raise UserError("The GPU has no bfloat16; set engine.dtype to float16 or auto.")
    return DTYPES.get(config.dtype, torch.float16 if lacking else torch.bfloat16)


def load_model(folder: str, config: EngineConfig, device: str | torch.device, num_threads: int | None = None) -> Model:
    """Tokenizer and weights of a local folder, on `device`, with the attention seam installed.

    `num_threads` sets the CPU threads of this process's products. Raises UserError for what the gate refuses, for
    weights that are missing or not safetensors, and for a model into which the seam does not fit.
    """
    limits = check_architecture(folder, config.trust_remote_code)
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
        if config.tensor_parallel > 1:
            reason = spread(network, cuda_devices(config.tensor_parallel))
            if reason is not None:
                raise refusal(folder, limits.architecture, f"engine.tensor_parallel is on and {reason}")
        else:
            network.to(device)
        return Model(network, limits, tokenizer, folder, config.float32_logits)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"The model in {folder} does not fit the GPU ({first_line(error)}); free the GPU or choose a smaller model."
        ) from error


def make_network(config: Any, dtype: str, device: str) -> Any:
    """The library's model of a configuration with random weights, made on `device`; on `meta` it has none."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])


def shape_config(kind: str, sizes: dict[str, Any]) -> Any:
    """The configuration of the library's type `kind`."""
    return AutoConfig.for_model(kind, **sizes)


def random_model(kind: str, sizes: dict[str, Any], dtype: str, device: str) -> Model:
    """A model of the library's type `kind` with random weights, made on the device; it has no tokenizer."""
    config = shape_config(kind, sizes)
    network = make_network(config, dtype, device)
    return Model(network, ModelLimits(type(network).__name__, config.max_position_embeddings, config.vocab_size))

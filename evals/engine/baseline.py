"""The library's own `generate` with scores kept: what decoding is compared with. Knows no engine.

Scores and logits of all steps are kept, as published power-sampling code does, which needs log p and log q of every
token. The network decodes with its own attention and its own cache; it must not have been changed by an engine yet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from evals.engine.device import out_of_memory, read_memory, release, reset_peak
from evals.engine.model import PAGED, Model
from evals.types import MemoryReading


class Generated(NamedTuple):
    """What one call of `generate` took."""

    seconds: float
    steps: int
    """Tokens per row, that of the longest row."""
    memory: MemoryReading
    """After it; the peak is that of this call, on a CPU that of the process."""


@torch.inference_mode()
def generate(
    model: Model, prompts: Sequence[Sequence[int]], max_new_tokens: int, alpha: float, *, ends: bool = True
) -> Generated:
    """Sample from softmax(alpha * logits) for all prompts in one batch; without `ends`, EOS does not end a row.

    Raises what torch raises where the device has no room for the scores.
    """
    device, longest = model.device, max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    release(device)
    reset_peak(device)
    began = time.perf_counter()
    model.network.set_attn_implementation("sdpa")
    try:
        output = model.network.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            min_new_tokens=None if ends else max_new_tokens,
            do_sample=True,
            temperature=1 / alpha,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    finally:
        model.network.set_attn_implementation(PAGED)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Generated(time.perf_counter() - began, output.sequences.shape[1] - longest, read_memory(device))


def generate_steps(model: Model, prompts: Sequence[Sequence[int]], steps: int, alpha: float) -> Generated | None:
    """`steps` decoding steps, the pass over the prompts apart; None where memory does not suffice."""
    try:
        generate(model, prompts, 3, alpha, ends=False)  # what is loaded and allocated at first use
        short = generate(model, prompts, 1, alpha, ends=False)
        long = generate(model, prompts, steps + 1, alpha, ends=False)
    except RuntimeError as error:
        if out_of_memory(error) is None:
            raise
        return None
    return Generated(long.seconds - short.seconds, steps, long.memory)

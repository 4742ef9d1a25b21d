"""The largest passes of a run, run once before anything is planned, to see what memory they take. Knows no plan.

They go through the same calls as any pass, kernel by kernel, neither compiled nor captured, which takes no less memory.
All their tokens are written to one page that nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from evals.engine.batch import Run
from evals.engine.chains import Live, Running
from evals.engine.kv_cache import SCRATCH, KeysValues, PagePool
from evals.engine.memory import release
from evals.engine.model import Model
from evals.engine.planning import Reading, gib
from evals.engine.request import Slot
from evals.types import Chain, Handle, Prompt, Request, Steps, UserError

if TYPE_CHECKING:
    from evals.engine.decoder import GraphDecoder
    from evals.engine.eager import EagerDecoder


@torch.inference_mode()
def rehearse(
    model: Model, make: Callable[[], EagerDecoder | GraphDecoder], rows: int, max_length: int, prefill_tokens: int
) -> Reading:
    """Memory of a prompt pass of `prefill_tokens` tokens, and of a step of `rows` sequences of `max_length` tokens.

    `make` gives the decoder that runs them, on a CUDA device. Raises UserError if the passes do not fit beside the
    weights, else what the decoder raises.
    """
    device = model.device
    model.attach(KeysValues(model.cache_shape, 2, device))
    try:
        prompts, step = peaks(
            device, make(), largest_prompts(max_length, prefill_tokens), largest_step(rows, max_length)
        )
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        raise UserError(
            f"The GPU has no room for a pass of the model beside its weights: {gib(free)} of {gib(total)} are free; "
            "free the GPU, choose a smaller model, or lower POWERSAMPLE_BATCH_SIZE and engine.prefill_tokens."
        ) from error
    finally:
        model.detach()
    release(device)
    free, total = torch.cuda.mem_get_info(device)
    weights = torch.cuda.memory_reserved(device)
    return Reading(total, total - free - weights, weights, rows, prompts, step)


def peaks(
    device: torch.device, decoder: EagerDecoder | GraphDecoder, prompts: list[Run], running: list[Running]
) -> tuple[int, int]:
    """Bytes of a prompt pass and of a step."""
    return (
        peak(device, lambda: decoder.prefill(prompts)),
        peak(device, lambda: (decoder.step(running), decoder.step([]))),
    )


def peak(device: torch.device, run: Callable[[], object]) -> int:
    """Bytes that `run` takes at its height, beyond what is allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def largest_prompts(max_length: int, prefill_tokens: int) -> list[Run]:
    """Prompts as long as there can be, `prefill_tokens` tokens in all."""
    longest, pages = max(1, max_length - 1), (SCRATCH,) * PagePool.pages_for(0, max_length)
    full, rest = divmod(prefill_tokens, longest)
    return [Run((0,) * length, 0, pages) for length in [longest] * full + [rest] * (rest > 0)]


def largest_step(rows: int, max_length: int) -> list[Running]:
    """Requests about to draw their last token, among the most probable ones only, which takes the most memory."""
    prompt = Prompt((0,), max_length, frozenset())
    live, prefix = Live(Chain(prompt, never()), 0), (0,) * max(1, max_length - 1)
    running = []
    for row in range(rows):
        slot = Slot(row, Request(prefix, 1, 1.0, (0, 0, row), 1, top_k=1, top_p=0.5), prompt, 0)
        slot.pages = (SCRATCH,) * PagePool.pages_for(0, max_length)
        running.append(Running(live, slot, Handle(row)))
    return running


def never() -> Steps:
    """Of a chain that is not started."""
    raise AssertionError("these requests belong to nobody")
    yield []

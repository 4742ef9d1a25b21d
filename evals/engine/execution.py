"""Makes a model fast on this machine, chooses the fastest decoder that works, and measures the memory of its passes.

On a CPU linears are packed. On a GPU those that read the same tensor are fused, decoder layers compiled, whole steps
replayed from CUDA graphs over our own kernels. What cannot be had here (no compiler, an operation that cannot be
captured) is printed once, and the next best is taken. A model's own code is not touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from evals.config import AUTO_SLOTS, EngineConfig
from evals.engine import selfcheck
from evals.engine.chain_state import DecodeState
from evals.engine.device import out_of_memory, release
from evals.engine.eager_decoder import Chunk, EagerDecoder
from evals.engine.kv_cache import SCRATCH, Allocation, PagePool
from evals.engine.linears import fuse_linears, pack_linears
from evals.engine.model import KeysValues, Model
from evals.engine.model_support import first_line
from evals.rng import RandomKey
from evals.sizing.slots import Demand, Reading, SlotPlan, gib, plan_slots, plan_unmeasured
from evals.types import Handle, Prompt, Request, UserError

if TYPE_CHECKING:
    from evals.engine.graph_decoder import GraphDecoder

    Decoder = EagerDecoder | GraphDecoder

WAYS = {"compiled": "compiled and captured as CUDA graphs", "graphs": "captured as CUDA graphs"}
ALLOWED = {"auto": ("compiled", "graphs"), "compiled": ("compiled", "graphs"), "graphs": ("graphs",), "eager": ()}
"""The ways to try for each setting of `engine.execution`, fastest first; the eager decoder always works."""


def prepare(model: Model) -> Model:
    """Replace the linears of a model by faster ones, once, and check that over pages it computes what it did before;
    returns it. Raises UserError naming the architecture if it does not.
    """
    if not model.prepared:
        plain = selfcheck.reference(model)
        if model.device.type == "cuda":
            fuse_linears(model.network, lambda: model.plain_logits([0, 1]))
        else:
            pack_linears(model.network)
        selfcheck.check(model, plain)
        model.prepared = True
    return model


def size_slots(
    model: Model, config: EngineConfig, demand: Demand, max_length: int, num_pages: int | None
) -> tuple[SlotPlan, EngineConfig]:
    """Slots and pages for `demand`, measured on a GPU unless `num_pages` is given, and the settings to run with.

    Raises UserError if not even one slot fits.
    """
    if model.device.type == "cuda":
        uncompile_layers(model)  # which an engine before may have had compiled
    if model.device.type != "cuda" or num_pages is not None:
        return plan_unmeasured(demand, num_pages), config
    rows = min(demand.slots or AUTO_SLOTS["cuda"], AUTO_SLOTS["cuda"])
    reading, config = measure(model, config, rows, max_length)
    return plan_slots(reading, demand, config), config


def measure(model: Model, config: EngineConfig, rows: int, max_length: int) -> tuple[Reading, EngineConfig]:
    """The memory that the largest passes of a run take on a GPU, and the settings to run with: `execution` is eager
    where our kernels do not work, which is printed.

    Raises UserError if the passes do not fit at all.
    """

    def kernels(cache: KeysValues) -> GraphDecoder:
        from evals.engine.graph_decoder import GraphDecoder

        return GraphDecoder(model, cache, rows, PagePool.pages_for(0, max_length), "kernels", graphs=False)

    if config.execution != "eager":
        try:
            return profile_memory(model, kernels, rows, max_length, config.prefill_tokens), config
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - compilers raise of all kinds; a broken device fails below as well
            reason = f"{type(error).__name__}: {first_line(error)}"
        print(f"The kernels for this GPU cannot be run ({reason}); taking plain operations.", file=sys.stderr)
        config = config.model_copy(update={"execution": "eager"})
    return profile_memory(model, partial(EagerDecoder, model), rows, max_length, config.prefill_tokens), config


def make_decoder(model: Model, config: EngineConfig, slots: int, max_pages: int, num_pages: int) -> Decoder:
    """The fastest decoder for `slots` requests of at most `max_pages` pages that settings and machine allow, checked,
    over `num_pages` new pages of keys and values. Raises UserError where it draws other tokens than the model.
    """
    cache = KeysValues(model.cache_shape, num_pages, model.device)
    decoder = fastest_decoder(model, cache, config, slots, max_pages)
    selfcheck.check_decoder(model, decoder, slots, max_pages, num_pages)
    return decoder


def fastest_decoder(model: Model, cache: KeysValues, config: EngineConfig, slots: int, max_pages: int) -> Decoder:
    """The decoder of `make_decoder`. Raises what a failing device raises, running out of memory included; an error of
    compiling or capturing is printed and leads to the next way.
    """
    if model.device.type != "cuda":
        return EagerDecoder(model, cache)
    for way in ALLOWED[config.execution]:
        try:
            if way == "compiled":
                compile_layers(model)
            from evals.engine.graph_decoder import GraphDecoder

            decoder = GraphDecoder(model, cache, slots, max_pages, way)
            decoder.warm_up(config.prefill_tokens)
        except Exception as error:  # compilers raise of all kinds; a broken device fails the next way too
            uncompile_layers(model)
            if out_of_memory(error) is not None:
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            print(f"Steps cannot be {WAYS[way]} here ({reason}); taking the next best way.", file=sys.stderr)
        else:
            return decoder
    return EagerDecoder(model, cache)


def compile_layers(model: Model) -> None:
    """Have every decoder layer compiled at its next call; layers that are alike share one program."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for layer in model.layers():
        layer.compile(fullgraph=True, dynamic=False)


def uncompile_layers(model: Model) -> None:
    """Undo `compile_layers`."""
    for layer in model.layers():
        layer._compiled_call_impl = None


@torch.inference_mode()
def profile_memory(
    model: Model, make: Callable[[KeysValues], Decoder], rows: int, max_length: int, prefill_tokens: int
) -> Reading:
    """Measure the memory of a pass of `prefill_tokens` prompt tokens and of a step of `rows` sequences of `max_length`.

    `make` gives the decoder over a cache that runs them, on a CUDA device. Raises UserError if the passes do not fit
    beside the weights, else what the decoder raises.
    """
    device = model.device
    chunks, states = largest_prompts(max_length, prefill_tokens), largest_step(rows, max_length)
    try:
        decoder = make(KeysValues(model.cache_shape, 2, device))
        prompts = peak(device, lambda: decoder.prefill(chunks))
        step = peak(device, lambda: (decoder.step(states), decoder.step([])))
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        raise UserError(
            f"The GPU has no room for a pass of the model beside its weights: {gib(free)} of {gib(total)} are free; "
            "free the GPU, choose a smaller model, or lower the slots and the tokens of a prefill.",
            ("batch_size", "engine.prefill_tokens"),
        ) from error
    finally:
        model.detach()
    decoder.cache.parts.clear()  # so that what is left are the weights
    release(device)
    free, total = torch.cuda.mem_get_info(device)
    weights = torch.cuda.memory_reserved(device)
    return Reading(total, total - free - weights, weights, rows, prompts, step)


def peak(device: torch.device, run: Callable[[], object]) -> int:
    """Bytes that `run` takes at its peak, beyond what is allocated before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def largest_prompts(max_length: int, prefill_tokens: int) -> list[Chunk]:
    """A prompt pass of the longest prompts that there can be, `prefill_tokens` tokens in all."""
    longest, pages = max(1, max_length - 1), (SCRATCH,) * PagePool.pages_for(0, max_length)
    full, rest = divmod(prefill_tokens, longest)
    return [Chunk((0,) * length, 0, pages) for length in [longest] * full + [rest] * (rest > 0)]


def largest_step(rows: int, max_length: int) -> list[DecodeState]:
    """Requests about to draw their last token, among the most probable ones only, which takes the most memory."""
    prompt, prefix = Prompt((0,), max_length, frozenset()), (0,) * max(1, max_length - 1)
    allocation = Allocation(Handle(0), (SCRATCH,) * PagePool.pages_for(0, max_length), (), None)
    keys = [RandomKey(0, 0, 0, row) for row in range(rows)]
    return [DecodeState(Request(prefix, 1, 1.0, key, 1, top_k=1, top_p=0.5), prompt, allocation) for key in keys]

"""The fastest way to decode that a machine can do, and what makes a forward pass fast without touching its code.

On a GPU: linears that read the same tensor fused, decoder layers compiled, whole steps replayed from CUDA graphs over
our own kernels. What cannot be had here (no compiler, an operation that cannot be captured) is said once, and the next
best is taken. Knows no request.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from evals.config import EngineConfig
from evals.engine.eager import EagerDecoder
from evals.engine.fuse import fuse_linears
from evals.engine.model import Model, first_line

if TYPE_CHECKING:
    from evals.engine.decoder import GraphDecoder


WAYS = {"compiled": "compiled and captured as CUDA graphs", "graphs": "captured as CUDA graphs"}
ALLOWED = {"auto": ("compiled", "graphs"), "compiled": ("compiled", "graphs"), "graphs": ("graphs",), "eager": ()}
"""The ways to try for each setting of `engine.execution`, best first; kernel by kernel always works."""


def fastest(model: Model, config: EngineConfig, slots: int, max_pages: int) -> EagerDecoder | GraphDecoder:
    """The decoder for `slots` requests of at most `max_pages` pages, as fast as setting and machine allow.

    Raises what a failing device raises; an error of compiling or capturing is printed and leads to the next way.
    """
    if model.device.type != "cuda":
        return EagerDecoder(model)
    fuse_linears(model.network, lambda: model.plain_logits([0, 1]))
    for way in ALLOWED[config.execution]:
        try:
            if way == "compiled":
                compile_layers(model)
            from evals.engine.decoder import GraphDecoder

            decoder = GraphDecoder(model, slots, max_pages, way)
            decoder.warm_up()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - compilers raise of all kinds; a broken device fails the next way too
            uncompile_layers(model)
            reason = f"{type(error).__name__}: {first_line(error)}"
            print(f"Steps cannot be {WAYS[way]} here ({reason}); taking the next best way.", file=sys.stderr)
        else:
            return decoder
    return EagerDecoder(model)


def compile_layers(model: Model) -> None:
    """Every decoder layer compiled at its next call; layers that are alike share one program."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for layer in model.layers():
        layer.compile(fullgraph=True, dynamic=False)


def uncompile_layers(model: Model) -> None:
    """Layers run as they are written again."""
    for layer in model.layers():
        layer._compiled_call_impl = None

"""A transformers model whose attention runs over pages, as the engine calls it.

An attention function registered without a mask function of the same name makes the library build no mask and call ours;
no cache class and no model code is involved. Keys, values and the step are attributes of the attention modules, found
by one probe forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from evals.engine.attention import AttentionError, Probe, PromptStep, RowsStep, Step, StepHolder, paged_attention
from evals.engine.kv_cache import PAGE, Allocation
from evals.engine.linears import float32_head
from evals.engine.model_support import context_length, refusal, windows
from evals.engine.tokenizer import Tokenizer
from evals.types import UserError


class CacheShape(NamedTuple):
    """Shape of the keys, and of the values, of every attention layer."""

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    devices: tuple[torch.device, ...] = ()
    """The device of every layer where not all are on the model's own, else empty."""

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers, keys and values."""
        return 2 * self.num_layers * self.num_heads * self.head_dim * PAGE * self.dtype.itemsize


class KeysValues:
    """The keys and values of a page pool, a tensor for the layers of each device: [2, layers, pages, heads, PAGE,
    head_dim], keys first."""

    def __init__(self, shape: CacheShape, num_pages: int, device: torch.device) -> None:
        rest = (num_pages, shape.num_heads, PAGE, shape.head_dim)
        self.parts: list[torch.Tensor] = []
        for place, layers in groupby(shape.devices or (device,) * shape.num_layers):
            self.parts.append(torch.zeros(2, len(list(layers)), *rest, dtype=shape.dtype, device=place))

    @property
    def tensor(self) -> torch.Tensor:
        """The one tensor of all layers. Raises ValueError where they lie on several devices."""
        (part,) = self.parts
        return part

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each [pages, heads, PAGE, head_dim] and seemingly a storage of its own.

        A compiler that sees two tensors of one storage being written to copies the storage to keep them apart.
        """
        for part in self.parts:
            if index < part.shape[1]:
                return own_storage(part[0, index]), own_storage(part[1, index])
            index -= part.shape[1]
        raise IndexError("there are not as many layers")

    def prepare(self, allocations: Sequence[Allocation]) -> None:
        """Copy the pages that new sequences share in part, and clear the others that they own.

        Copies come first: a page that is copied from may have been released since, and be one of those to clear.
        Attention reads whole pages and masks what is not visible; a NaN that an earlier sequence left would pass the
        mask.
        """
        copies = [allocation.copy for allocation in allocations if allocation.copy is not None]
        copied = {to for _, to in copies}
        clear = [page for allocation in allocations for page in allocation.fresh if page not in copied]
        if copies:
            for part in self.parts:
                sources, targets = torch.tensor(copies, device=part.device).T
                part.index_copy_(2, targets, part.index_select(2, sources))
        if clear:
            self.fill(clear, 0.0)

    def fill(self, pages: Sequence[int], value: float) -> None:
        """Set every number in these pages."""
        for part in self.parts:
            part.index_fill_(2, torch.tensor(pages, dtype=torch.long, device=part.device), value)


def pending_copies(allocations: Sequence[Allocation]) -> list[Allocation]:
    """Allocations whose copy has to be made again once prompts are written: of a page that an earlier one owns."""
    fresh: set[int] = set()
    pending = []
    for allocation in allocations:
        if allocation.copy is not None and allocation.copy[0] in fresh:
            pending.append(allocation._replace(fresh=()))
        fresh.update(allocation.fresh)
    return pending


def own_storage(part: torch.Tensor) -> torch.Tensor:
    """A tensor on the memory of this contiguous part of another, with a storage of its own."""
    start = part.storage_offset() * part.itemsize
    storage = part.untyped_storage()[start : start + part.numel() * part.itemsize]
    return torch.empty(0, dtype=part.dtype, device=part.device).set_(storage, 0, part.shape, part.stride())


PAGED, PROBE = "powersample", "powersample-probe"

AttentionInterface.register(PAGED, paged_attention)


UNKNOWN_LAYERS = "its decoder layers cannot be told apart"


def decoder_layers(network: Any) -> nn.ModuleList | None:
    """The outermost list of as many modules as `network`, a causal model of the library, has layers; None without."""
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
    return next((layers for layers in lists if len(layers) == network.config.num_hidden_layers), None)


class Model:
    """A causal language model whose attention runs over pages."""

    def __init__(
        self, network: Any, tokenizer: Tokenizer | None = None, folder: str = "", float32_logits: bool = False
    ) -> None:
        """Replace the attention of `network` (a transformers model on its device); `float32_logits` as in EngineConfig.

        Raises UserError if the attention cannot be replaced, or the head's product not be taken in float32.
        """
        self.folder, self.network = folder, network
        network.config.return_dict = True  # the modules inside read it, too, and read fields of what others return
        self.context_length = context_length(network.config) or 0
        """Longest prompt plus answer, in tokens."""
        self.vocab_size: int = network.config.vocab_size
        """Number of rows of the embedding."""
        self._tokenizer = tokenizer
        self._plain = network.config._attn_implementation
        self._step_holder = StepHolder()
        self.cache: KeysValues | None = None
        """Where keys and values are written to and read from."""
        self._keeps_logits = network._supports_logits_to_keep()
        self.device: torch.device = network.device
        self.prepared = False
        """Whether it has been through `execution.prepare`, which an engine asks for."""
        network.eval().requires_grad_(False)
        with torch.inference_mode():
            self._attention, self.cache_shape, self.num_query_heads = self._probe()
            self._switch(self._plain)
            head = float32_head(network) if float32_logits and network.dtype != torch.float32 else None
        if isinstance(head, str):
            raise self.refuse(f"engine.float32_logits is on and {head}")
        self._head = head
        self._switch(PAGED)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError if the model was made without one."""
        if self._tokenizer is None:
            raise ValueError("this model was made without a tokenizer")
        return self._tokenizer

    def attach(self, cache: KeysValues) -> None:
        """Write keys and values to `cache`, and read them from there, from now on."""
        if cache is self.cache:
            return
        self.cache = cache
        for index, module in enumerate(self._attention):
            module.k_pages, module.v_pages = cache.layer(index)
            module.step_holder = self._step_holder

    def detach(self) -> None:
        """Drop the references to keys and values."""
        self.cache = None
        for module in self._attention:
            module.k_pages = module.v_pages = None

    def forward(self, step: Step) -> Tensor:
        """Float32 logits [rows asked for, V] of a packed pass; writes keys and values of all its tokens."""
        self._step_holder.step = step
        return self._logits(step.logits_at, input_ids=step.token_ids, position_ids=step.positions).float()

    def logits(self, step: RowsStep) -> Tensor:
        """Logits [B, V] of every row, in the model's own type or in float32; reads nothing on the host."""
        self._step_holder.step = step
        return self._logits(None, input_ids=step.token_ids[None], position_ids=step.positions[None])

    def fill(self, step: PromptStep) -> None:
        """Write keys and values of prompt tokens; reads nothing on the host."""
        self._step_holder.step = step
        self.network.base_model(
            input_ids=step.token_ids[None], position_ids=step.positions[None], use_cache=False, return_dict=True
        )

    def layers(self) -> nn.ModuleList:
        """The decoder layers. Raises UserError where they cannot be told apart."""
        if (layers := decoder_layers(self.network)) is None:
            raise self.refuse(UNKNOWN_LAYERS)
        return layers

    def plain_logits(self, token_ids: Sequence[int], eager: bool = False) -> Tensor:
        """Float32 logits [N, V] of one sequence by the model's own attention, without pages: the model as it came,
        until linears.py changes it.

        `eager` takes the library's attention in plain products instead of the one that the model came with.
        """
        self._switch("eager" if eager else self._plain)
        try:
            return self._logits(None, input_ids=torch.tensor([list(token_ids)], device=self.device)).float()
        finally:
            self._switch(PAGED)

    def _logits(self, keep: Tensor | None, **inputs: Tensor) -> Tensor:
        """Logits of the tokens with indices `keep`, or of all."""
        if self._head is not None:
            hidden = self.network.base_model(**inputs, use_cache=False, return_dict=True).last_hidden_state[0]
            return self._head(hidden if keep is None else hidden[keep])
        options = {} if keep is None or not self._keeps_logits else {"logits_to_keep": keep}
        logits = self.network(**inputs, use_cache=False, return_dict=True, **options).logits[0]
        return logits if keep is None or self._keeps_logits else logits[keep]

    def _switch(self, implementation: str) -> None:
        self.network.set_attn_implementation(implementation)
        if self.network.config._attn_implementation != implementation:
            raise self.refuse("its attention cannot be replaced")

    def refuse(self, reason: str) -> UserError:
        """The error that says that this model cannot be used, and why."""
        return refusal(self.folder, type(self.network).__name__, reason)

    def _probe(self) -> tuple[list[Any], CacheShape, int]:
        """Attention modules, shape of keys and values, and number of query heads, recorded in one forward pass."""
        probe = Probe()
        AttentionInterface.register(PROBE, probe.attention)
        try:
            self._switch(PROBE)
            ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
            self.network(input_ids=ids, position_ids=torch.arange(2, device=self.device)[None], use_cache=False)
        except AttentionError as error:
            raise self.refuse(str(error)) from error
        config, modules = self.network.config, probe.modules
        if len(modules) != config.num_hidden_layers or len(set(map(id, modules))) != len(modules):
            raise self.refuse(f"{len(modules)} attention calls were seen in {config.num_hidden_layers} layers")
        if len(probe.shapes) != 1:
            raise self.refuse("its layers differ in the shape of queries, keys or values")
        if windows(config) and probe.windows == {0}:
            raise self.refuse("it does not tell its attention about the sliding window")
        devices = () if set(probe.devices) == {self.device} else tuple(probe.devices)
        heads, size, dtype, query_heads = probe.shapes.pop()
        return modules, CacheShape(len(modules), heads, size, dtype, devices), query_heads

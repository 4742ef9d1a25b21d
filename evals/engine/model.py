"""Transformers models behind the engine's step: the only file that imports transformers.

An attention function registered without a mask function of the same name makes the library build no mask and call ours;
no cache class and no model code is involved. Keys, values and the step are attributes of the attention modules, found
by one probe forward. Knows no request and no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from evals.config import EngineConfig
from evals.engine.attention import Step
from evals.engine.gate import ModelLimits, context_length, objection, windows
from evals.engine.head import float32_head
from evals.engine.kernel_steps import PromptStep, RowsStep
from evals.engine.kv_cache import CacheShape, KeysValues
from evals.engine.linear import pack_linears
from evals.engine.seam import Probe, SeamError, Seat, paged_attention
from evals.engine.sharding import cuda_devices, spread
from evals.types import Message, UserError

PAGED, PROBE = "powersample", "powersample-probe"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16_SINCE = (8, 0)  # CUDA capability
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
FAMILIES = "Llama, Qwen2, Qwen3, Mistral, Gemma 2, Phi-3, GPT-2 and most other decoder-only families work"

AttentionInterface.register(PAGED, paged_attention)


class Tokenizer:
    """Text to ids and back, exactly: nothing is added but what the tokenizer itself adds, nothing is cleaned up."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = eos_ids
        """Every id that ends an answer: the tokenizer's, the generation configuration's and the model's."""
        self.vocab_size: int = len(tokenizer)
        """Ids that the tokenizer knows; a model may have more."""
        self._fast: Any = None
        if getattr(type(tokenizer), "_decode", None) is PreTrainedTokenizerFast._decode:
            self._fast = tokenizer.backend_tokenizer

    def encode(self, prompt: str | Sequence[Message]) -> list[int]:
        """Ids of a raw prompt, with what the tokenizer adds by default (BOS for Llama), however long.

        The turns of a chat go through the model's chat template, up to where the assistant begins. Raises UserError if
        the model has none.
        """
        if isinstance(prompt, str):
            return self._tokenizer(prompt, verbose=False)["input_ids"]  # the preflight says what is too long
        if self._tokenizer.chat_template is None:
            raise UserError(
                "The prompts are chats (task.preset, task.chat) but the model's tokenizer has no chat template; choose "
                "a chat model, or set task.chat to false."
            )
        text = self._tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of these ids."""
        if self._fast is not None:  # what the library calls as well, after a look at the type of every single id
            return self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )


def load_tokenizer(folder: str, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a local model folder. Raises UserError if there is none that can be used."""
    config = read_config(folder, trust_remote_code)
    try:
        if not any(file for pattern in TOKENIZER_FILES for file in Path(folder).glob(pattern)):
            raise OSError("no file of it is there")  # some versions of the library would make up an empty one
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"The model folder {folder} has no usable tokenizer ({first_line(error)}); use one written by the "
            "`save_pretrained` of both model and tokenizer."
        ) from error
    ids = as_ids(tokenizer.eos_token_id) | as_ids(getattr(config, "eos_token_id", None))
    if (Path(folder) / "generation_config.json").is_file():
        ids |= as_ids(GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id)
    return Tokenizer(tokenizer, ids)


def as_ids(value: Any) -> frozenset[int]:
    """An id, a list of ids or nothing, as a set."""
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def read_config(folder: str, trust_remote_code: bool) -> Any:
    """The configuration in a local folder. Raises UserError where the folder, the file or the model type is missing."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"The model folder {folder} does not exist; set POWERSAMPLE_MODEL to a folder that does.")
    if not (path / "config.json").is_file():
        raise UserError(f"The model folder {folder} has no config.json; use one that `save_pretrained` wrote.")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, StrictDataclassError) as error:
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None  # which says what was expected
        reason, way_out = first_line(cause or error), "choose another model, or download it again if it should be one"
        if "custom code" in reason:
            reason, way_out = (
                "it brings Python code of its own",
                "engine.trust_remote_code=true runs it if you trust it",
            )
        raise UserError(f"{path / 'config.json'} cannot be used: {reason}; {way_out}.") from error


def check_architecture(folder: str, trust_remote_code: bool = False) -> ModelLimits:
    """The gate: whether the engine can serve the model in this folder, before its weights are loaded.

    Raises UserError naming folder and architecture.
    """
    config = read_config(folder, trust_remote_code)
    named = (getattr(config, "architectures", None) or [None])[0]
    remote = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    classes: list[Any] = model_classes(config)
    architecture = named or (classes[0].__name__ if classes else type(config).__name__)
    if remote and not trust_remote_code:
        raise refusal(folder, architecture, "it brings Python code of its own; engine.trust_remote_code=true allows it")
    chosen = [cls for cls in classes if named in (None, cls.__name__)]
    if any(getattr(cls, "_is_stateful", False) for cls in chosen):
        raise refusal(folder, architecture, "it keeps a recurrent state, which cannot be rewound")
    if (reason := objection(config)) is not None:
        raise refusal(folder, architecture, reason)
    if not remote:
        if not chosen or not chosen[0].__name__.endswith(("ForCausalLM", "LMHeadModel")):
            raise refusal(folder, architecture, "it is not a text-only causal language model")
        if not chosen[0]._can_set_attn_implementation():
            raise refusal(folder, architecture, "its attention cannot be replaced (it does not use AttentionInterface)")
    length = context_length(config)
    if length is None:
        raise refusal(folder, architecture, "its configuration names no longest sequence")
    return ModelLimits(architecture, length, config.vocab_size)


def model_classes(config: Any) -> list[Any]:
    """The library's causal language models of this configuration; none if it knows none."""
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return [] if found is None else list(found) if isinstance(found, tuple) else [found]


def refusal(folder: str, architecture: str, reason: str) -> UserError:
    """The sentence for a model that cannot be served."""
    return UserError(f"The model in {folder} ({architecture}) cannot be used: {reason}; {FAMILIES}.")


class Model:
    """A causal language model whose attention runs over pages."""

    def __init__(
        self,
        network: Any,
        limits: ModelLimits,
        tokenizer: Tokenizer | None = None,
        folder: str = "",
        float32_logits: bool = False,
    ) -> None:
        """Install the seam into `network` (a transformers model on its device); `float32_logits` as in EngineConfig.

        Raises UserError if the seam does not fit, or the head's product cannot be taken in float32.
        """
        self.limits, self.folder, self.network = limits, folder, network
        self._tokenizer = tokenizer
        self._plain = network.config._attn_implementation
        self._seat, self._elsewhere = Seat(), dict[torch.device, Seat]()
        self.cache: KeysValues | None = None
        """Where keys and values are written to and read from."""
        self._keeps_logits = network._supports_logits_to_keep()
        self.device: torch.device = network.device
        self.checked = False
        """Whether this model has passed the self-check."""
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
        if self._tokenizer is None:
            raise ValueError("this model was made without a tokenizer")
        return self._tokenizer

    def attach(self, cache: KeysValues) -> None:
        """Keys and values are written to and read from `cache` from now on."""
        if cache is self.cache:
            return
        self.cache = cache
        for index, module in enumerate(self._attention):
            module.k_pages, module.v_pages = cache.layer(index)
            module.seat = self._seat
        for module, device in zip(self._attention, self.cache_shape.devices, strict=False):
            if device != self.device:
                module.seat = self._elsewhere.setdefault(device, Seat())

    def detach(self) -> None:
        """Let go of the keys and values."""
        self.cache = None
        for module in self._attention:
            module.k_pages = module.v_pages = None

    def forward(self, step: Step) -> Tensor:
        """Float32 logits [rows asked for, V] of one packed row; writes keys and values of all its tokens."""
        self._seat.step = step
        for device, seat in self._elsewhere.items():
            seat.step = step.to(device)
        return self._logits(step.logits_at, input_ids=step.token_ids, position_ids=step.positions).float()

    def logits(self, step: RowsStep) -> Tensor:
        """Logits [B, V] of every row, in the model's own type or in float32; reads nothing on the host."""
        self._seat.step = step
        return self._logits(None, input_ids=step.token_ids[None], position_ids=step.positions[None])

    def fill(self, step: PromptStep) -> None:
        """Keys and values of prompt tokens; reads nothing on the host."""
        self._seat.step = step
        self.network.base_model(
            input_ids=step.token_ids[None], position_ids=step.positions[None], use_cache=False, return_dict=True
        )

    def layers(self) -> list[nn.Module]:
        """The decoder layers: the members of the one list of modules whose members hold one attention module each."""
        attention = set(map(id, self._attention))
        for module in self.network.modules():
            if isinstance(module, nn.ModuleList) and len(module) == len(self._attention):
                held = [sum(id(part) in attention for part in layer.modules()) for layer in module]
                if set(held) == {1}:
                    return list(module)
        raise self.refuse("its decoder layers cannot be told apart")

    def pack(self) -> None:
        """Put the faster products in place, where there are any; after that `plain_logits` uses them too."""
        pack_linears(self.network)

    def plain_logits(self, token_ids: Sequence[int], eager: bool = False) -> Tensor:
        """Float32 logits [N, V] of one sequence by its own attention, no pages; before `pack`, the model as it came.

        `eager` takes the library's attention in plain products instead of the one that the model came with.
        """
        self._switch("eager" if eager else self._plain)
        try:
            return self._logits(None, input_ids=torch.tensor([list(token_ids)], device=self.device)).float()
        finally:
            self._switch(PAGED)

    def _logits(self, keep: Tensor | None, **inputs: Tensor) -> Tensor:
        """Logits of the tokens `keep`, or of all."""
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
        """The sentence that says that this model cannot be used, and why."""
        return refusal(self.folder, self.limits.architecture, reason)

    def _probe(self) -> tuple[list[Any], CacheShape, int]:
        """One forward pass through a recording attention: its modules, the shape of keys and values, query heads."""
        probe = Probe()
        AttentionInterface.register(PROBE, probe.attention)
        try:
            self._switch(PROBE)
            ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
            self.network(input_ids=ids, position_ids=torch.arange(2, device=self.device)[None], use_cache=False)
        except SeamError as error:
            raise self.refuse(str(error)) from error
        config = self.network.config
        modules = probe.modules_seen
        if len(modules) != config.num_hidden_layers or len(set(map(id, modules))) != len(modules):
            raise self.refuse(f"{len(modules)} attention calls were seen in {config.num_hidden_layers} layers")
        if len(probe.shapes) != 1 or len(probe.query_heads) != 1:
            raise self.refuse("its layers differ in the shape of queries, keys or values")
        if windows(config) and probe.windows == {0}:
            raise self.refuse("it does not tell its attention about the sliding window")
        devices = tuple(probe.devices) if len(set(probe.devices)) > 1 else ()
        return modules, CacheShape(len(modules), *probe.shapes.pop(), devices), probe.query_heads.pop()


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

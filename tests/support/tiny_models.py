"""Random models of a few thousand parameters, and chains that are scripts: what the engine's tests are made of."""

from __future__ import annotations

import copy
from collections.abc import Generator, Hashable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    NanoChatConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    StableLmConfig,
)

from evals.config import EngineConfig
from evals.engine.eager_decoder import Layout
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.engine.model import KeysValues, Model
from evals.rng import RandomKey
from evals.types import Chain, Completion, Operation, Prompt, Request, Sample, Steps, Submit
from support.figures import figures

torch.set_num_threads(1)  # the models are so small that threads only wait for each other
VOCABULARY = 61
CONTEXT = 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA3_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen2": (Qwen2Config, SIZES),
    "qwen3": (Qwen3Config, SIZES | {"head_dim": 16}),
    "llama": (LlamaConfig, SIZES),
    "gpt2": (GPT2Config, {
        "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT,
        "bos_token_id": 1, "eos_token_id": 2,
    }),
    "gemma2": (Gemma2Config, SIZES | {"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 5.0}),
    "gemma3": (Gemma3TextConfig, SIZES | {"head_dim": 8, "sliding_window": 7, "layer_types": GEMMA3_LAYERS}),
    "gpt_neox": (GPTNeoXConfig, SIZES),
    "mistral": (MistralConfig, SIZES | {"sliding_window": 9}),
    "mixtral": (MixtralConfig, SIZES | {"num_local_experts": 4}),
    "nanochat": (NanoChatConfig, SIZES),
    "olmo2": (Olmo2Config, SIZES),
    "phi3": (Phi3Config, SIZES),
    "qwen2.5": (Qwen2Config, SIZES | {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "stablelm": (StableLmConfig, SIZES),
}  # fmt: skip
"""Class of the configuration, and what it is made with."""
FAMILIES = list(CONFIGS)
PACKED = Layout(row_unit=1, page_unit=None, chunk=None)
"""What a GPU has: prompts packed in one pass, pages shared one by one."""


class Pair(NamedTuple):
    """A model with paged attention, and an untouched copy of its network."""

    model: Model
    network: Any

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[N, V] of a plain forward pass."""
        with torch.inference_mode():
            return self.network(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float()


def configuration(family: str, **sizes: Any) -> Any:
    """The configuration of a family's tiny model, `sizes` going before its own."""
    kind, usual = CONFIGS[family]
    return kind(**usual | sizes)


def make(family: str, seed: int = 0, spread: float = 0.2, **sizes: Any) -> Pair:
    """`spread` is the standard deviation of the weights: the larger, the surer the model is of its tokens."""
    torch.manual_seed(seed)
    config = configuration(family, **sizes)
    config.initializer_range = spread
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return Pair(Model(copy.deepcopy(network), folder=f"tiny {family}"), network)


def engine(
    model: Model, slots: int = 4, max_length: int = 160, num_pages: int | None = None, **settings: Any
) -> Engine:
    config = EngineConfig(**settings)
    return Engine.build(prepare(model), config, slots=slots, max_length=max_length, num_pages=num_pages)


def cache_of(on: Engine) -> KeysValues:
    """The keys and values of an engine, to look at or to spoil."""
    assert on._decoder is not None
    return on._decoder.cache


def prompt(seed: int = 0, length: int = 12, max_new: int = 40, eos: Iterable[int] = (), **rest: Any) -> Prompt:
    tokens = np.random.default_rng(seed).integers(3, VOCABULARY, length)
    return Prompt(tuple(int(t) for t in tokens), max_new, frozenset(eos), **rest)


def branching(lengths: Sequence[int], shared: int, max_new: int, **rest: Any) -> list[Prompt]:
    """Prompts of these lengths that have their first `shared` tokens, or all, in common."""
    common = prompt(99, shared).token_ids
    prompts = [prompt(i, length, max_new, **rest) for i, length in enumerate(lengths)]
    return [to._replace(token_ids=(common + to.token_ids)[: len(to.token_ids)]) for to in prompts]


def request(to: Prompt, max_new: int | None = None, alpha: float = 2.0, **fields: Any) -> Request:
    """A first request, unless `fields` say otherwise; their key may leave out the seed, which is then 0."""
    fields = {"prefix": to.token_ids, "key": (0, 0, 0), "origin": len(to.token_ids)} | fields
    key = fields.pop("key")
    key = RandomKey(*key) if len(key) == 4 else RandomKey(0, *key)
    return Request(max_new=max_new or to.max_new_tokens, alpha=alpha, key=key, **fields)


def sample(of: Completion | None = None, **found: Any) -> Sample:
    """The end of a script, with what it found in place of figures."""
    info: Any = SimpleNamespace(**found)
    if of is None:
        return Sample((), np.array([]), np.array([]), "eos", info)
    return Sample(of.tokens, of.log_q, of.log_z, of.ended, info)


def single(asked: Request) -> Steps:
    """A chain of one request; its sample carries the completion."""
    arrival = yield [Submit("only", asked)]
    assert arrival is not None
    return sample(arrival[1], completion=arrival[1])


def run_one(on: Engine, asked: Request, to: Prompt, seed: int = 0) -> Completion:
    """One request, alone, its key with this seed."""
    asked = asked._replace(key=asked.key._replace(seed=seed))
    return figures(on.run([Chain(to, single(asked))])[0]).completion


Script = Generator[list[Operation], tuple[Hashable, Completion] | None, Sample]


def assert_statistics(
    pair: Pair, prefix: Sequence[int], found: Completion | Sample, alpha: float, tolerance: float = 1e-4
) -> None:
    """log q and log Z of these tokens equal those of a plain forward pass."""
    logits = pair.logits([*prefix, *found.tokens])[len(prefix) - 1 : -1].double()
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(-1, torch.tensor(found.tokens)[:, None])[:, 0].numpy()
    log_z = chosen if np.isinf(alpha) else torch.logsumexp(alpha * log_p, -1).numpy()
    log_q = np.zeros(len(found.tokens)) if np.isinf(alpha) else alpha * chosen - log_z
    np.testing.assert_allclose(found.log_q, log_q, atol=tolerance)
    np.testing.assert_allclose(found.log_z, log_z, atol=tolerance)

"""Models of known shape, by name: their sizes stand for them where no model is at hand, in benchmarks and plans."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """The library's model type and its sizes, by the names of the library's configurations."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int = 32_768


SHAPES = {
    "tiny": Shape("qwen2", 64, 128, 2, 4, 2, 512, True),
    "0.5b": Shape("qwen2", 896, 4864, 24, 14, 2, 151_936, True),
    "1.5b": Shape("qwen2", 1536, 8960, 28, 12, 2, 151_936, True),
    "7b": Shape("qwen2", 3584, 18944, 28, 28, 4, 152_064, False),
    "8b": Shape("llama", 4096, 14336, 32, 32, 8, 128_256, False),
}
"""Qwen2.5 0.5B, 1.5B and 7B, Llama 3.1 8B, and one for a CPU."""

"""Grows the embedded demo model into one that computes the same function at the cost of a real one.

A script, run by hand. End-to-end benchmarks need realistic behaviour (ends, lengths, entropy, acceptance) at a
realistic cost, and an offline machine has no public weights: the grown model answers the demo's problems as the demo
model does, and costs what Qwen2.5 of that size costs.

    python demo_training/grow.py OUT --size 0.5b        # also 1.5b and 7b; 1.3, 3.6 and 15 GB of bfloat16

Layers, hidden size, MLP, vocabulary and KV bytes a token are those of Qwen2.5; 1.5b and 7b have twice as many heads of
half the size (64), and the head is never tied. Logits agree to 1e-4 in float32; in bfloat16, where the scaled norms are
rounded once more, log p differed by 0.002 nats in the mean and 0.03 at most. Why the function is kept:
- New hidden units are zero in the embedding and in every matrix that writes to the residual stream, so they stay zero.
- RMSNorm divides by the root mean square over all units. With d of D units in use it is sqrt(d/D) of what it was; norm
  weights times sqrt(d/D) and epsilon times d/D undo that exactly.
- A new head and a new MLP unit have zero columns in what they write; a new layer writes nothing at all. Both are
  computed in full, on random weights.
- One spare unit carries a constant to the untied head, which pushes the tokens beyond the small vocabulary down.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

DEMO = Path(__file__).parents[1] / "evals" / "demo" / "model"
PUSH = 1000.0
"""The logit of a token that the small model does not have is -PUSH / r, with r the root mean square of the last hidden
state: measured between 1.7 and 21 on the demo's problems, so -600 to -48, against -17 to 22 for the others."""
MARKER = 2.0**-10
"""The constant in the spare unit: its share in the norm is below the rounding of the others."""


class Size(NamedTuple):
    """Dimensions of a grown model; heads are as wide as the small model's."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int


SIZES = {
    "0.5b": Size(24, 896, 4864, 14, 2, 151_936),
    "1.5b": Size(28, 1536, 8960, 24, 4, 151_936),
    "7b": Size(28, 3584, 18944, 56, 8, 152_064),
}


def padded(weight: Tensor, *shape: int) -> Tensor:
    """The weight in the upper left corner of zeros of this shape."""
    out = torch.zeros(*shape)
    out[tuple(slice(n) for n in weight.shape)] = weight.float()
    return out


class Growth(NamedTuple):
    """Converts weights from the small model's dimensions to the big one's."""

    small: Size
    big: Size
    head_dim: int
    generator: torch.Generator

    def norm(self, weight: Tensor) -> Tensor:
        """[d] -> [D], scaled because most units are zero."""
        return padded(weight.float() * math.sqrt(self.small.hidden / self.big.hidden), self.big.hidden)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * 0.02

    def heads(self, weight: Tensor, spread: bool) -> Tensor:
        """Rows [heads * dim, ...] of q (spread: within the same kv group) or k, v, to those of the big model."""
        small, big, dim = self.small, self.big, self.head_dim
        groups = small.heads // small.kv_heads, big.heads // big.kv_heads
        rows = (big.heads if spread else big.kv_heads) * dim
        out = torch.zeros(rows, self.big.hidden) if weight.dim() == 2 else torch.zeros(rows)
        for head, block in enumerate(weight.float().split(dim)):
            at = dim * (head // groups[0] * groups[1] + head % groups[0] if spread else head)
            out[at : at + dim] = padded(block, dim, self.big.hidden) if weight.dim() == 2 else block
        return out

    def layer(self, small: dict[str, Tensor]) -> dict[str, Tensor]:
        """A layer of the small model, grown; the columns of what it writes belong to its own heads and units."""
        out = {f"{n}_layernorm.weight": self.norm(small[f"{n}_layernorm.weight"]) for n in ("input", "post_attention")}
        for name in "qkv":
            for kind in ("weight", "bias"):
                key = f"self_attn.{name}_proj.{kind}"
                out[key] = self.heads(small[key], spread=name == "q")
        written = self.heads(small["self_attn.o_proj.weight"].T.contiguous(), spread=True)
        out["self_attn.o_proj.weight"] = written.T.contiguous()
        for name, shape in self.mlp_shapes().items():
            out[name] = padded(small[name], *shape)
        return out

    def idle_layer(self) -> dict[str, Tensor]:
        """A layer that is computed in full and adds zero."""
        big, out = self.big, {}
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            out[name] = torch.ones(big.hidden)
        for name, heads in (("q", big.heads), ("k", big.kv_heads), ("v", big.kv_heads)):
            out[f"self_attn.{name}_proj.weight"] = self.random(heads * self.head_dim, big.hidden)
            out[f"self_attn.{name}_proj.bias"] = torch.zeros(heads * self.head_dim)
        out["self_attn.o_proj.weight"] = torch.zeros(big.hidden, big.heads * self.head_dim)
        for name, shape in self.mlp_shapes().items():
            out[name] = torch.zeros(*shape) if "down" in name else self.random(*shape)
        return out

    def mlp_shapes(self) -> dict[str, tuple[int, int]]:
        hidden, mlp = self.big.hidden, self.big.mlp
        shapes = {"gate": (mlp, hidden), "up": (mlp, hidden), "down": (hidden, mlp)}
        return {f"mlp.{name}_proj.weight": shape for name, shape in shapes.items()}

    def ends(self, small: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embedding, last norm and an untied head; unit d carries the constant that silences unused tokens."""
        tokens, unit = small["model.embed_tokens.weight"], self.small.hidden
        embed, head = (padded(tokens, self.big.vocabulary, self.big.hidden) for _ in range(2))
        norm = self.norm(small["model.norm.weight"])
        embed[:, unit] = MARKER
        norm[unit] = PUSH / MARKER * math.sqrt(self.small.hidden / self.big.hidden)
        head[len(tokens) :, unit] = -1.0
        return {"model.embed_tokens.weight": embed, "model.norm.weight": norm, "lm_head.weight": head}


def grow(source: Path, target: Path, size: Size, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the grown model of folder `source` to folder `target`. Raises ValueError if it would not fit."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    small = load_file(source / "model.safetensors")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    own = Size(*(config[name] for name in (*names, "vocab_size")))
    check_fit(own, size)
    growth = Growth(own, size, head_dim, torch.Generator().manual_seed(0))
    big = {key: value.to(dtype) for key, value in growth.ends(small).items()}
    for index in range(size.layers):
        prefix = f"model.layers.{index}."
        part = {key.removeprefix(prefix): value for key, value in small.items() if key.startswith(prefix)}
        layer = growth.layer(part) if index < own.layers else growth.idle_layer()
        big |= {prefix + key: value.contiguous().to(dtype) for key, value in layer.items()}
    config |= dict(zip((*names, "vocab_size"), size, strict=True)) | {
        "head_dim": head_dim,
        "tie_word_embeddings": False,
        "rms_norm_eps": config["rms_norm_eps"] * own.hidden / size.hidden,
        "layer_types": ["full_attention"] * size.layers,
        "max_window_layers": size.layers,
        "dtype": str(dtype).removeprefix("torch."),
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(big, target / "model.safetensors", metadata={"format": "pt"})
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)


def check_fit(small: Size, big: Size) -> None:
    """Raise ValueError unless the big model holds the small one, with a unit to spare, and as large groups of heads."""
    enough = all(b >= s for s, b in zip(small, big, strict=True)) and big.hidden > small.hidden
    if not enough or big.heads % big.kv_heads or big.heads // big.kv_heads < small.heads // small.kv_heads:
        raise ValueError(f"a model of {small} cannot be grown into {big}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--source", type=Path, default=DEMO)
    args = parser.parse_args()
    grow(args.source, args.target, SIZES[args.size])


if __name__ == "__main__":
    main()

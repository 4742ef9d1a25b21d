"""Memory budget of a GPU that trains a small part beside frozen models, and the batch that fits what is left.

    total = frozen weights + trainable weights + optimizer states + gradients + overhead + available
    batch = int(target * available / activations of a sample)

The target is a share of what is available for activations.
"""

from __future__ import annotations

from typing import NamedTuple

from evals.types import UserError

OVERHEAD = 0.08
"""Share of the GPU for context, fragmentation and communication."""
CHECKPOINTED = 0.4
"""Share of the activations that gradient checkpointing leaves."""
MASTER_BYTES, MOMENT_BYTES = 4, 8
"""AdamW's copy of a 16-bit weight in float32, and its two moments in float32."""
GB = 10**9


class Training(NamedTuple):
    """A training job: the sizes of the GPU, of the models and of a sample."""

    total: int
    """Bytes of a GPU."""
    frozen: int
    """Bytes of the frozen weights."""
    trainable: int
    """Parameters that are trained."""
    sample: int
    """Bytes of activations of one sample."""
    itemsize: int = 2
    """Bytes of a trainable weight, and of its gradient."""


def training_budget(
    training: Training, target: float, num_gpus: int = 1, checkpointing: bool = False
) -> dict[str, int | float]:
    """The budget of each of `num_gpus` GPUs that share a batch: bytes, batches and shares by name, in order.

    Raises UserError where nothing is left, or too little for one sample.
    """
    master = MASTER_BYTES if training.itemsize < MASTER_BYTES else 0
    taken = {
        "frozen_weights": training.frozen,
        "trainable_weights": training.itemsize * training.trainable,
        "optimizer_states": (master + MOMENT_BYTES) * training.trainable,
        "gradients": training.itemsize * training.trainable,
        "overhead": round(OVERHEAD * training.total),
    }
    available = training.total - sum(taken.values())
    sample = round(CHECKPOINTED * training.sample) if checkpointing else training.sample
    batch = int(target * available / sample)
    if batch < 1:
        raise UserError(
            f"Not even one sample fits: of {training.total / GB:.1f} GB are {available / GB:.1f} GB left for "
            f"activations, of which {target:.0%} may be used, and a sample takes {sample / GB:.2f} GB; use more of "
            "them, recompute activations, or take a larger GPU, a shorter sequence or less that is trained.",
            ("target", "gradient_checkpointing", "gpu", "length"),
        )
    return {
        "gpu_memory": training.total,
        **taken,
        "available": available,
        "activations_per_sample": sample,
        "activations": batch * sample,
        "batch": batch,
        "num_gpus": num_gpus,
        "effective_batch": batch * num_gpus,
        "utilisation": batch * sample / available,
        "gpu_utilisation": (training.total - available + batch * sample) / training.total,
    }

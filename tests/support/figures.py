"""The figures of a chain for tests that know which sampler made them."""

from typing import Any

from evals.types import Sample


def figures(sample: Sample) -> Any:
    """The chain's table of figures; tests say by the fields which table they expect."""
    return sample.chain

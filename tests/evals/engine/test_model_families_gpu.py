"""Random tiny weights of every family on a CUDA device: captured steps against the CPU. `make test-gpu`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from evals.config import EngineConfig
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.engine.kv_cache import PagePool
from evals.engine.model import Model
from evals.engine.selfcheck import check_decoder
from support.decoder_cases import assert_same
from support.family_cases import branched
from support.tiny_models import FAMILIES, Pair, engine, make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # of the compiler's there are many
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SLOTS, LENGTH, PAGES = 8, 160, 200
WAYS = [*((family, "graphs") for family in FAMILIES), ("llama", "compiled"), ("gemma2", "compiled")]


def on_gpu(pair: Pair, way: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Engine:
    network = copy.deepcopy(pair.network).to("cuda", dtype)
    model = Model(network, folder="tiny", **options)
    config = EngineConfig(execution=way)
    return Engine.build(prepare(model), config, slots=SLOTS, max_length=LENGTH, num_pages=PAGES)


@pytest.mark.parametrize(("family", "way"), WAYS)
def test_float32_answers_equal_those_of_the_cpu(family: str, way: str) -> None:
    pair = make(family)
    on = on_gpu(pair, way)
    check(on, way)
    theirs = branched(engine(pair.model, SLOTS))
    assert assert_same(pair, branched(on), theirs, tolerance=1e-3, edge=1e-4) >= 15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "way"), WAYS)
def test_the_decoder_of_a_16_bit_model_passes_its_check(family: str, way: str, dtype: torch.dtype) -> None:
    on = on_gpu(make(family), way, dtype)
    check(on, way)
    branched(on)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_float32_are_captured(dtype: torch.dtype) -> None:
    on = on_gpu(make("llama"), "graphs", dtype, float32_logits=True)
    check(on, "graphs")
    branched(on)
    network: Any = on.model.network
    hidden = torch.randn(9, 32, dtype=dtype, device="cuda")
    assert on.model._head is not None
    expected = hidden.double() @ network.lm_head.weight.double().T
    torch.testing.assert_close(on.model._head(hidden).double(), expected, rtol=1e-5, atol=1e-5)


def check(on: Engine, way: str) -> None:
    """It decodes in this way, and passes the check at start once more.

    The library's product of experts can be captured in bfloat16 alone.
    """
    experts = type(on.model.network).__name__.startswith("Mixtral") and on.model.cache_shape.dtype != torch.bfloat16
    assert on.execution == ("eager" if experts else way)
    assert on._decoder is not None
    check_decoder(on.model, on._decoder, SLOTS, PagePool.pages_for(0, LENGTH), PAGES)

"""Random tiny weights of every family against plain forward passes, on a CPU; what is refused is refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import ALLOWED_LAYER_TYPES

from evals.engine import selfcheck
from evals.engine.model import Model
from evals.engine.model_support import LAYERS, check_architecture, unsupported_reason
from support.family_cases import assert_plain, branched
from support.tiny_models import CONTEXT, FAMILIES, configuration, engine, make


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_equal_a_plain_forward(family: str) -> None:
    pair = make(family)
    assert_plain(pair, branched(engine(pair.model)), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_check_passes_with_room(family: str, dtype: torch.dtype) -> None:
    pair = make(family)
    model = Model(pair.network.to(dtype), folder=f"tiny {family}")
    with torch.inference_mode():
        error, allowed, _ = selfcheck.compare(model, selfcheck.reference(model))
    assert error < (allowed / 5 if dtype == torch.float32 else allowed)


@pytest.mark.parametrize("family", FAMILIES)
def test_supported_families_pass_the_gate(family: str, tmp_path: Path) -> None:
    config = configuration(family)
    config.architectures = [type(AutoModelForCausalLM.from_config(config)).__name__]
    config.save_pretrained(tmp_path)
    assert check_architecture(str(tmp_path)) == CONTEXT


@pytest.mark.parametrize("kind", sorted({*ALLOWED_LAYER_TYPES, "recurrent"} - LAYERS))
def test_other_layers_are_refused_by_name(kind: str) -> None:
    config = SimpleNamespace(model_type="llama", layer_types=["full_attention", kind])
    assert f"layers of type {kind};" in str(unsupported_reason(config))

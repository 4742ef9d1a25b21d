"""One model over several devices: the split, what moves, and that results stay; over GPUs where there are some."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from evals.engine.attention import AttentionGroup, Step
from evals.engine.checkpoint import carry, cuda_devices, moved, split, spread
from evals.engine.graph_decoder import GraphDecoder
from evals.engine.kv_cache import Allocation
from evals.engine.model import CacheShape, KeysValues, Model
from evals.types import Handle, UserError
from support.decoder_cases import assert_same
from support.family_cases import assert_plain, branched
from support.tiny_models import FAMILIES, Pair, engine, make

CPU, META = torch.device("cpu"), torch.device("meta")


# --- the split --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "outside", "devices", "places"),
    [
        ([1] * 8, 0, 2, [0, 0, 0, 0, 1, 1, 1, 1]),
        ([1] * 8, 4, 2, [0, 0, 1, 1, 1, 1, 1, 1]),
        ([1] * 7, 0, 3, [0, 0, 1, 1, 1, 2, 2]),
        ([1] * 4, 100, 2, [1, 1, 1, 1]),
        ([1, 1], 0, 4, [1, 3]),
        ([5, 1, 1, 1], 0, 2, [0, 1, 1, 1]),
        ([3], 1, 1, [0]),
    ],
)
def test_layers_lie_in_blocks_of_about_equal_bytes(
    sizes: list[int], outside: int, devices: int, places: list[int]
) -> None:
    assert split(sizes, outside, devices) == places


def test_no_device_has_more_than_its_share_and_a_layer() -> None:
    for num_layers in range(1, 40):
        for num_devices in range(1, 9):
            for outside in (0, 3, 10):
                places = split([2] * num_layers, outside, num_devices)
                held = [2 * places.count(device) + outside * (device == 0) for device in range(num_devices)]
                assert places == sorted(places)
                assert max(held) <= max(outside + 1, (2 * num_layers + outside) / num_devices + 2)


def test_everything_is_moved_wherever_it_is() -> None:
    tensor = torch.zeros(2)
    given = (tensor, None, 3, {"a": [tensor, (tensor,)]}, "text")
    found: Any = moved(given, META)
    assert found[0].device == found[3]["a"][0].device == found[3]["a"][1][0].device == META
    assert found[1:3] == (None, 3)
    assert found[4] == "text"
    assert tensor.device == CPU


def test_what_a_layer_is_called_with_comes_to_its_device() -> None:
    class Layer(nn.Module):
        def forward(self, x: torch.Tensor, place: tuple[torch.Tensor, ...], mask: Any = None) -> torch.Tensor:
            assert mask is None
            assert {x.device, *(part.device for part in place)} == {META}
            return x

    layer = Layer()
    carry(layer, META)
    assert layer(torch.zeros(1), place=(torch.zeros(1), torch.zeros(1)), mask=None).device == META


def test_keys_and_values_lie_with_their_layers() -> None:
    shape = CacheShape(4, 2, 8, torch.float32, (CPU, META, META, META))
    cache = KeysValues(shape, 5, CPU)
    assert [part.shape for part in cache.parts] == [(2, 1, 5, 2, 16, 8), (2, 3, 5, 2, 16, 8)]
    cache.parts[1] = torch.zeros(cache.parts[1].shape)
    for index in range(4):
        for side, pages in enumerate(cache.layer(index)):
            pages.fill_(1 + index + 10 * side)
    with pytest.raises(IndexError):
        cache.layer(4)
    assert cache.parts[1][:, :, 0, 0, 0, 0].tolist() == [[2, 3, 4], [12, 13, 14]]
    cache.parts[0][:, :, 1] = cache.parts[1][:, :, 1] = 7
    cache.prepare([Allocation(Handle(0), (1, 2, 3), (2, 3), (1, 2))])
    for part in cache.parts:
        assert (part[:, :, 1:3] == 7).all()
        assert not part[:, :, 3].any()
        assert part[:, :, 4].all()


def test_a_step_says_the_same_elsewhere() -> None:
    numbers = torch.arange(6)
    step = Step(
        numbers[None],
        numbers[None],
        numbers,
        [AttentionGroup(slice(0, 6), numbers[:, None], numbers[:, None])],
        numbers,
    )
    there = step.on(META)
    assert step.on(CPU) is step
    assert step.on(META) is there
    parts = [there.token_ids, there.positions, there.write_at, there.logits_at, there.groups[0].pages]
    assert {part.device for part in [*parts, there.groups[0].visible]} == {META}
    assert there.groups[0].rows == slice(0, 6)
    assert there.write_rows(2).device == there.groups[0].mask(3, torch.float32).device == META


# --- a model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_a_model_spread_over_one_device_is_the_same(family: str) -> None:
    pair = make(family)
    network = copy.deepcopy(pair.network)
    assert spread(network, [CPU, CPU])
    assert list(network.state_dict()) == list(pair.network.state_dict())
    assert_plain(pair, branched(engine(Model(network))), 1e-4)


def test_a_model_without_a_list_of_layers_is_not_spread() -> None:
    network: Any = make("llama").network
    network.config.num_hidden_layers = 7
    assert not spread(network, [CPU, CPU])


def test_more_gpus_than_there_are_is_a_mistake_of_the_users() -> None:
    with pytest.raises(UserError, match=r"engine\.gpus_per_model asks for 65 GPUs .* this worker has \d+; ask for at"):
        cuda_devices(65)


def over(pair: Pair, devices: list[torch.device], dtype: torch.dtype = torch.float32) -> Model:
    network = copy.deepcopy(pair.network).to(dtype)
    assert spread(network, devices)
    return Model(network, folder="tiny")


def devices() -> list[torch.device]:
    """Two GPUs, or a GPU and the CPU."""
    count = torch.cuda.device_count()
    return [torch.device("cuda", 0), torch.device("cuda", 1) if count > 1 else CPU]


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("family", [pytest.param(family, marks=gpu) for family in FAMILIES])
def test_a_model_over_two_devices_answers_as_on_one(family: str, capsys: pytest.CaptureFixture) -> None:
    pair = make(family)
    model = over(pair, devices())
    assert model.device == devices()[0]
    assert set(model.cache_shape.devices) == set(devices())
    tokens = list(range(3, 60))
    with torch.inference_mode():
        torch.testing.assert_close(model.plain_logits(tokens).cpu(), pair.logits(tokens), atol=1e-3, rtol=1e-3)
    on = engine(model, num_pages=200)
    assert on.execution == "eager"
    assert "the model lies on 2 devices" in capsys.readouterr().err
    assert assert_same(pair, branched(on), branched(engine(pair.model)), tolerance=1e-3, edge=1e-4) >= 15


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=gpu) for dtype in (torch.bfloat16, torch.float16)])
def test_half_precision_over_two_devices_passes_the_self_check_and_is_measured(dtype: torch.dtype) -> None:
    model = over(make("llama"), devices(), dtype)
    on = engine(model, slots=4)
    assert model.prepared
    assert on.execution == "eager"
    branched(on)


@pytest.mark.parametrize("family", [pytest.param("llama", marks=gpu)])
def test_steps_over_two_devices_are_not_captured(family: str) -> None:
    model = over(make(family), devices())
    cache = KeysValues(model.cache_shape, 2, model.device)
    with pytest.raises(ValueError, match="the model lies on 2 devices"):
        GraphDecoder(model, cache, 2, 2, "graphs")

"""The check of a decoder at start: passes for one that works at any size, fails for a wrong one. On a CPU, by twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from evals.engine.graph_decoder import GraphDecoder
from evals.engine.model import KeysValues, Model
from evals.engine.selfcheck import check_decoder
from evals.types import UserError
from support import twins
from support.tiny_models import Pair, make


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    twins.install(monkeypatch)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("llama", seed=1)


def checked(model: Model, slots: int = 4, max_pages: int = 3, num_pages: int = 25) -> GraphDecoder:
    cache = KeysValues(model.cache_shape, num_pages, model.device)
    decoder = GraphDecoder(model, cache, slots, max_pages, "graphs", graphs=False)
    check_decoder(model, decoder, slots, max_pages, num_pages)
    return decoder


@pytest.mark.parametrize(
    ("slots", "max_pages", "num_pages"), [(1, 1, 2), (1, 2, 3), (2, 2, 3), (2, 2, 4), (3, 1, 7), (40, 5, 401)]
)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_right_decoder_passes_and_is_left_empty(family: str, slots: int, max_pages: int, num_pages: int) -> None:
    decoder: Any = checked(make(family, seed=1).model, slots, max_pages, num_pages)
    assert decoder._batch.occupied == []
    assert not decoder._table.any()
    assert not decoder._scalars[3].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes(pair: Pair, dtype: torch.dtype) -> None:
    checked(Model(make("llama", seed=1).network.to(dtype), folder="half"))


def test_what_is_not_captured_is_not_drawn(pair: Pair) -> None:
    cache = KeysValues(pair.model.cache_shape, 9, pair.model.device)
    decoder: Any = GraphDecoder(pair.model, cache, 2, 2, "eager", graphs=False)
    decoder.step = None
    check_decoder(pair.model, decoder, 2, 2, 9)


def louder(*given: Any) -> torch.Tensor:
    return 1.2 * twins.decode(*given)


def one_key_less(q: Any, k: Any, v: Any, k_pages: Any, v_pages: Any, pages: Any, positions: Any, *rest: Any) -> Any:
    """The first position of the second page reads the first page only."""
    first = twins.decode(q, k, v, k_pages, v_pages, pages, positions, *rest)
    k_pages, v_pages = k_pages.clone(), v_pages.clone()
    k_pages[pages[:, 1].long()] = 0
    second = twins.decode(q, k, v, k_pages, v_pages, pages, positions, *rest)
    return torch.where((positions >= 18)[:, None, None], second, first)


def unwritten(k: Any, v: Any, k_pages: Any, v_pages: Any, write_at: Any) -> None:
    """The last token of a pass is forgotten."""
    last = int((write_at >= 0).nonzero().max())
    twins.write(k[:last], v[:last], k_pages, v_pages, write_at[:last])


def nothing(*given: Any) -> torch.Tensor:
    return torch.full_like(twins.decode(*given), torch.nan)


def tempered(logits: Any, alpha: Any, *rest: Any, **limits: Any) -> Any:
    return twins.draw(logits, alpha * 1.1, *rest, **limits)


MISTAKES: dict[str, Callable[..., Any]] = {
    "decode.decode": louder,
    "decode.decode ": one_key_less,
    "decode.decode  ": nothing,
    "pages.write": unwritten,
}


@pytest.mark.parametrize(
    ("place", "dtype"),
    [*((place, torch.float32) for place in MISTAKES), *((place, torch.bfloat16) for place in list(MISTAKES)[:3])],
)
def test_a_wrong_kernel_is_refused(place: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make("llama", seed=1)
    model = Model(pair.network.to(dtype), folder="tiny llama")
    monkeypatch.setattr(f"evals.engine.kernels.{place.strip()}", MISTAKES[place])
    with pytest.raises(UserError, match=r"tiny llama \(LlamaForCausalLM\).*decoded by graphs.*execution=eager"):
        checked(model)


def test_a_wrong_draw_is_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.engine.graph_decoder.draw", tempered)
    with pytest.raises(UserError, match=r"disagrees with a plain forward pass \(.* nats at most"):
        checked(pair.model)


def test_rows_that_read_each_others_pages_are_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(q: Any, k: Any, v: Any, k_pages: Any, v_pages: Any, pages: Any, *rest: Any) -> torch.Tensor:
        return twins.decode(q, k, v, k_pages, v_pages, pages[:1].expand_as(pages), *rest)

    monkeypatch.setattr("evals.engine.kernels.decode.decode", swapped)
    with pytest.raises(UserError, match="disagrees"):
        checked(pair.model)


def test_the_reference_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of the compiler is none of the reference's."""
    model = make("llama", seed=1).model
    called = []

    def wrong(graph: Any, inputs: Any) -> Any:
        called.append(len(inputs))
        return lambda *given: tuple(out * 1.1 for out in graph(*given))

    for layer in model.layers():
        layer.compile(fullgraph=True, dynamic=False, backend=wrong)
    plain = model.plain_logits([5, 6, 7])
    called.clear()
    with pytest.raises(UserError, match="disagrees"):
        checked(model)
    assert called
    with torch.compiler.set_stance("force_eager"):
        assert (model.plain_logits([5, 6, 7]) - plain).abs().max() > 1e-3

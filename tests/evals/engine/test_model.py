"""The model: parity with plain forward passes for several families, what is refused, loading, and the self-check."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evals.config import EngineConfig
from evals.engine import attention, selfcheck
from evals.engine.checkpoint import load_model
from evals.engine.eager_decoder import Chunk, layout, pack
from evals.engine.engine import Engine
from evals.engine.execution import prepare
from evals.engine.linears import PackedLinear, packing_available
from evals.engine.model import KeysValues, Model
from evals.engine.model_support import check_architecture, context_length, unsupported_reason
from evals.engine.tokenizer import load_tokenizer
from evals.rng import RandomKey
from evals.samplers.power import Power
from evals.types import Chain, UserError
from support.figures import figures
from support.tiny_models import CONTEXT, VOCABULARY, assert_statistics, engine, make, prompt


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "mistral"])
def test_a_chain_of_power_sampling_equals_plain_statistics(family: str) -> None:
    pair = make(family)
    to = prompt(1, 10, max_new=48, eos=[2, 3])
    steps = Power(2.0, 12).chain(to, RandomKey(5, 0, 0))
    found = engine(pair.model).run([Chain(to, steps)])[0]
    assert figures(found).accepted > 0
    assert_statistics(pair, to.token_ids, found, 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_broken_seam_fails_the_self_check(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make("llama")
    model = Model(pair.network.to(dtype), folder="tiny llama")
    with torch.inference_mode():
        error, allowed, _ = selfcheck.compare(model, selfcheck.reference(model))
    assert error < allowed
    plain = attention.attention

    def shifted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> torch.Tensor:
        return plain(q, k.roll(1, 0), v.roll(1, 0), *rest)

    monkeypatch.setattr(attention, "attention", shifted)
    with pytest.raises(UserError, match=r"tiny llama \(LlamaForCausalLM\).*disagrees"):
        engine(model)


def bits_of_rows(threads: int, sizes: Sequence[int]) -> list[list[bytes]]:
    """The logits of decode rows that stand beside others, for so many rows at once; keys of 1 to 5 pages."""
    torch.set_num_threads(threads)
    model = make("llama", seed=1, num_hidden_layers=1).model
    shape, most = layout(model.device), max(sizes)
    cache = KeysValues(model.cache_shape, 1 + 5 * most, model.device)
    for part in cache.parts:
        part.normal_(generator=torch.Generator().manual_seed(0))
    model.attach(cache)
    runs = [Chunk((3 + i,), 5 * i, range(1 + 5 * i, 6 + 5 * i)) for i in range(most)]
    found = []
    with torch.inference_mode():
        for size in sizes:
            logits = model.forward(pack(runs[:size], shape, model.device))
            found.append([row.numpy().tobytes() for row in logits[:size]])
    return found


def test_a_row_has_the_same_bits_whatever_stands_beside_it_on_one_thread_and_on_two() -> None:
    """Of ordinary products a thread's share of 1 to 3 rows has other last bits than one of 4 or more, so that on two
    threads 9 to 11 rows would differ, too."""
    sizes = (16, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13)
    whole, *others = bits_of_rows(1, sizes)
    for rows in [*others, *bits_of_rows(2, sizes)]:
        assert rows == whole[: len(rows)]


def test_packed_linears_replace_ordinary_ones() -> None:
    if not packing_available():
        pytest.skip("this build of torch has no packed product")
    model = make("qwen2").model
    network: Any = model.network
    plain = selfcheck.reference(model)
    selfcheck.check(model, plain)
    assert not isinstance(network.lm_head, PackedLinear), "checks change nothing"
    prepare(model)
    assert isinstance(network.lm_head, PackedLinear)
    linear = torch.nn.Linear(24, 40)
    x = torch.randn(1, 9, 24)
    assert torch.allclose(PackedLinear(linear)(x), linear(x), atol=1e-6)


def test_an_engine_takes_a_prepared_model_only_and_preparing_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama").model
    with pytest.raises(ValueError, match="has not been prepared"):
        Engine.build(model, EngineConfig(), slots=2, max_length=40)
    passes = []
    monkeypatch.setattr(model, "_logits", lambda *a, real=model._logits, **k: passes.append(1) or real(*a, **k))
    assert prepare(prepare(model)) is model
    assert len(passes) == 3 + 9, "three plain sequences, and a packed pass for the prompts and every step"
    Engine.build(model, EngineConfig(), slots=2, max_length=40)
    assert len(passes) == 12


# --- model support ----------------------------------------------------------------------------------------------------


def write_config(folder: Path, **config: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "falcon": ({"model_type": "falcon", "architectures": ["FalconForCausalLM"]}, "FalconForCausalLM.*attention"),
    "bloom": ({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}, "BloomForCausalLM.*attention"),
    "bert": ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "BertForMaskedLM.*not a text-only causal"),
    "t5": ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "T5.*encoder-decoder"),
    "mamba": ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "MambaForCausalLM.*recurrent"),
    "lfm2": (
        {"model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "full_attn_idxs": [1], "num_hidden_layers": 2},
        "Lfm2ForCausalLM.*layers of type conv",
    ),
    "qwen3_next": (
        {"model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"]},
        "Qwen3NextForCausalLM.*recurrent",
    ),
    "gpt_oss": ({"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]}, "GptOssForCausalLM.*sinks"),
    "dynamic": (
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        },
        "LlamaForCausalLM.*`dynamic`",
    ),
    "remote": (
        {
            "model_type": "llama",
            "architectures": ["MyLM"],
            "auto_map": {"AutoModelForCausalLM": "modeling_my.MyLM"},
        },
        "MyLM.*trust_remote_code",
    ),
    "unknown": ({"model_type": "no_such_model"}, "`no_such_model`.*choose another model"),
    "own code": (
        {"model_type": "x", "auto_map": {"AutoConfig": "a.B"}},
        "own; a run with engine.trust_remote_code=true",
    ),
    "a wrong type": ({"model_type": "llama", "hidden_size": "x"}, "config.json cannot be used: .*hidden_size.* int"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_architectures_are_refused_before_loading(name: str, tmp_path: Path) -> None:
    config, message = UNSUPPORTED[name]
    folder = write_config(tmp_path / "model", **config)
    for call in (check_architecture, lambda f: load_model(f, EngineConfig(), "cpu")):
        with pytest.raises(UserError, match=message) as caught:
            call(folder)
        assert folder in str(caught.value)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist; name one that does \(model\)"):
        check_architecture(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"has no config\.json"):
        check_architecture(str(tmp_path))
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(UserError, match=r"config\.json cannot be used: .*not a valid JSON file; choose another"):
        check_architecture(str(tmp_path))


def test_longrope_counts_up_to_its_original_length() -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    config = SimpleNamespace(model_type="phi3", max_position_embeddings=131072, rope_parameters=rope)
    assert unsupported_reason(config) is None
    assert context_length(config) == 4096


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model whose tokenizer adds a first token, with several EOS ids in three places."""
    pair = make("llama")
    pair.network.generation_config.eos_token_id = [2, 5]
    pair.network.save_pretrained(tmp_path)
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 4))]
    fast = Fast(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="w2").save_pretrained(tmp_path)
    return tmp_path


def test_the_tokenizer_adds_what_it_adds_and_cleans_nothing(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.encode("w0 w1") == [1, 4, 5]
    assert tokenizer.decode([1, 4, 5]) == "<s> w0 w1"
    assert tokenizer.eos_ids == {2, 5, 6}


def test_a_saved_model_loads_and_runs(folder: Path) -> None:
    model = load_model(str(folder), EngineConfig(), "cpu")
    assert (model.context_length, model.vocab_size) == (CONTEXT, VOCABULARY)
    assert model.cache_shape.dtype == torch.float32
    assert engine(model).memory().rss_bytes


def test_weights_that_are_missing_or_pickled_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"incomplete: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(folder), EngineConfig(), "cpu")
    weights.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no safetensors weights.*allow_pickle"):
        load_model(str(folder), EngineConfig(), "cpu")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{}", "no usable tokenizer"),
        ("tokenizer_config.json", "null", "no usable tokenizer"),
        (
            "generation_config.json",
            "{",
            r"generation_config\.json cannot be used: .*JSON.*; download it again, or delete",
        ),
        ("generation_config.json", "null", r"generation_config\.json cannot be used: "),
        ("generation_config.json", '{"eos_token_id": "x"}', r"generation_config\.json cannot be used: 'x' is no id"),
    ],
)
def test_a_damaged_tokenizer_is_refused(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(folder))


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    """Also where tokenizer_config.json declares tokens, of which the library would make a tokenizer of those alone."""
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {"0": {"content": "<|im_start|>", "special": True}}
    for content in (config, config | {"added_tokens_decoder": added}):
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="no usable tokenizer"):
            load_tokenizer(str(folder))
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="no usable tokenizer"):
        load_tokenizer(str(folder))


def test_a_configuration_that_wants_tuples_changes_nothing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    assert load_model(str(folder), EngineConfig(), "cpu").context_length

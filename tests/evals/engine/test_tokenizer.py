"""The tokenizer is that of tokenizer.json for every architecture's class, and a prompt begins with one BOS token.

Run by `make test-transformers` with the oldest and the newest library that pyproject.toml admits, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Fast
from transformers import AutoTokenizer, PreTrainedTokenizerFast, dynamic_module_utils

from evals.engine.tokenizer import Tokenizer, load_tokenizer
from evals.types import Chat, Message, UserError
from orchestrator.rundir.reading.records import first_records
from support.command import in_process
from support.demo_inputs import NOON
from support.own_tokenizers import DEMO, around, copy, edit, spelt_otherwise

END, PAD = ("<|endoftext|>", 0), ("<|pad|>", 1)
TEXTS = [
    "Question: Tom has 12 apples,  eats 3.\n\nHow many?\tAnswer:",
    " leading and trailing ",
    "don't DON'T 1234567",
    "cafe\u0301 \u212b \ufb01 18个 \U0001f600",
    "a <|pad|> b<|endoftext|>c  <|endoftext|>\n",
    "A" * 3000,
]
CLASSES = [
    ("qwen2", "PreTrainedTokenizerFast"), ("qwen2", None), ("qwen3", None), ("llama", "LlamaTokenizerFast"),
    ("llama", "LlamaTokenizer"), ("llama", None), ("mistral", "LlamaTokenizerFast"), ("gpt2", None), ("gemma2", None),
    ("gemma", "GemmaTokenizerFast"), ("gpt_neox", None), ("phi", None), ("phi3", "LlamaTokenizerFast"), ("olmo", None),
    ("cohere", None), ("starcoder2", None), ("opt", None), ("stablelm", "GPTNeoXTokenizerFast"), ("llama", "Unheard"),
]  # fmt: skip
"""Type of the model, and the class in tokenizer_config.json."""
DIGITS = {"type": "Digits", "individual_digits": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PADDED = {"strategy": {"Fixed": 90}, "direction": "Left", "pad_id": 1, "pad_type_id": 0, "pad_token": "<|pad|>"}
LONE = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False, "special": True}


def chat(*turns: Message) -> Chat:
    return Chat(0, turns, {}, NOON)


def model_section(**change: Any) -> dict[str, Any]:
    return json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"] | change


FILES: dict[str, dict[str, Any]] = {
    "as the library's": {},
    "of its own": spelt_otherwise(),
    "no normalizer": {"normalizer": None},
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "digits together": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, BYTES]}},
    "a space in front": {"pre_tokenizer": BYTES | {"add_prefix_space": True}},
    "another decoder": {"decoder": {"type": "Fuse"}},
    "no merges across": {"model": model_section(merges=model_section()["merges"][:50])},
    "merges passed over": {"model": model_section(ignore_merges=True, merges=model_section()["merges"][:50])},
    "cut and padded": {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": PADDED | {"pad_to_multiple_of": None},
    },
    "tokens that take spaces": {"added_tokens": [LONE | {"id": i, "content": text} for text, i in (END, PAD)]},
    "a token in front": {"post_processor": around(PAD)},
}


def folder_of(folder: Path, model_type: str, class_name: str | None, **config: Any) -> Path:
    """The folder, as one of this type of model and class of tokenizer."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    edit(folder / "tokenizer_config.json", tokenizer_class=class_name, backend=None, **config)
    return folder


def of_file(folder: Path) -> Fast:
    file = Fast.from_file(str(folder / "tokenizer.json"))
    file.no_truncation()
    file.no_padding()
    return file


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("model_type", "class_name"), CLASSES)
def test_texts_are_encoded_and_decoded_as_the_file_says(
    model_type: str, class_name: str | None, name: str, tmp_path: Path
) -> None:
    folder = folder_of(copy(tmp_path / "model", **FILES[name]), model_type, class_name)
    tokenizer, file = load_tokenizer(str(folder)), of_file(folder)
    for text in TEXTS:
        ids = file.encode(text).ids
        assert tokenizer.encode(text) == ids, ascii(text)
        assert tokenizer.decode(ids) == file.decode(ids, skip_special_tokens=False)
    assert tokenizer.eos_ids >= {0}


def test_the_library_would_have_read_it_otherwise(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    folder = folder_of(copy(tmp_path / "model", **FILES["of its own"]), "qwen2", None)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.decode(loaded(TEXTS[0])["input_ids"]) != TEXTS[0]
    assert load_tokenizer(str(folder)).decode(of_file(folder).encode(TEXTS[0]).ids) == TEXTS[0]


def test_a_run_with_a_tokenizer_of_its_own_gives_the_same_answers(tmp_path: Path) -> None:
    own = copy(tmp_path / "own", **spelt_otherwise())
    edit(own / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", backend=None)
    asked = ("--data", "demo", "--limit", 3, "--inline", "--num-gpus", 0, "--sampler.kind", "greedy")
    answers = []
    for model in (own, "demo"):
        run = tmp_path / f"run-{len(answers)}"
        assert in_process("run", "--model", model, *asked, "--task.max-new-tokens", 40, "--run-dir", run) == 0
        answers.append({key: (one.token_ids, one.text) for key, one in first_records(run / "records.jsonl").items()})
    assert answers[0] == answers[1]
    assert len(answers[0]) == 3


@pytest.mark.parametrize(("model_type", "class_name"), CLASSES)
def test_what_tokenizer_config_says_is_kept(model_type: str, class_name: str | None, tmp_path: Path) -> None:
    """Template, special tokens, and tokens that only tokenizer_config.json declares."""
    folder = copy(tmp_path / "model", **FILES["of its own"])
    declared = {str(i): LONE | {"content": text, "lstrip": False} for text, i in (END, PAD, ("<|im_end|>", 1024))}
    turns = "{% for m in messages %}{{ bos_token }}{{ m.content }}{{ eos_token }}{% endfor %}"
    said = {"eos_token": "<|im_end|>", "bos_token": "<|pad|>", "chat_template": turns, "added_tokens_decoder": declared}
    tokenizer = load_tokenizer(str(folder_of(folder, model_type, class_name, **said)))
    assert tokenizer.eos_ids >= {1024}
    assert tokenizer.encode(chat({"role": "user", "content": "5"})) == [1, *of_file(folder).encode("5").ids, 1024]
    assert tokenizer.decode([1024]) == "<|im_end|>"


def test_special_tokens_that_only_the_class_knows_are_kept_where_the_vocabulary_has_them(tmp_path: Path) -> None:
    folder = folder_of(copy(tmp_path / "model", **FILES["no normalizer"]), "gpt2", None, eos_token=None, pad_token=None)
    (folder / "config.json").write_text('{"model_type": "gpt2", "eos_token_id": null}')
    (folder / "generation_config.json").unlink()
    assert load_tokenizer(str(folder)).eos_ids == {0}
    folder = folder_of(copy(tmp_path / "other", **FILES["no normalizer"]), "cohere", None)
    assert load_tokenizer(str(folder)).encode("<BOS_TOKEN>") == of_file(folder).encode("<BOS_TOKEN>").ids


@pytest.mark.parametrize(
    ("asked", "front", "ids"),
    [({}, None, []), ({"add_bos_token": True}, None, [1]), ({}, PAD, [1]), ({"add_bos_token": True}, PAD, [1])],
)
def test_what_is_put_around_a_text(asked: dict[str, bool], front: Any, ids: list[int], tmp_path: Path) -> None:
    """The class adds BOS by itself: that is no reason, tokenizer_config.json and the file are."""
    folder = copy(tmp_path / "model", **FILES["of its own"] | {"post_processor": around(front) if front else None})
    folder_of(folder, "llama", "CodeLlamaTokenizer", bos_token="<|pad|>", unk_token="<|pad|>", **asked)
    edit(folder / "tokenizer_config.json", prefix_token="a", middle_token="b", suffix_token="c", eot_token="d")
    assert load_tokenizer(str(folder)).encode("x") == [*ids, *of_file(folder).encode("x", add_special_tokens=False).ids]


def test_a_vocabulary_that_the_class_cannot_take_is_read_by_the_file_alone(tmp_path: Path) -> None:
    """Gemma's class wants `<unk>`. Where there is no file either, the library's words are in the refusal."""
    folder = folder_of(copy(tmp_path / "model"), "gemma2", "GemmaTokenizer")
    assert load_tokenizer(str(folder)).encode("5") == of_file(folder).encode("5").ids
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="no usable tokenizer"):
        load_tokenizer(str(folder))


def test_ids_are_not_drawn_by_chance(tmp_path: Path) -> None:
    """A tokenizer.json that still has the dropout of its training."""
    text = "She sells three apples and some bananas"
    for class_name in (None, "PreTrainedTokenizerFast"):
        folder = copy(tmp_path / f"{class_name}", model=model_section(dropout=0.5))
        tokenizer = load_tokenizer(str(folder_of(folder, "llama", class_name)))
        assert {tuple(tokenizer.encode(text)) for _ in range(8)} == {tuple(of_file(DEMO).encode(text).ids)}


@pytest.mark.parametrize("agrees", [True, False])
def test_code_of_the_folder_must_agree_with_the_file(
    agrees: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = folder_of(
        copy(tmp_path / f"model_{agrees}"), "qwen2", "Mine", auto_map={"AutoTokenizer": [None, "mine.Mine"]}
    )
    lines = ["super().__init__(**kwargs)", "self.backend_tokenizer.normalizer = normalizers.Lowercase()"]
    body = ["def __init__(self, **kwargs):", *(f"    {line}" for line in lines)]
    source = ["class Mine(PreTrainedTokenizerFast):", *(f"    {line}" for line in (["pass"] if agrees else body))]
    imports = "from tokenizers import normalizers\nfrom transformers import PreTrainedTokenizerFast\n"
    (folder / "mine.py").write_text(imports + "\n".join(source) + "\n")
    if agrees:
        assert load_tokenizer(str(folder), trust_remote_code=True).encode("5") == of_file(folder).encode("5").ids
    else:
        with pytest.raises(UserError, match=r"Python code of the tokenizer in .* reads 'She has .* remove the file"):
            load_tokenizer(str(folder), trust_remote_code=True)


# --- one BOS ----------------------------------------------------------------------------------------------------------

TURNS = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
EACH = "{% for m in messages %}{{ bos_token }}{{ m.content }}{% endfor %}"


def with_front(folder: Path, template: str | None = None, front: Any = PAD, bos: str | None = PAD[0]) -> Tokenizer:
    copy(folder, **({"post_processor": around(front)} if front else {}))
    edit(folder / "tokenizer_config.json", bos_token=bos, chat_template=template)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("front", "bos", "text", "ids"),
    [
        (PAD, PAD[0], "5", [1, "5"]),
        (PAD, PAD[0], "<|pad|>5", [1, "5"]),
        (PAD, PAD[0], "<|pad|><|pad|>5", [1, "5"]),
        (PAD, PAD[0], "5<|pad|><|pad|>", [1, "5", 1, 1]),
        (PAD, PAD[0], "<|pad|>5<|pad|>", [1, "5", 1]),
        (PAD, PAD[0], "<|pad|>", [1]),
        (PAD, PAD[0], "", [1]),
        (PAD, None, "<|pad|>5", [1, "5"]),
        (None, PAD[0], "<|pad|>5", [1, "5"]),
        (None, PAD[0], "<|pad|><|pad|>5", [1, "5"]),
        (None, None, "<|pad|><|pad|>5", [1, 1, "5"]),
        (PAD, PAD[0], "<|endoftext|><|endoftext|>5", [1, 0, 0, "5"]),
    ],
)
def test_a_prompt_begins_with_one_bos(front: Any, bos: str | None, text: str, ids: list[Any], tmp_path: Path) -> None:
    five = of_file(DEMO).encode("5").ids[0]
    assert with_front(tmp_path / "model", front=front, bos=bos).encode(text) == [five if i == "5" else i for i in ids]


def test_several_tokens_in_front_are_there_once(tmp_path: Path) -> None:
    """As GLM's, whose template writes them, too."""
    both = around(PAD)
    both["single"].insert(0, {"SpecialToken": {"id": END[0], "type_id": 0}})
    both["special_tokens"][END[0]] = {"id": END[0], "ids": [0], "tokens": [END[0]]}
    tokenizer = load_tokenizer(str(copy(tmp_path / "model", post_processor=both)))
    assert tokenizer.encode("<|endoftext|><|pad|>5") == tokenizer.encode("5") == [0, 1, *of_file(DEMO).encode("5").ids]


def test_a_template_may_write_bos_and_one_for_each_turn(tmp_path: Path) -> None:
    five = of_file(DEMO).encode("5").ids
    turns = chat({"role": "user", "content": "5"}, {"role": "assistant", "content": "5"})
    assert with_front(tmp_path / "each", EACH).encode(turns) == [1, *five, 1, *five]
    once = with_front(tmp_path / "once", TURNS)
    assert once.encode(turns).count(1) == 1
    assert once.encode(chat({"role": "user", "content": "<|pad|>5"})).count(1) == 2, "the second is in the turn"
    assert with_front(tmp_path / "both", "{{ bos_token }}" + EACH).encode(turns) == [1, *five, 1, *five]


def test_a_piece_of_text_stays_as_it_is(tmp_path: Path) -> None:
    assert with_front(tmp_path / "model").encode("<|pad|><|pad|>", whole=False) == [1, 1]


def test_run_and_generate_give_one_bos(tmp_path: Path) -> None:
    model = tmp_path / "model"
    with_front(model)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{bos}What is 2 + 3?"}) + "\n" for bos in ("<|pad|>", "")))
    out = tmp_path / "out.jsonl"
    told = ("--num-gpus", 0, "--inline", "--max_new_tokens", 2)
    assert in_process("generate", "--model_path", model, "--input_file", rows, "--output_file", out, *told) == 0
    lengths = {one.tokens.prompt for one in first_records(tmp_path / "out.jsonl.run/records.jsonl").values()}
    expected = 1 + len(of_file(DEMO).encode("What is 2 + 3?").ids)
    assert lengths == {expected}
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "What is 2 + 3?", "answer": "#### 5"}\n')
    asked = ("--data", data, "--inline", "--num-gpus", 0, "--sampler.kind", "greedy", "--task.max-new-tokens", 2)
    template = ("--task.preset", "jsonl", "--task.template", "<|pad|>{question}")
    assert in_process("run", "--model", model, *asked, *template, "--run-dir", tmp_path / "run") == 0
    assert {one.tokens.prompt for one in first_records(tmp_path / "run/records.jsonl").values()} == {expected}


def test_the_library_takes_a_file_as_it_is_by_one_class(tmp_path: Path) -> None:
    """Which is why its tokenizers are not compared with the file."""
    folder = folder_of(copy(tmp_path / "model", **FILES["of its own"]), "llama", "PreTrainedTokenizerFast")
    loaded = AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is PreTrainedTokenizerFast
    assert loaded(TEXTS[0])["input_ids"] == of_file(folder).encode(TEXTS[0]).ids

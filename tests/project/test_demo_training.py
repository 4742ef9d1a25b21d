"""The embedded default: problems that are right, held out and reproducible; a model folder that loads and grows."""

from __future__ import annotations

import ast
import json
import operator
import re
import runpy
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from demo_training import grow
from demo_training.problems import (
    FOLDER,
    TEST_SEED,
    TRAIN_SEED,
    Row,
    as_jsonl,
    demo_rows,
    held_out,
    library,
    row,
    rows,
    validation_rows,
)
from evals.config import TaskConfig
from evals.tasks.task import make_task
from evals.types import Answer, Problem

MODEL = FOLDER / "model"
EQUATION = re.compile(r"([\d(][\d\s+\-*/()]*[\d)]) = (\d+)")
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@pytest.fixture(scope="module")
def stored() -> list[Row]:
    return [Row(**json.loads(line)) for line in (FOLDER / "problems.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True).eval()


def calculated(text: str) -> tuple[float, int]:
    """An expression's value by Python's own grammar, and how many operations it has."""

    def value(node: ast.expr) -> tuple[float, int]:
        if isinstance(node, ast.BinOp):
            (left, m), (right, n) = value(node.left), value(node.right)
            return OPERATORS[type(node.op)](left, right), m + n + 1
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return node.value, 0

    return value(ast.parse(text, mode="eval").body)


def full_text(problem: Row) -> str:
    return f"Question: {problem.question}\nAnswer: {problem.answer}"


def test_a_row_depends_on_seed_and_index_alone() -> None:
    first = [row(3, index) for index in range(50)]
    assert [row(3, index) for index in reversed(range(50))] == first[::-1]
    assert len({problem.question for problem in first + [row(4, index) for index in range(50)]}) == 100


def test_equations_are_right_and_lead_to_the_gold_answer() -> None:
    for index in range(3000):
        question, answer = row(5, index)
        *lines, last = answer.split("\n")
        found = [EQUATION.findall(line) for line in lines]
        assert all(len(equations) == 1 for equations in found), answer
        equations = [equations[0] for equations in found]
        assert 2 <= len(equations) <= 4, answer
        values = [calculated(left) for left, _ in equations]
        assert [value for value, _ in values] == [int(right) for _, right in equations], answer
        assert 2 <= sum(count for _, count in values) <= 7, answer
        assert last == f"#### {equations[-1][1]}"
        assert not re.search(r"[\[\]{}|]", question + answer)


def test_every_operand_is_told_or_calculated_before() -> None:
    constants = {2, 3, 4}  # legs, points of a shot, there and back, half
    for index in range(2000):
        question, answer = row(6, index)
        known = constants | set(map(int, re.findall(r"\d+", question)))
        for left, right in EQUATION.findall(answer):
            assert set(map(int, re.findall(r"\d+", left))) <= known, (question, answer)
            known.add(int(right))


def test_persons_and_things_of_an_answer_come_from_its_question() -> None:
    lexicon, _ = library()
    names = {name for name, _ in lexicon.people}
    for index in range(2000):
        question, answer = row(7, index)
        said = [set(re.findall(r"[A-Z][a-z]+", text)) & names for text in (question, answer)]
        assert said[1] <= said[0], (question, answer)


def test_many_scenarios_and_wordings() -> None:
    _, scenarios = library()
    assert len({scenario.steps[-1].sentences for scenario in scenarios}) >= 50
    assert len(scenarios) >= 100
    assert {len(scenario.steps) for scenario in scenarios} == {2, 3, 4}
    assert {sum(" = " in line for line in row(8, index).answer.split("\n")) for index in range(200)} == {2, 3, 4}


def test_held_out_and_training_problems_share_no_question(stored: list[Row]) -> None:
    training = [problem.question for problem in islice(rows(TRAIN_SEED, held=False), 600)]
    assert not any(map(held_out, training))
    assert not any(map(held_out, (problem.question for problem in islice(rows(TEST_SEED, held=False), 600))))
    validation = [problem.question for problem in validation_rows(20)]
    assert all(held_out(question) for question in [*validation, *(problem.question for problem in stored)])
    assert not set(validation) & {problem.question for problem in stored}


def test_problems_jsonl_is_reproducible_byte_for_byte(stored: list[Row]) -> None:
    assert len(stored) == len({problem.question for problem in stored}) == 200
    assert (FOLDER / "problems.jsonl").read_bytes() == as_jsonl(demo_rows()).encode()


def test_the_task_accepts_every_gold_answer(stored: list[Row]) -> None:
    task = make_task(TaskConfig(), seed=0)
    for index, (question, answer) in enumerate(stored):
        grades = task.grade(Problem.from_answer(index, question, answer), Answer(answer))
        assert all(grade.correct for grade in grades.values()), grades


def test_the_folder_is_small_and_holds_safetensors_alone() -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(files) == expected
    assert sum(files.values()) <= 12_000_000
    with safe_open(MODEL / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_tokenizer_gives_the_texts_back(stored: list[Row], tokenizer: Any) -> None:
    file = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    for problem in stored:
        text = full_text(problem)
        ids = tokenizer(text)["input_ids"]
        assert ids == file.encode(text).ids, "the loaded tokenizer is not what the file says"
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        prompt = tokenizer(f"Question: {problem.question}\nAnswer:")["input_ids"]
        assert ids[: len(prompt)] == prompt, "a prompt is cut elsewhere than in training"
        assert len(ids) < 200


def test_digits_are_single_tokens(tokenizer: Any) -> None:
    digits = set(tokenizer.convert_tokens_to_ids(list("0123456789")))
    assert len(digits) == 10
    assert set(tokenizer("0123456789")["input_ids"]) == digits
    assert len(tokenizer("So 40 * 1234 = 49360.")["input_ids"]) == len(["So", " *", " =", "."]) + 3 + 11


def test_the_end_of_an_answer_is_one_special_token(tokenizer: Any) -> None:
    end = GenerationConfig.from_pretrained(MODEL, local_files_only=True).eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == tokenizer.eos_token_id == end
    assert tokenizer("#### 12<|endoftext|>")["input_ids"][-1] == end


def test_the_model_is_sure_of_words_and_unsure_of_numbers(model: Any, tokenizer: Any, stored: list[Row]) -> None:
    """Mean nats a token on held-out texts, as the model card has them; a broken file or tokenizer is far off."""
    texts = [full_text(problem) + "<|endoftext|>" for problem in stored[:40]]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.inference_mode():
        loss = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.item()
    assert loss == pytest.approx(0.297, abs=0.03)


def test_shape_of_the_model(model: Any) -> None:
    config = model.config
    assert config.model_type == "qwen2"
    assert config.hidden_size // config.num_attention_heads == 64
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.tie_word_embeddings


@pytest.mark.parametrize("heads", [(6, 3), (8, 2)])
def test_a_grown_model_computes_the_same(heads: tuple[int, int], model: Any, stored: list[Row], tmp_path: Path) -> None:
    small = model.config
    size = grow.Size(small.num_hidden_layers + 1, 320, 768, *heads, small.vocab_size + 100)
    grow.grow(MODEL, tmp_path, size, torch.float32)
    big = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert (big.config.num_hidden_layers, big.config.num_key_value_heads) == (size.layers, size.kv_heads)
    for problem in stored[:3]:
        ids = tokenizer(full_text(problem), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            expected, logits = model(ids).logits, big(ids).logits
        torch.testing.assert_close(logits[..., : small.vocab_size], expected, atol=1e-4, rtol=0)
        assert logits[..., small.vocab_size :].max() < expected.min() - 20


def test_growing_into_what_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be grown"):
        grow.grow(MODEL, tmp_path, grow.Size(6, 256, 704, 4, 2, 1024))
    with pytest.raises(ValueError, match="cannot be grown"):
        grow.grow(MODEL, tmp_path, grow.Size(8, 512, 1024, 4, 4, 1024))


def test_grow_is_a_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["grow.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(grow.__file__), run_name="__main__")
    assert "--size" in capsys.readouterr().out

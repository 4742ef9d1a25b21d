"""Which part of an answer is thought: by its text, by its tokens, and by what the prompt has opened."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from evals.config import TaskConfig
from evals.engine.tokenizer import load_tokenizer
from evals.evaluate import thought_rule
from evals.tasks.task import make_task
from evals.thoughts import OPENINGS, USUAL_END, Thoughts, end_in, opening_of, thought_in
from evals.types import Answer, Problem
from support.places import ROOT

PROBLEM = Problem.from_answer(0, "?", "#### 18")
TASK = make_task(TaskConfig(), seed=0)
THOUGHT = "<think>The answer is 5?</think>"


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("The answer is 18.", 0),
        (f"{THOUGHT}18", len(THOUGHT)),
        ("no: 5</think>18", len("no: 5</think>")),
        (f"{THOUGHT}7{THOUGHT}18", 2 * len(THOUGHT) + 1),
        (THOUGHT, len(THOUGHT)),
        ("<think>The answer is 18.", "open"),
        (f"{THOUGHT}18<think>or", "open"),
        ("[THINK]5[/THINK]18", 0),
    ],
)
def test_what_stands_before_the_last_end_is_thought(text: str, thought: int | str) -> None:
    assert thought_in(text, USUAL_END) == thought


def test_another_end_or_none() -> None:
    assert thought_in("[THINK]5[/THINK]18", "[/THINK]") == len("[THINK]5[/THINK]")
    assert thought_in("<a>5", "</a>") == "open"
    assert thought_in("<think>5", "") == 0
    assert thought_in("plan: 5 done: 18", "done:") == len("plan: 5 done:")
    assert opening_of("done:") is None
    assert [end_in(f"{{{{ '{opening}' }}}} {end}") for end, opening in OPENINGS.items()] == list(OPENINGS)
    assert end_in("") == end_in("{{ messages }}") == USUAL_END


@pytest.mark.parametrize(
    ("answer", "numeric"),
    [
        (Answer(f"{THOUGHT} 18", len(THOUGHT)), (True, "18", "number")),
        (Answer(f"{THOUGHT} 18"), (False, "5", "number")),
        (Answer(THOUGHT, len(THOUGHT)), (False, None, "none")),
        (Answer("<think>The answer is 18.", "open"), (False, None, "open thought")),
        (Answer("<think>The answer is 18.", "open", cut_off=True), (False, None, "open thought")),
    ],
)
def test_a_thought_is_not_graded_and_does_not_vote(answer: Answer, numeric: tuple[bool, str | None, str]) -> None:
    grades = TASK.grade(PROBLEM, answer)
    assert (grades["numeric"].correct, grades["numeric"].answer, grades["numeric"].kind) == numeric
    assert grades["numeric"].correct_as_it_stands is None
    assert TASK.vote(answer) == numeric[1]
    assert {name: grades[name] for name in ("strict", "flexible")} == {
        name: TASK.grade(PROBLEM, Answer(answer.text))[name] for name in ("strict", "flexible")
    }


class Marked:
    """A tokenizer of characters in which `<think>`, `</think>` and a turn are tokens of their own."""

    added: ClassVar[dict[str, int]] = {"<think>": 1, "</think>": 2, "<|turn|>": 3}

    def encode(self, text: str) -> list[int]:
        for word, number in self.added.items():
            text = text.replace(word, chr(number))
        return list(map(ord, text))

    def decode(self, tokens: Any) -> str:
        words = {number: word for word, number in self.added.items()}
        return "".join(words.get(token) or chr(token) for token in tokens)


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|turn|>What?<|turn|><think>\n", True),
        ("<|turn|>What?<|turn|><think>\nWell,", True),
        ("<|turn|>What?<|turn|>", False),
        ("<|turn|>Begin with <think>, please.<|turn|>", False),
        ("<|turn|>What?<|turn|><think>\n\n</think>\n\n", False),
        ("Question: what?\nAnswer:", False),
        ("", False),
    ],
)
def test_a_prompt_opens_a_thought_at_its_end(prompt: str, opened: bool) -> None:
    marked = Marked()
    assert Thoughts(USUAL_END, marked.decode, marked.added).opened_by(marked.encode(prompt)) == opened
    assert not Thoughts("", marked.decode, marked.added).opened_by(marked.encode(prompt))


@pytest.mark.parametrize(
    ("text", "opened", "thought"),
    [
        ("So 5?</think>18", True, len("So 5?</think>")),
        ("So 18.", True, "open"),
        ("So 18.", False, 0),
        (f"{THOUGHT}18", False, len(THOUGHT)),
        ("<think>18", False, "open"),
        (f"{THOUGHT}18<think>", True, "open"),
    ],
)
def test_the_tokens_of_an_answer_tell_its_thought(text: str, opened: bool, thought: int | str) -> None:
    marked = Marked()
    assert Thoughts(USUAL_END, marked.decode, marked.added).of(marked.encode(text), text, opened) == thought
    spelt = list(map(ord, text))
    assert Thoughts(USUAL_END, marked.decode, {}).of(spelt, text, opened) == thought, "no token of its own"


def test_characters_are_no_token() -> None:
    """A model that has a token for the end may write about it."""
    marked = Marked()
    text = f"{THOUGHT}18 stood behind </think>, not <think>"
    tokens = [*marked.encode(THOUGHT), *map(ord, text.removeprefix(THOUGHT))]
    assert Thoughts(USUAL_END, marked.decode, marked.added).of(tokens, text, opened=False) == len(THOUGHT)


def test_a_stop_string_before_the_end_of_the_thought_leaves_no_answer() -> None:
    marked = Marked()
    tokens = marked.encode("5\n</think>18")
    assert Thoughts(USUAL_END, marked.decode, marked.added).of(tokens, "5", opened=True) == 1


def test_a_tokenizer_says_its_tokens_and_its_template_their_end() -> None:
    tokenizer = load_tokenizer(str(ROOT / "evals/demo/model"))
    assert (thought_rule(None, tokenizer).end, tokenizer.chat_template) == (USUAL_END, "")
    tokenizer = load_tokenizer(str(ROOT / "evals/demo/model"))
    tokenizer._tokenizer.chat_template = "{{ '[THINK]' }}{{ '[/THINK]' }}"
    tokenizer._tokenizer.add_tokens(["[THINK]", "[/THINK]"])
    rule = thought_rule(None, tokenizer)
    assert rule.end == "[/THINK]"
    ids = tokenizer.encode("[THINK] 3 + 4 = 7 [/THINK] #### 7")
    assert ids.count(rule.added["[/THINK]"]) == 1
    assert tokenizer.decode(ids)[rule.of(ids, tokenizer.decode(ids), False) :] == " #### 7"  # type: ignore[misc]
    assert rule.of(ids[:6], tokenizer.decode(ids[:6]), False) == "open"
    assert thought_rule("", tokenizer).of(ids, tokenizer.decode(ids), False) == 0

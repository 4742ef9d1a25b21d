"""The GSM8K task: literal prompts, examples that depend on seed and problem only, three named scores."""

import pytest

from evals.config import TaskConfig
from evals.grading.grade import NUMERIC
from evals.tasks.task import make_task
from evals.types import Answer, Grade, Message, Problem, UserError

TRAIN = [
    Problem.from_answer(i, f"What is {i} + {i}?", f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}")
    for i in range(40)
]
ASKED = [Problem.from_answer(i, f"What is {i} times  3?", f"#### {3 * i}") for i in range(200)]


def test_zero_shot_prompt_is_the_literal_preset() -> None:
    task = make_task(TaskConfig(), seed=0)
    assert task.prompt(ASKED[2]) == "Question: What is 2 times  3?\nAnswer:"
    assert task.config.stop == ("Question:", "</s>", "<|im_end|>")


def test_few_shot_prompt_is_the_literal_preset() -> None:
    train = TRAIN[3:4]
    task = make_task(TaskConfig(num_shots=1), 0, train)
    assert task.prompt(ASKED[2]) == (
        "Question: What is 3 + 3?\nAnswer: 3+3=<<3+3=6>>6\n#### 6\n\nQuestion: What is 2 times  3?\nAnswer:"
    )


def shown(prompt: str | tuple[Message, ...]) -> list[str]:
    assert isinstance(prompt, str)
    return [part.split("\n")[0].removeprefix("Question: ") for part in prompt.split("\n\n")[:-1]]


def test_examples_are_a_function_of_seed_and_problem() -> None:
    config = TaskConfig(num_shots=5)
    task, again, other = make_task(config, 7, TRAIN), make_task(config, 7, TRAIN), make_task(config, 8, TRAIN)
    prompts = [task.prompt(problem) for problem in ASKED]
    assert [again.prompt(problem) for problem in reversed(ASKED)] == prompts[::-1]
    assert other.prompt(ASKED[0]) != prompts[0]
    assert len({tuple(shown(prompt)) for prompt in prompts}) == len(prompts)
    assert all(len(set(shown(prompt))) == 5 for prompt in prompts)
    assert shown(make_task(TaskConfig(num_shots=3), 7, TRAIN).prompt(ASKED[0])) == shown(prompts[0])[:3]


def test_every_example_is_drawn_about_equally_often() -> None:
    task = make_task(TaskConfig(num_shots=5), 3, TRAIN)
    counts = dict.fromkeys((problem.question for problem in TRAIN), 0)
    for problem in ASKED:
        for question in shown(task.prompt(problem)):
            counts[question] += 1
    expected = 200 * 5 / 40
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 73  # 39 degrees of freedom, p = 0.001, sampling without replacement only lowers it


def test_a_problem_is_never_its_own_example() -> None:
    task = make_task(TaskConfig(num_shots=39), 0, TRAIN)
    for problem in TRAIN:
        assert problem.question not in shown(task.prompt(problem))


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(UserError, match=r"task.train_data"):
        make_task(TaskConfig(num_shots=1), 0).prompt(ASKED[0])
    with pytest.raises(
        UserError, match=r"no training data is named; name a JSONL file or data set, or lower task\.num_s"
    ):
        make_task(TaskConfig(num_shots=1), 0).prompt(ASKED[0])
    with pytest.raises(UserError, match=r"5 solved examples .* has 4"):
        make_task(TaskConfig(num_shots=5), 0, TRAIN[:4]).prompt(ASKED[0])
    with pytest.raises(UserError, match=r"5 solved examples .* has 4"):
        make_task(TaskConfig(preset="lmeval-gsm8k"), 0, TRAIN[:4]).prompt(ASKED[0])
    with pytest.raises(UserError, match=r"has 4, of which 3 can stand in front of this one; .* \(task\.train_data\)"):
        make_task(TaskConfig(num_shots=4), 0, TRAIN[:4]).prompt(TRAIN[0])


def test_scores_are_named_and_keep_their_evidence() -> None:
    grades = make_task(TaskConfig(), 0).grade(ASKED[6], Answer("6*3=18.00\n#### 18.00"))
    assert list(grades) == ["strict", "flexible", "numeric"]
    assert grades["strict"] == Grade(False, "18.00", "number")
    assert grades["flexible"] == Grade(False, "18.00", "number")
    assert grades["numeric"] == Grade(True, "18.00", "number", NUMERIC)

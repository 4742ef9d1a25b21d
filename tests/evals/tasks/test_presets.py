"""Every preset literally, the prompt hashes that others' code was measured to give, and drawings of examples."""

import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from evals.config import TaskConfig
from evals.tasks.presets import PRESETS
from evals.tasks.task import INSPECT_ROWS, drawn_rows, lm_eval_rows, make_task, packaged
from evals.types import Answer, Chat, Problem, UserError
from support.interop import needs_theirs, theirs
from support.places import ROOT
from support.shared_data import GSM8K_TEST, GSM8K_TRAIN, SHARED, needs_shared

Q = Problem.from_answer(3, " How {a} {q}  many? \\boxed{}", "He has 2*3=<<2*3=6>>6.\nSo 6.\n#### 6")
TRAIN = [Problem.from_answer(i, f"Q{i}?", f"R{i}.\n#### {i}") for i in range(7473)]

LITERAL: dict[str, str] = {
    "gsm8k": "Question: {q}\nAnswer:",
    "lmeval-gsm8k": "Question: {q}\nAnswer:",
    "lmeval-gsm8k-keyed": "Question: {q}\nAnswer:",
    "lmeval-platinum": "Question: {q}\nAnswer:",
    "lmeval-cot": "Q: {q}\nA:",
    "lmeval-cot-zeroshot": "Q: {q}\nA: Let's think step by step.",
    "lighteval-gsm8k": "Question: {q}\nAnswer:",
    "qwen25-math": (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n{stripped}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "qwen25-math-base": "Question: {stripped}\nAnswer:",
    "power-paper": (
        "Can you solve the following math problem? {q} Please reason step by step, and put your final answer within "
        "\\boxed{{}}."
    ),
    "math500": (
        "Can you solve the following math problem? {q} Please reason step by step, and put your final answer within "
        "\\boxed{{}}."
    ),
    "math-verify": "Question: {q}\nStep-by-Step Answer:",
    "generate": "{q}",
}
INSPECT = (
    'Solve the following math problem step by step. The last line of your response should be of the form "ANSWER: '
    '$ANSWER" (without quotes) where $ANSWER is the answer to the problem.\n\n{q}\n\nRemember to put your answer on '
    'its own line at the end in the form "ANSWER: $ANSWER" (without quotes) where $ANSWER is the answer to the '
    "problem, and you do not need to use a \\boxed command.\n\nReasoning:"
)
CHATS = {"nanochat": "{q}", "inspect-gsm8k": INSPECT, "inspect-gsm8k-0shot": INSPECT}

SETTINGS = {  # shots, tokens, stops
    "gsm8k": (0, 512, ("Question:", "</s>", "<|im_end|>")),
    "lmeval-gsm8k": (5, 256, ("Question:", "</s>", "<|im_end|>")),
    "lmeval-gsm8k-keyed": (5, 256, ("Question:", "</s>", "<|im_end|>")),
    "lmeval-platinum": (5, 256, ("Question:", "</s>", "<|im_end|>")),
    "lmeval-cot": (8, 256, ("Q:", "</s>", "<|im_end|>")),
    "lmeval-cot-zeroshot": (0, 256, ("Q:", "</s>", "<|im_end|>")),
    "lighteval-gsm8k": (5, 256, ("Question:",)),
    "inspect-gsm8k": (10, 2048, ()),
    "inspect-gsm8k-0shot": (0, 2048, ()),
    "nanochat": (0, 512, ("<|assistant_end|>", "<|bos|>")),
    "qwen25-math": (0, 2048, ("</s>", "<|im_end|>", "<|endoftext|>")),
    "qwen25-math-base": (0, 2048, ("</s>", "<|im_end|>", "<|endoftext|>", "\n\nQuestion:")),
    "power-paper": (0, 3072, ()),
    "math-verify": (0, 1024, ("\nQuestion:", "\nProblem:", "\nquestion:", "\nproblem:")),
    "math500": (0, 3072, ()),
    "generate": (0, 2048, ()),
}


def written(form: str) -> str:
    return (
        Q.question.strip().join(form.split("{stripped}"))
        if "{stripped}" in form
        else Q.question.join(form.split("{q}"))
    )


def gsm8k(file: str) -> list[Problem]:
    lines = (SHARED / file).read_text(encoding="utf-8").splitlines()
    return [Problem.from_answer(i, row["question"], row["answer"]) for i, row in enumerate(map(json.loads, lines))]


def digest(preset: str) -> str:
    config = TaskConfig(preset=preset)
    task = make_task(config, 0, gsm8k(GSM8K_TRAIN) if config.num_shots else ())
    return hashlib.sha256("\0".join(str(task.prompt(one)) for one in gsm8k(GSM8K_TEST)).encode()).hexdigest()


def test_every_preset_is_here() -> None:
    assert PRESETS.keys() == LITERAL.keys() | CHATS.keys() | {"jsonl"}
    assert SETTINGS.keys() == PRESETS.keys() - {"jsonl"}


@pytest.mark.parametrize("preset", LITERAL)
def test_text_prompts_without_examples(preset: str) -> None:
    task = make_task(TaskConfig(preset=preset, num_shots=0), 0)
    assert task.prompt(Q) == written(LITERAL[preset])


@pytest.mark.parametrize("preset", CHATS)
def test_chats_without_examples(preset: str) -> None:
    task = make_task(TaskConfig(preset=preset, num_shots=0), 0)
    assert task.prompt(Q) == ({"role": "user", "content": written(CHATS[preset])},)


@pytest.mark.parametrize("preset", SETTINGS)
def test_shots_limits_and_stops(preset: str) -> None:
    config = TaskConfig(preset=preset)
    assert (config.num_shots, config.max_new_tokens, config.stop) == SETTINGS[preset]
    assert (config.chat, config.name) == (preset in CHATS, {"math500": "math", "generate": "open"}.get(preset, "gsm8k"))
    assert TaskConfig.model_validate(config.model_dump(mode="json")) == config


def test_what_is_set_wins_over_the_preset() -> None:
    config = TaskConfig(preset="lmeval-gsm8k", max_new_tokens=7, stop=("x",), num_shots=2)
    assert (config.max_new_tokens, config.stop, config.num_shots) == (7, ("x",), 2)
    for said in (True, "true", "yes", "on", "TRUE"):
        assert TaskConfig.model_validate({"preset": "lighteval-gsm8k", "chat": said}).stop == ()
    task = make_task(TaskConfig(preset="power-paper", chat=True), 0)
    assert task.prompt(Q) == ({"role": "user", "content": written(LITERAL["power-paper"])},)


def test_examples_of_lm_eval_are_replayed() -> None:
    assert lm_eval_rows(1318, 7473, 5) == [220, 4179, 6064, 5599, 5541]
    assert lm_eval_rows(0, 7473, 5) == [6374, 3610, 957, 61, 742]
    assert lm_eval_rows(1, 7473, 5) == [7462, 6610, 4769, 286, 5501]
    prompt = make_task(TaskConfig(preset="lmeval-gsm8k"), 0, TRAIN).prompt(Problem(1318, "How?", "#### 1"))
    shown = "".join(f"Question: Q{i}?\nAnswer: R{i}.\n#### {i}\n\n" for i in (220, 4179, 6064, 5599, 5541))
    assert prompt == f"{shown}Question: How?\nAnswer:"


PROMPTS = "lm-eval's presets ask as lm-eval does, by the sha256 of all 1,319 prompts"


@needs_shared(GSM8K_TEST, GSM8K_TRAIN, claim=PROMPTS)
def test_prompts_of_lm_evals_gsm8k() -> None:
    assert digest("lmeval-gsm8k") == "84119a05b6c77e92415182c7963444e153dd2df04e05e238744f26b105c0a8b6"


@needs_shared(GSM8K_TEST, claim=PROMPTS)
def test_prompts_of_lm_evals_zero_shot_chain_of_thought() -> None:
    assert digest("lmeval-cot-zeroshot") == "d178f26dfbf4eb9ee747b44d24accab731661a06c7cb08d7e236b5aab4d6fb94"


def test_examples_of_the_package_need_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.tasks.task.find_spec", lambda name: None)
    packaged.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'powersample\[lm-eval\]'"):
        packaged()


@needs_theirs
@needs_shared(GSM8K_TEST, claim=PROMPTS)
def test_examples_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    place = theirs("import lm_eval\nfrom pathlib import Path\nanswer = str(Path(lm_eval.__file__).parents[1])", None)
    monkeypatch.setattr(sys, "path", [*sys.path, place])  # last, for what we have ourselves
    packaged.cache_clear()
    assert digest("lmeval-cot") == "9a08edd9368fad0c8e3a7d85f65d607fcbc6566b30b3ef3e479a4d6c11eaf204"


def test_examples_of_the_package_as_it_lays_them_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lm_eval/tasks/gsm8k"
    folder.mkdir(parents=True)
    (tmp_path / "lm_eval/__init__.py").touch()
    samples = [{"question": f"q{i}?", "target": f"t{i}. The answer is {i}."} for i in range(8)]
    (folder / "gsm8k-cot.yaml").write_text(json.dumps({"fewshot_config": {"samples": samples}}))
    monkeypatch.syspath_prepend(str(tmp_path))
    packaged.cache_clear()
    prompt = make_task(TaskConfig(preset="lmeval-cot"), 0).prompt(Q)
    packaged.cache_clear()
    shown = "".join(f"Q: q{i}?\nA: t{i}. The answer is {i}.\n\n" for i in range(8))
    assert prompt == f"{shown}Q: {Q.question}\nA:"


def test_examples_of_inspect_are_its_ten_rows_in_the_system_message() -> None:
    numpy = pytest.importorskip("numpy")
    assert tuple(numpy.random.default_rng(42).permutation(7473)[:10]) == INSPECT_ROWS
    system, user = make_task(TaskConfig(preset="inspect-gsm8k"), 0, TRAIN).prompt(Q)
    shown = [f"Q{i}?\n\nReasoning:\nR{i}.\n\nANSWER: {i}" for i in INSPECT_ROWS]
    assert system == {"role": "system", "content": "\n\n".join(shown)}
    assert user == {"role": "user", "content": written(INSPECT)}


@pytest.mark.parametrize(
    ("count", "rows", "words"),
    [
        (
            10,
            200,
            "10 solved .* takes row 6,330 and others of GSM8K's 7,473 training rows, and t.jsonl has 200; name all",
        ),
        (
            1,
            3082,
            "1 solved .* takes row 3,082 and others .* t.jsonl has 3,082; name all of them, choose another preset",
        ),
        (1, 0, r"1 solved .* of GSM8K's 7,473 training rows, and none are named; .* \(task\.train_data\)\.$"),
        (12, 7473, r"12 solved .* the preset inspect-gsm8k has 10; lower it, .* \(task\.num_shots\)\.$"),
    ],
)
def test_inspect_says_which_rows_it_needs(count: int, rows: int, words: str) -> None:
    config = TaskConfig(preset="inspect-gsm8k", train_data="t.jsonl", num_shots=count)
    with pytest.raises(UserError, match=words):
        make_task(config, 0, TRAIN[:rows]).prompt(Q)


def test_examples_of_lighteval_come_from_one_stream_in_shuffled_order() -> None:
    import random

    rng, order = random.Random(42), list(range(1319))
    rng.shuffle(order)
    first = rng.sample(TRAIN, 5)
    task = make_task(TaskConfig(preset="lighteval-gsm8k"), 0, TRAIN)
    asked = Problem(order[0], "How?", "#### 1")
    shown = "".join(f"Question: {shot.question}\nAnswer: {shot.solution}\n\n" for shot in first)
    assert task.prompt(asked) == f"{shown}Question: How?\nAnswer:"
    assert sorted(drawn_rows(42, 1319, 7473, 5, shuffle=True)) == list(range(1319))
    with pytest.raises(UserError, match="lmeval-gsm8k-keyed"):
        task.prompt(Problem(1319, "How?", "#### 1"))


def test_examples_of_platinum_are_other_rows_of_itself() -> None:
    rows = TRAIN[:12]
    task = make_task(TaskConfig(preset="lmeval-platinum"), 0, rows)
    for row in rows:
        shown = [part.split("\n")[0].removeprefix("Question: ") for part in str(task.prompt(row)).split("\n\n")[:-1]]
        drawn = [rows[i].question for i in lm_eval_rows(row.problem_id, 12, 6)]
        assert shown == [question for question in drawn if question != row.question][:5]


def test_a_template_for_any_data() -> None:
    config = TaskConfig(preset="jsonl", template="Solve: {question}\n{a} \\boxed{}", stop=("\n\n",))
    task = make_task(config, 0)
    assert task.prompt(Q._replace(question="1+1?")) == f"Solve: 1+1?\n{Q.solution} \\boxed{{}}"
    assert task.config.stop == ("\n\n",)
    assert config.name == "math"
    for settings in ({"preset": "jsonl"}, {"preset": "jsonl", "template": "no name in it"}):
        with pytest.raises(ValueError, match=r"task\.template|\{question\}"):
            TaskConfig.model_validate(settings)


def test_votes_of_formulas() -> None:
    task = make_task(TaskConfig(preset="math500"), 0)
    assert task.vote(Answer(r"\boxed{\frac{1}{2} x}")) == r"\frac{1}{2}x"
    assert task.vote(Answer(r"\boxed{18.0}")) == "18"


def test_strict_of_chain_of_thought_presets() -> None:
    problem, answer = Problem.from_answer(0, "?", "#### 18"), Answer("The answer is 18.")
    assert make_task(TaskConfig(preset="lmeval-cot-zeroshot"), 0).grade(problem, answer)["strict"].correct
    assert not make_task(TaskConfig(), 0).grade(problem, answer)["strict"].correct


def test_a_chat_goes_through_the_models_template() -> None:
    from evals.engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(ROOT / "evals/demo/model"))
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"})
    chat = Chat(0, turns, {}, datetime(2026, 12, 1, tzinfo=UTC))
    with pytest.raises(UserError, match=r"no chat template.*task\.chat"):
        tokenizer.encode(chat)
    turn, start = "[{{ m.role }}] {{ m.content }}\n", "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer._tokenizer.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}{start}"
    assert tokenizer.decode(tokenizer.encode(chat)) == "[system] Be brief.\n[user] How many?\n[assistant]"


PINNED = {
    "gsm8k": ("1", "cceecb12"),
    "lmeval-gsm8k": ("1", "cdca7167"),
    "lmeval-gsm8k-keyed": ("1", "b7eaa91f"),
    "lmeval-platinum": ("1", "b301d109"),
    "lmeval-cot": ("1", "88ea494b"),
    "lmeval-cot-zeroshot": ("1", "dbba26d2"),
    "lighteval-gsm8k": ("1", "17074f66"),
    "inspect-gsm8k": ("1", "36ffc7cf"),
    "inspect-gsm8k-0shot": ("1", "e78fa56e"),
    "nanochat": ("1", "1b148bbf"),
    "qwen25-math": ("1", "8fafff46"),
    "qwen25-math-base": ("1", "c7da0cc5"),
    "power-paper": ("1", "bbe41843"),
    "math-verify": ("1", "ba8cd46a"),
    "math500": ("1", "ad68766a"),
    "jsonl": ("1", "65f59911"),
    "generate": ("1", "86cc6afb"),
}
"""Preset -> its version, and the digest of what that version asks and how it grades."""
TEXTS = ["#### 6", "The answer is 6.", r"So \boxed{6}.", "6 or 7", "ANSWER: 6.0", "#### 7", "none"]


def asked_and_graded(preset: str) -> str:
    """Digest of two prompts of a preset, raw and as a chat, of its stops and limits, and of its grades of TEXTS."""
    contents = []
    for chat in (False, True):
        config = TaskConfig(preset=preset, chat=chat, template="{q}" if preset == "jsonl" else None)
        task, other = make_task(config, 0, TRAIN), Problem.from_answer(4, "And you?", "#### 7")
        prompts = [task.prompt(problem) for problem in (Q, other)]
        limits = [PRESETS[preset].chat, config.stop, config.max_new_tokens, config.max_prompt_tokens]
        grades = [{name: one.correct for name, one in task.grade(Q, Answer(text)).items()} for text in TEXTS]
        contents.append([prompts, limits, config.question_key, grades])
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:8]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_that_changes_raises_its_version(preset: str) -> None:
    if preset == "lmeval-cot":
        pytest.importorskip("lm_eval")
    found = PRESETS[preset].version, asked_and_graded(preset)
    assert found == PINNED.get(preset), (
        f"The preset {preset} asks or grades otherwise than the pinned version: if that is meant, raise `version` of "
        f"the preset in evals/tasks/presets.py, and pin it in PINNED here; a new preset is pinned as {found}."
    )

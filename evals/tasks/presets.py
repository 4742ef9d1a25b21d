r"""The table of presets: prompts, solved examples, stops and token limits of published evaluations.

A preset is what upstream does, faults included (`\boxed{{}}` of the power-sampling paper is what its models see), so
that a score can stand beside the published one. In a form, {q} is the question, {a} the worked solution with `#### n`,
{r} its reasoning without that line and {n} its number; nothing else in it is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

Draw = Literal["keyed", "lm_eval", "lm_eval_self", "lighteval", "fixed", "package"]
"""Which solved examples a question gets: drawn by (seed, row), ours, or as upstream draws them (task.py)."""


class Preset(NamedTuple):
    """One way to ask a question; what a configuration leaves out is taken from here."""

    form: str
    """The prompt, or the user's turn of a chat."""
    shot: str = "Question: {q}\nAnswer: {a}"
    """One solved example."""
    joint: str = "\n\n"
    """Between examples, and between the last one and the prompt."""
    num_shots: int = 0
    draw: Draw = "keyed"
    stop: tuple[str, ...] = ()
    """Stop strings beside the model's EOS."""
    max_new_tokens: int = 512
    max_prompt_tokens: int | None = None
    """The end of a question that makes its prompt longer is cut off."""
    chat: bool = False
    """Asked through the model's chat template."""
    shots_in_system: bool = False
    """The examples are the chat's system message."""
    chat_stop: tuple[str, ...] | None = None
    """The stops where a chat template is used, if others."""
    cot: bool = False
    """The strict score looks for "The answer is", as lm-eval's chain-of-thought tasks do."""
    format: str = "gsm8k"
    """Format of the data, by which answers are graded: a name in `evals.grading.grade.FORMATS`."""
    data: str | None = None
    """Data set on the hub that is asked, where it is not GSM8K."""
    question_key: str = "question"
    """Key of the question in the rows of the data."""
    strip: bool = False
    """Strip white space around the question."""
    version: str = "1"
    """Raised with every change of prompts, stops, limits or grading: numbers of two versions are not comparable."""


LM_EVAL_STOPS = ("Question:", "</s>", "<|im_end|>")
COT_STOPS = ("Q:", "</s>", "<|im_end|>")
QWEN_STOPS = ("</s>", "<|im_end|>", "<|endoftext|>")
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

PLAIN = Preset("Question: {q}\nAnswer:", stop=LM_EVAL_STOPS)
LM_EVAL = PLAIN._replace(num_shots=5, draw="lm_eval", max_new_tokens=256)
COT = Preset("Q: {q}\nA:", "Q: {q}\nA: {a}", num_shots=8, draw="package", stop=COT_STOPS, max_new_tokens=256, cot=True)
INSPECT = Preset(
    "Solve the following math problem step by step. The last line of your response should be of the form "
    '"ANSWER: $ANSWER" (without quotes) where $ANSWER is the answer to the problem.\n\n{q}\n\n'
    'Remember to put your answer on its own line at the end in the form "ANSWER: $ANSWER" (without quotes) where '
    "$ANSWER is the answer to the problem, and you do not need to use a \\boxed command.\n\nReasoning:",
    "{q}\n\nReasoning:\n{r}\n\nANSWER: {n}",
    num_shots=10,
    draw="fixed",
    max_new_tokens=2048,
    chat=True,
    shots_in_system=True,
)
QWEN_BASE = Preset(
    "Question: {q}\nAnswer:",
    joint="\n\n\n",
    stop=(*QWEN_STOPS, "\n\nQuestion:"),
    max_new_tokens=2048,
    strip=True,
)
PAPER = Preset(
    "Can you solve the following math problem? {q} Please reason step by step, and put your final answer within "
    "\\boxed{{}}.",
    max_new_tokens=3072,
)

PRESETS: Mapping[str, Preset] = {
    "gsm8k": PLAIN,
    "lmeval-gsm8k": LM_EVAL,
    "lmeval-gsm8k-keyed": LM_EVAL._replace(draw="keyed"),
    "lmeval-platinum": LM_EVAL._replace(draw="lm_eval_self", data="madrylab/gsm8k-platinum"),
    "lmeval-cot": COT,
    "lmeval-cot-zeroshot": COT._replace(form="Q: {q}\nA: Let's think step by step.", num_shots=0, draw="keyed"),
    "lighteval-gsm8k": PLAIN._replace(
        num_shots=5, draw="lighteval", stop=("Question:",), chat_stop=(), max_new_tokens=256
    ),
    "inspect-gsm8k": INSPECT,
    "inspect-gsm8k-0shot": INSPECT._replace(num_shots=0),
    "nanochat": Preset("{q}", stop=("<|assistant_end|>", "<|bos|>"), chat=True),
    "qwen25-math": Preset(
        f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\n{{q}}<|im_end|>\n<|im_start|>assistant\n",
        stop=QWEN_STOPS,
        max_new_tokens=2048,
        strip=True,
    ),
    "qwen25-math-base": QWEN_BASE,
    "power-paper": PAPER,
    "math-verify": Preset(
        "Question: {q}\nStep-by-Step Answer:",
        stop=("\nQuestion:", "\nProblem:", "\nquestion:", "\nproblem:"),
        max_new_tokens=1024,
    ),
    "math500": PAPER._replace(format="math", data="HuggingFaceH4/MATH-500", question_key="problem"),
    "jsonl": Preset("", format="math"),
    "generate": Preset("{q}", format="open", question_key="input", max_new_tokens=2048, max_prompt_tokens=2048),
}
"""`gsm8k` is the default; `jsonl` takes its form from task.template. Inspect sets no token limit: that of its Hugging
Face provider stands here."""


def fill(form: str, values: Mapping[str, str]) -> str:
    """Replace the names in braces of a form, all at once, so that braces within a question are left alone."""
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda name: values[name[1]], form)

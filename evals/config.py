"""Settings of tasks and the engine; those of samplers stand beside each sampler (samplers/registry.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, TypeAdapter, ValidationError, model_validator

from evals.grading.grade import FORMATS
from evals.settings import Positive, Settings, Text, conflict
from evals.tasks.presets import PRESETS
from evals.thoughts import USUAL_END
from evals.types import Dtype, Execution

if TYPE_CHECKING:
    PresetName = FormatName = str
else:  # the names in the tables are the values that can be set
    PresetName, FormatName = Literal[*PRESETS], Literal[*FORMATS]

GSM8K = PRESETS["gsm8k"]
"""What a task is where nothing is set."""

AUTO_SLOTS = {"cuda": 256, "cpu": 10}
"""Slots where no number is set: on a GPU as many as its memory holds, up to this number, beyond which little is gained
(512 slots were estimated 6 % faster than 256); on a CPU this number."""


def listed(words: Mapping[str, str]) -> str:
    """Names as a list for the help, each with its meaning in brackets."""
    return ", ".join(f"{name} ({meaning})" if meaning else name for name, meaning in words.items())


class TaskConfig(Settings):
    """Which problems, how they are put to the model, and how long an answer may be."""

    preset: PresetName = Field(
        default="gsm8k",
        description="how a published evaluation asks: its prompts, examples, stops and token limit, for all that is "
        "not set beside it; jsonl: any file of questions and answers, by task.template; generate: questions alone",
    )
    name: FormatName = Field(
        default=GSM8K.format,
        description="format of the data: "
        + listed({name: form.words for name, form in FORMATS.items()})
        + " (default: the preset's)",
    )
    num_shots: Annotated[int, Field(ge=0, le=64)] = Field(
        default=GSM8K.num_shots,
        description=f"solved examples in front of each question (default: the preset's, {GSM8K.num_shots} for gsm8k)",
    )
    data_config: Text | None = Field(
        default=None, description="configuration of a data set from the hub or a folder, such as main of openai/gsm8k"
    )
    train_data: str | None = Field(default=None, description="where the solved examples come from: file or hub name")
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=GSM8K.max_new_tokens,
        description="longest answer in tokens, the horizon of the target law (default: the preset's, "
        f"{GSM8K.max_new_tokens} for gsm8k)",
    )
    max_prompt_tokens: Positive | None = Field(
        default=GSM8K.max_prompt_tokens,
        description="the end of a question is cut off so that its prompt has at most so many tokens (default: the "
        f"preset's, {PRESETS['generate'].max_prompt_tokens} for generate; else a prompt that does not fit the model is "
        "refused)",
    )
    stop: tuple[Text, ...] = Field(
        default=GSM8K.stop,
        description="strings that end an answer; what is shown here is for the preset gsm8k",
    )
    chat: bool = Field(
        default=GSM8K.chat, description="ask through the model's chat template (default: as the preset does)"
    )
    chat_template_args: dict[str, JsonValue] = Field(
        default={}, description='variables of the chat template, in JSON such as {"enable_thinking": false}'
    )
    template: Text | None = Field(default=None, description="prompt with {question} in it, in place of the preset's")
    thought_end: str | None = Field(
        default=None,
        description="the token that ends a thought, what stands before it is not graded; empty for none (default: the "
        f"model's own where its chat template names one, else {USUAL_END})",
    )
    question_key: Text = Field(
        default=GSM8K.question_key,
        description="name of the question in the rows of the data; without it they have `messages`, conversations "
        "(default: the preset's)",
    )
    answer_key: Text = Field(default="answer", description="name of the answer in the rows of the data")

    @model_validator(mode="before")
    @classmethod
    def _take_from_preset(cls, given: Any) -> Any:
        """What is not set comes from the preset; what `gsm8k` says stays unset, which `resolve` looks at."""
        preset = PRESETS.get(given.get("preset", "gsm8k")) if isinstance(given, dict) else None
        if preset is None or given.get("preset", "gsm8k") == "gsm8k":
            return given
        chat = given.get("chat", preset.chat)
        try:
            is_chat = TypeAdapter(bool).validate_python(chat)
        except ValidationError:  # the field's own check refuses it
            return given
        usual = {
            "name": preset.format,
            "num_shots": preset.num_shots,
            "max_new_tokens": preset.max_new_tokens,
            "max_prompt_tokens": preset.max_prompt_tokens,
            "stop": preset.stop if preset.chat_stop is None or not is_chat else preset.chat_stop,
            "chat": chat,
            "question_key": preset.question_key,
        }
        return {**usual, **given}

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if self.template is None and self.preset == "jsonl":
            raise conflict("this preset has no prompt of its own; set task.template", "preset", "template")
        if self.template is not None and "{question}" not in self.template and "{q}" not in self.template:
            raise conflict("it has no {question}, so all prompts would be the same", "template")
        return self

    @model_validator(mode="after")
    def _check_chat_template_args(self) -> Self:
        if self.chat_template_args and not self.chat:
            raise conflict(
                "without task.chat no chat template reads them; set task.chat, or leave them out",
                "chat_template_args",
                "chat",
            )
        return self


class EngineConfig(Settings):
    """How the model runs on one device."""

    dtype: Literal["auto", Dtype] = Field(default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU")
    float32_logits: bool = Field(
        default=False,
        description="logits of a 16-bit model in float32, where its head allows: exact to the law of its hidden states",
    )
    gpus_per_model: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="GPUs that share one model which does not fit one of them, each holding some of its layers; slower",
    )
    adapter: Text | None = Field(
        default=None, description="LoRA adapter that is merged into the model: local folder or hub name; needs peft"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    allow_pickle: bool = Field(default=False, description="accept weights that are not safetensors")
    execution: Execution = Field(
        default="auto",
        description="how a GPU runs its steps: compiled layers in CUDA graphs, CUDA graphs, or kernel by kernel; auto "
        "and compiled take the next where one is not possible",
    )
    prefetch: Annotated[int, Field(ge=0, le=64)] = Field(
        default=4, description="proposals of one chain at once where slots would stand idle (0: one); changes no answer"
    )
    prefill_tokens: Annotated[int, Field(ge=16)] = Field(default=4096, description="prompt tokens per prefill pass")
    target_utilisation: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.8,
        description="share of a GPU's memory that may be in use, what others hold included; bounds the slots",
    )

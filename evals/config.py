"""Settings of samplers, tasks and the engine: frozen pydantic models that refuse unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from evals.grading.grade import FORMATS
from evals.samplers.registry import SAMPLERS
from evals.tasks.presets import PRESETS


class Settings(BaseModel):
    """Base of every nested group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


if TYPE_CHECKING:
    SamplerKind = PresetName = FormatName = str
else:  # the names in the tables are the values that can be set
    SamplerKind, PresetName, FormatName = Literal[*SAMPLERS], Literal[*PRESETS], Literal[*FORMATS]

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]

AUTO_SLOTS = {"cuda": 256, "cpu": 10}
"""Slots where no number is set: on a GPU as many as its memory holds, up to this number, beyond which little is gained
(512 slots were estimated 6 % faster than 256); on a CPU this number."""

READS = {name: kind.reads for name, kind in SAMPLERS.items()}
"""The settings that each kind of sampler reads; setting another one is a mistake."""


def conflict(reason: str, *settings: str) -> PydanticCustomError:
    """The error that these settings contradict each other; its context names them, to look up where they were set."""
    return PydanticCustomError("conflict", "{reason}", {"reason": reason, "settings": settings})


def listed(words: Mapping[str, str]) -> str:
    """Names as a list for the help, each with its meaning in brackets."""
    return ", ".join(f"{name} ({meaning})" if meaning else name for name, meaning in words.items())


class SamplerConfig(Settings):
    """How one answer is sampled."""

    kind: SamplerKind = Field(
        default="power", description=listed({name: kind.words for name, kind in SAMPLERS.items()})
    )
    alpha: Annotated[float, Field(ge=1, le=1000)] = Field(default=4.0, description="exponent of the target p^alpha")
    num_moves: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=10, description="Metropolis-Hastings moves per answer (power) or per block (paper)"
    )
    num_effective_moves: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
        default=None, description="instead of num_moves: moves of the kernel that never proposes the state itself"
    )
    blocks: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="stages of growing length that lead up to the last one, num_moves moves each"
    )
    cuts: Literal["uniform", "entropy"] = Field(
        default="uniform", description="where a move cuts: uniform, or entropy (more often where the model is unsure)"
    )
    entropy_power: Annotated[float, Field(ge=0, le=10)] = Field(
        default=1.0, description="exponent of the entropy in the weight of a cut (cuts = entropy)"
    )
    replay: bool = Field(
        default=True, description="keep the shared beginning of a proposal by coin flips, without the model"
    )
    early_rejection: bool = Field(default=True, description="give a proposal up once it can no longer be accepted")
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="temperature of the draws (temperature, majority)"
    )
    top_k: Count | None = Field(
        default=None, description="draw among the k most probable tokens only; 0: all (default: 50 for paper, else 0)"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="draw among the most probable tokens that together have this probability; 1: all"
    )
    num_candidates: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=16, description="answers drawn per sample (best_of, majority, snis), or particles (smc)"
    )
    smc_ramp: Positive = Field(
        default=32, description="tokens over which the exponent rises from 1 to alpha (1: constant)"
    )
    smc_interval: Positive = Field(default=16, description="tokens between two looks at the weights")
    smc_threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="resample below this effective share of the particles"
    )
    texts: Text | None = Field(
        default=None,
        description='what replay grades: a JSONL file of rows {"id": row of the data from 0, "text": answer}, one for '
        "each sample (without id: in the order of the data), or gold (the data's own answers)",
    )

    @model_validator(mode="after")
    def _refuse_what_is_not_read(self) -> Self:
        usual = {name: field.default for name, field in SamplerConfig.model_fields.items()}
        for name in sorted(self.model_fields_set - READS[self.kind] - {"kind"}):
            readers = ", ".join(kind for kind, fields in READS.items() if name in fields)
            reason = f"kind {self.kind} does not read {name}, which belongs to {readers}"
            raise conflict(f"{reason}; leave {name} out or choose such a kind", name, "kind")
        if self.kind == "replay" and self.texts is None:
            raise conflict("name by sampler.texts what is replayed, a JSONL file or gold", "kind")
        if self.num_effective_moves is not None:
            if self.num_moves != usual["num_moves"]:
                raise conflict("they exclude each other; set one", "num_moves", "num_effective_moves")
            if not self.replay:
                reason = "whether a move is null is known by the coins of replay; leave one out"
                raise conflict(reason, "num_effective_moves", "replay")
            if self.cuts != "uniform":
                raise conflict("num_effective_moves needs cuts = uniform", "num_effective_moves", "cuts")
        if self.entropy_power != usual["entropy_power"] and self.cuts != "entropy":
            raise conflict("entropy_power needs cuts = entropy", "entropy_power", "cuts")
        return self

    def read(self) -> dict[str, Any]:
        """The kind and the settings that it reads, which tell one sampler from another.

        `top_p` is left out where it does nothing, so that fingerprints from before it was a setting stay valid.
        """
        return self.model_dump(include={"kind"} | READS[self.kind], exclude={"top_p"} if self.top_p == 1 else None)


if unknown := frozenset().union(*READS.values()) - SamplerConfig.model_fields.keys():
    raise TypeError(
        f"a kind of sampler (evals/samplers/registry.py) reads {sorted(unknown)}: add them to SamplerConfig"
    )


class TaskConfig(Settings):
    """Which problems, how they are put to the model, and how long an answer may be."""

    preset: PresetName = Field(
        default="gsm8k",
        description="how a published evaluation asks: its prompts, examples, stops and token limit, for all that is "
        "not set beside it; jsonl: any file of questions and answers, by task.template; generate: questions alone",
    )
    name: FormatName = Field(
        default="gsm8k",
        description="format of the data: "
        + listed({name: form.words for name, form in FORMATS.items()})
        + " (default: the preset's)",
    )
    num_shots: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="solved examples in front of each question (default: the preset's, 0 for gsm8k)"
    )
    train_data: str | None = Field(default=None, description="where the solved examples come from: JSONL or hub name")
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=512,
        description="longest answer in tokens, the horizon of the target law (default: the preset's, 512 for gsm8k)",
    )
    max_prompt_tokens: Positive | None = Field(
        default=None,
        description="the end of a question is cut off so that its prompt has at most so many tokens (default: the "
        "preset's, 2048 for generate; else a prompt that does not fit the model is refused)",
    )
    stop: tuple[Text, ...] = Field(
        default=("Question:", "</s>", "<|im_end|>"),
        description="strings that end an answer; what is shown here is for the preset gsm8k",
    )
    chat: bool = Field(default=False, description="ask through the model's chat template (default: as the preset does)")
    template: Text | None = Field(default=None, description="prompt with {question} in it, in place of the preset's")
    question_key: Text = Field(
        default="question", description="name of the question in the rows of the data (default: the preset's)"
    )
    answer_key: Text = Field(default="answer", description="name of the answer in the rows of the data")

    @model_validator(mode="before")
    @classmethod
    def _take_from_preset(cls, given: Any) -> Any:
        """What is not set comes from the preset; the fields' defaults are those of `gsm8k`."""
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


class EngineConfig(Settings):
    """How the model runs on one device."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    float32_logits: bool = Field(
        default=False,
        description="logits of a 16-bit model in float32, where its head allows: exact to the law of its hidden states",
    )
    gpus_per_model: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="GPUs that share one model which does not fit one of them, each holding some of its layers; slower",
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    allow_pickle: bool = Field(default=False, description="accept weights that are not safetensors")
    execution: Literal["auto", "compiled", "graphs", "eager"] = Field(
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

"""Settings of samplers, tasks and the engine: frozen, unknown keys refused. Imports neither torch nor Ray."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of every nested group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SamplerConfig(Settings):
    """How one answer is sampled."""

    kind: Literal["power", "temperature", "greedy"] = Field(default="power", description="power, temperature or greedy")
    alpha: Annotated[float, Field(ge=1, le=1000)] = Field(
        default=4.0, description="exponent of the target p^alpha (power)"
    )
    num_moves: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=10, description="Metropolis-Hastings moves per answer (power)"
    )
    replay: bool = Field(
        default=True, description="keep the shared beginning of a proposal by coin flips, without the model"
    )
    early_rejection: bool = Field(default=True, description="give a proposal up once it can no longer be accepted")
    temperature: Annotated[float, Field(gt=0, le=100)] = Field(default=1.0, description="temperature (temperature)")


class TaskConfig(Settings):
    """Which problems, how they are put to the model, and how long an answer may be."""

    name: Literal["gsm8k"] = Field(
        default="gsm8k", description="format of the data: question, worked answer, #### gold"
    )
    num_shots: Annotated[int, Field(ge=0, le=64)] = Field(
        default=0, description="solved examples in front of each question"
    )
    train_data: str | None = Field(default=None, description="where the solved examples come from: JSONL or hub name")
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=512, description="longest answer in tokens (the horizon of the target law)"
    )
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("Question:", "</s>", "<|im_end|>"), description="strings that end an answer"
    )


class EngineConfig(Settings):
    """How the model runs on one device."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 on a GPU, float32 on a CPU"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    allow_pickle: bool = Field(default=False, description="accept weights that are not safetensors")
    prefill_tokens: Annotated[int, Field(ge=16)] = Field(default=4096, description="prompt tokens per prefill pass")

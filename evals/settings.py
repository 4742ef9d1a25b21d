"""What groups of settings share: they are frozen, refuse unknown keys, and name settings that contradict each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of dataclasses of settings, which are frozen besides."""

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of every nested group of settings."""

    model_config = CONFIG | ConfigDict(frozen=True)


def conflict(reason: str, *settings: str) -> PydanticCustomError:
    """The error that these settings contradict each other; its context names them, to look up where they were set."""
    return PydanticCustomError("conflict", "{reason}", {"reason": reason, "settings": settings})

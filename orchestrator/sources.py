"""What a name of a model or of a data set can be: `demo`, something on this machine, or something on the hub.

`models.py` and `problems.py` turn names into things, each with the digest that identifies it. Neither knows a device.
"""

from __future__ import annotations

from pathlib import Path

DEMO_FOLDER = Path(__file__).parents[1] / "evals" / "demo"
HUB_SECONDS = 10.0


def is_local(name: str) -> bool:
    """A hub name is `owner/name` or a bare word; anything else, and whatever exists here, is a path."""
    return Path(name).expanduser().exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1


def unavailable(error: BaseException) -> str:
    """Why a thing on the hub cannot be had, as the end of a clause."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "not in the hub's cache, and the hub is not asked because HF_HUB_OFFLINE is set"
    return f"cannot be had from the Hugging Face hub ({reason(error)})"


def other_way() -> str:
    """What else to set where a thing on the hub cannot be had."""
    from huggingface_hub import constants

    return "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "set HF_HUB_OFFLINE=1 if it is in the hub's cache"


def reason(error: BaseException) -> str:
    """An exception in a few words, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."

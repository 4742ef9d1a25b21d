"""Exact power sampling of language models: what programs import is here, and nothing else.

Importing it loads no library: a name is fetched from where it lives when it is first asked for. Then an `evals` that is
another distribution's package raises ImportError.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from orchestrator.installation import foreign_evals, version

if TYPE_CHECKING:
    from evals.types import UserError as UserError
    from evals.types import WorkersLost as WorkersLost
    from powersample.llm import LLM as LLM
    from powersample.outputs import CompletionOutput as CompletionOutput
    from powersample.outputs import RequestOutput as RequestOutput
    from powersample.sampling import Sampling as Sampling

    __version__: str

PLACES = {
    "LLM": "powersample.llm",
    "Sampling": "powersample.sampling",
    "RequestOutput": "powersample.outputs",
    "CompletionOutput": "powersample.outputs",
    "UserError": "evals.types",
    "WorkersLost": "evals.types",
}
"""The names of this module, and where each lives."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version()
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if sentence := foreign_evals():
        raise ImportError(sentence)
    globals()[name] = value = getattr(import_module(PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES, "__version__"})

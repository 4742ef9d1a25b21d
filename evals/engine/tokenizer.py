"""The tokenizer of a model folder: text and chats into ids, ids into text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerFast

from evals.engine import chat_template
from evals.engine.model_support import first_line, read_config
from evals.engine.tokenizer_file import read_tokenizer
from evals.types import Chat, UserError

TOKENIZER_FILES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")
"""Files that hold a vocabulary."""


class Tokenizer:
    """Turns text into ids and back: adds nothing but what the model's tokenizer adds, and cleans nothing up."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = eos_ids
        """Every id that ends an answer: the tokenizer's, the generation configuration's and the model's."""
        self._fast: Any = None
        if getattr(type(tokenizer), "_decode", None) is PreTrainedTokenizerFast._decode:
            self._fast = tokenizer.backend_tokenizer
        self._front = front(tokenizer)

    @cached_property
    def eos_texts(self) -> tuple[str, ...]:
        """How a text spells the tokens that end an answer, where it can."""
        texts = {token: self.decode([token]) for token in sorted(self.eos_ids)}
        return tuple(text for token, text in texts.items() if self.encode(text, whole=False) == [token])

    def encode(self, prompt: str | Chat, whole: bool = True) -> list[int]:
        """Ids of a raw prompt, with what the tokenizer adds by default if `whole` (BOS for Llama), however long.

        A chat goes through the model's chat template, see `chat_template.render`. Raises UserError where it cannot.
        However many BOS tokens a prompt begins with, written or added, it begins with one.
        """
        piece = isinstance(prompt, str) and not whole
        if not isinstance(prompt, str):
            prompt, whole = chat_template.render(self._tokenizer, prompt), False
        encoded = self._tokenizer(prompt, add_special_tokens=whole, verbose=False)  # preflight reports what is too long
        return encoded["input_ids"] if piece else once(self._front, encoded["input_ids"])

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def check_chat(self, chat: Chat) -> None:
        """Check the model's chat template with one chat of a run. Raises UserError as `chat_template.check_chat`."""
        chat_template.check_chat(self._tokenizer, chat)

    @property
    def added(self) -> dict[str, int]:
        """The tokens beside the vocabulary, special ones among them, with their ids."""
        return self._tokenizer.get_added_vocab()

    @property
    def chat_template(self) -> str:
        """The model's chat template; empty where it has none."""
        return str(self._tokenizer.chat_template or "")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of these ids, special tokens included."""
        if self._fast is not None:  # what the library calls as well, after a look at the type of every single id
            return self._fast.decode(list(ids), skip_special_tokens=False)
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def load_tokenizer(folder: str, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a local model folder. Raises UserError if there is none that can be used."""
    config = read_config(folder, trust_remote_code)
    try:
        if not any(file for pattern in TOKENIZER_FILES for file in Path(folder).glob(pattern)):
            raise OSError("no file of it is there")  # some versions of the library would make up an empty one
        tokenizer = read_tokenizer(folder, trust_remote_code)
        ids = as_ids(tokenizer.eos_token_id) | as_ids(getattr(config, "eos_token_id", None))
    except UserError:
        raise
    except Exception as error:  # the libraries raise anything over damaged files, even Exception itself
        raise UserError(
            f"The model folder {folder} has no usable tokenizer ({first_line(error)}); use one written by the "
            "`save_pretrained` of both model and tokenizer."
        ) from error
    return Tokenizer(tokenizer, ids | generation_ids(folder))


def generation_ids(folder: str) -> frozenset[int]:
    """The EOS ids of a model's generation configuration, if it has one. Raises UserError if it is damaged."""
    if not (path := Path(folder) / "generation_config.json").is_file():
        return frozenset()
    try:
        return as_ids(GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id)
    except Exception as error:  # the library raises anything over damaged files
        raise UserError(
            f"{path} cannot be used: {first_line(error)}; download it again, or delete it if the model needs none."
        ) from error


def front(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of a text, else the BOS token that a text or a template may put there itself."""
    bare, whole = (tokenizer("0", add_special_tokens=added, verbose=False)["input_ids"] for added in (False, True))
    start = next((start for start in range(len(whole)) if whole[start : start + len(bare)] == bare), 0)
    return whole[:start] or sorted(as_ids(tokenizer.bos_token_id))


def once(front: list[int], ids: list[int]) -> list[int]:
    """`ids` without the repetitions of `front` at its beginning."""
    n = len(front)
    while n and ids[: 2 * n] == 2 * front:
        ids = ids[n:]
    return ids


def as_ids(value: Any) -> frozenset[int]:
    """An id, a list of ids or nothing, as a set. Raises ValueError for anything else."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(one, int) for one in ids):
        raise ValueError(f"{value!r} is no id of a token")
    return frozenset(ids)

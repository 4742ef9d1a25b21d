"""Text to token ids and back. Knows no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from evals.engine.gate import first_line, read_config
from evals.types import Message, UserError

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


class Tokenizer:
    """Text to ids and back, exactly: nothing is added but what the tokenizer itself adds, nothing is cleaned up."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = eos_ids
        """Every id that ends an answer: the tokenizer's, the generation configuration's and the model's."""
        self.vocab_size: int = len(tokenizer)
        """Ids that the tokenizer knows; a model may have more."""
        self._fast: Any = None
        if getattr(type(tokenizer), "_decode", None) is PreTrainedTokenizerFast._decode:
            self._fast = tokenizer.backend_tokenizer

    def encode(self, prompt: str | Sequence[Message], whole: bool = True) -> list[int]:
        """Ids of a raw prompt, with what the tokenizer adds by default if `whole` (BOS for Llama), however long.

        The turns of a chat go through the model's chat template, up to where the assistant begins. Raises UserError if
        the model has none.
        """
        if isinstance(prompt, str):
            made = self._tokenizer(
                prompt, add_special_tokens=whole, verbose=False
            )  # the preflight says what is too long
            return made["input_ids"]
        if self._tokenizer.chat_template is None:
            raise UserError(
                "The prompts are chats (task.preset, task.chat) but the model's tokenizer has no chat template; choose "
                "a chat model, or set task.chat to false."
            )
        text = self._tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of these ids."""
        if self._fast is not None:  # what the library calls as well, after a look at the type of every single id
            return self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )


def load_tokenizer(folder: str, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a local model folder. Raises UserError if there is none that can be used."""
    config = read_config(folder, trust_remote_code)
    try:
        if not any(file for pattern in TOKENIZER_FILES for file in Path(folder).glob(pattern)):
            raise OSError("no file of it is there")  # some versions of the library would make up an empty one
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"The model folder {folder} has no usable tokenizer ({first_line(error)}); use one written by the "
            "`save_pretrained` of both model and tokenizer."
        ) from error
    ids = as_ids(tokenizer.eos_token_id) | as_ids(getattr(config, "eos_token_id", None))
    if (Path(folder) / "generation_config.json").is_file():
        ids |= as_ids(GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id)
    return Tokenizer(tokenizer, ids)


def as_ids(value: Any) -> frozenset[int]:
    """An id, a list of ids or nothing, as a set."""
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)

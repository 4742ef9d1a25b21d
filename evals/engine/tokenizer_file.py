"""Loads the tokenizer that tokenizer.json describes, whatever class the library takes for the architecture.

Most of the library's classes take vocabulary and merges from the file and put a normalizer, a pre-tokenizer and a
decoder of their own around them, which is another tokenizer where a model was trained with one of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FileTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from evals.types import UserError

FILE = "tokenizer.json"
TEXTS = (
    "She has 12 eggs, sells 3,450.75 and keeps 1234567890; it's 25% off (I'LL pay $6)!\nWhat's left?",
    "  two spaces   three\n\n\nempty lines \n \ttab\t\ttabs\r\nend ",
    " \n",
    "\n a",
    "café cafe\u0301 naïve \u212b \u2126 \ufb01ne ½ x² \uff11\uff12 straße \u0130I \u00a0nbsp\u3000wide\u200bzero",
    "所以答案是18个。 こんにちは、世界 안녕 Привет مرحبا हिन्दी ไทยกิน",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 → ≤ € ‘a’ “b” \u2581c \u0120d \u0000\u0007",
    "def f(x_1, camelCase, HTTPServer):\n\tif x!=2: return x**3 // 4  # a/b\n    }]);\n\\frac{1}{2} <<3*4=12>> #### 7",
)
"""Words, numbers, runs of spaces and lines, accents composed and not, scripts, emoji, code."""
WALK = 64
"""Tokens in a text made of the vocabulary, and how many such texts there are at most."""


def read_tokenizer(folder: str, trust_remote_code: bool) -> Any:
    """The library's tokenizer of a local folder, by the folder's tokenizer.json where that is another one.

    Raises UserError if Python code in the folder contradicts the file, and whatever the library raises.
    """
    tokenizer = choose(folder, trust_remote_code)
    model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        model.dropout = None  # it is for training: a text would have other ids each time
    return tokenizer


def choose(folder: str, trust_remote_code: bool) -> Any:
    """What the library loads, where it agrees with the file, else the file."""
    path = Path(folder) / FILE
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception:  # of the class, which may not be able to take the file's vocabulary
        if not path.is_file() or "auto_map" in configuration(folder):
            raise
        return of_file(folder)
    if type(loaded) is PreTrainedTokenizerFast or not path.is_file():  # this class alone takes the file as it is
        return loaded
    file = FileTokenizer.from_file(str(path))
    file.no_truncation()
    file.no_padding()
    text = first_difference(loaded, file)
    if text is None:
        return loaded
    if not type(loaded).__module__.startswith("transformers."):
        raise UserError(
            f"The Python code of the tokenizer in {folder} reads {text[:30]!r} otherwise than its {FILE}; remove the "
            "file to use the code, or `auto_map` from tokenizer_config.json to use the file."
        )
    tokenizer = of_file(folder)
    take_over(tokenizer, loaded, configuration(folder))
    return tokenizer


def first_difference(loaded: Any, file: FileTokenizer) -> str | None:
    """The first text that the two encode or decode differently; None where there is none."""
    for text, ids in samples(file):
        try:
            encoded = loaded(text, add_special_tokens=False, verbose=False)["input_ids"]
            decoded = loaded.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        except Exception:  # noqa: BLE001 - of a class that counts on tokens which the vocabulary does not have
            return text
        if encoded != file.encode(text, add_special_tokens=False).ids or decoded != decode(file, ids):
            return text
    return None if loaded("0", verbose=False)["input_ids"] == file.encode("0").ids else "0"  # what is put around a text


def samples(file: FileTokenizer) -> Iterator[tuple[str, list[int]]]:
    """Texts and ids to compare tokenizers by: the fixed texts, the added tokens, and a walk through the vocabulary.

    The walk shows, by the file's own tokens, which of them another normalizer or pre-tokenizer does not reach.
    """
    added = [token.content for token in file.get_added_tokens_decoder().values()]
    for text in ("0", *TEXTS, " ".join(added), "a".join(["", *added, ""])):
        yield text, file.encode(text, add_special_tokens=False).ids
    size = file.get_vocab_size()
    ids = range(0, size, 1 + size // WALK**2)
    for start in range(0, len(ids), WALK):
        row = list(ids[start : start + WALK])
        yield decode(file, row), row


def decode(file: FileTokenizer, ids: list[int]) -> str:
    return file.decode(ids, skip_special_tokens=False)


def of_file(folder: str) -> Any:
    """The tokenizer that tokenizer.json and tokenizer_config.json of a folder describe."""
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def take_over(tokenizer: Any, loaded: Any, config: dict[str, Any]) -> None:
    """Give the file's tokenizer what `loaded` alone knows of the folder.

    Special tokens that only its class names, where the vocabulary has them. And what is put around a text, where it is
    as `config`, the content of tokenizer_config.json, asks and the file's is not.
    """
    vocabulary, named = tokenizer.get_vocab(), tokenizer.special_tokens_map
    added = {
        token.content: token for token in tokenizer.added_tokens_decoder.values()
    }  # with what else is said of them
    of_class = {name: token for name, token in loaded.special_tokens_map.items() if name not in named}
    known = {name: added.get(token, token) for name, token in of_class.items() if token in vocabulary}
    tokenizer.add_special_tokens(known)
    asked = {name: config[name] for name in ("add_bos_token", "add_eos_token") if isinstance(config.get(name), bool)}
    if not asked.items() <= puts_around(tokenizer).items() and asked.items() <= puts_around(loaded).items():
        tokenizer.backend_tokenizer.post_processor = loaded.backend_tokenizer.post_processor


def configuration(folder: str) -> dict[str, Any]:
    """The content of tokenizer_config.json; empty where there is none."""
    path = Path(folder) / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def puts_around(tokenizer: Any) -> dict[str, bool]:
    """Whether BOS is put in front of a text and EOS behind it, by the names that tokenizer_config.json has for that."""
    ids = tokenizer("0", verbose=False)["input_ids"] or [None]
    return {
        "add_bos_token": ids[0] == tokenizer.bos_token_id,
        "add_eos_token": ids[-1] == tokenizer.eos_token_id,
    }

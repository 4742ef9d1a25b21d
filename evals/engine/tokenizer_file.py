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
    loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    path = Path(folder) / FILE
    if type(loaded) is PreTrainedTokenizerFast or not path.is_file():  # this class alone takes the file as it is
        return loaded
    file = FileTokenizer.from_file(str(path))
    file.no_truncation()
    file.no_padding()
    text = next(differences(loaded, file), None)
    if text is None:
        return loaded
    if not type(loaded).__module__.startswith("transformers."):
        raise UserError(
            f"The Python code of the tokenizer in {folder} reads {text[:30]!r} otherwise than its {FILE}; remove the "
            "file to use the code, or `auto_map` from tokenizer_config.json to use the file."
        )
    return of_file(folder, loaded)


def differences(loaded: Any, file: FileTokenizer) -> Iterator[str]:
    """The texts that the two encode or decode differently: fixed ones, added tokens, and a walk through the vocabulary.

    The walk shows by the file's own tokens which of them are never reached.
    """
    added = [token.content for token in file.get_added_tokens_decoder().values()]
    size = file.get_vocab_size()
    ids = range(0, size, 1 + size // WALK**2)
    walk = [list(ids[start : start + WALK]) for start in range(0, len(ids), WALK)]
    for given in ["0", *TEXTS, " ".join(added), "a".join(["", *added, ""]), *walk]:
        text = given if isinstance(given, str) else file.decode(given, skip_special_tokens=False)
        encoded = file.encode(text, add_special_tokens=False).ids
        rows = [encoded] if isinstance(given, str) else [encoded, given]
        if loaded(text, add_special_tokens=False, verbose=False)["input_ids"] != encoded or any(
            loaded.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            != file.decode(row, skip_special_tokens=False)
            for row in rows
        ):
            yield text
    if loaded("0", verbose=False)["input_ids"] != file.encode("0").ids:  # what is put around a text
        yield "0"


def of_file(folder: str, loaded: Any) -> Any:
    """The tokenizer that tokenizer.json and tokenizer_config.json describe, and `loaded` says less of.

    Special tokens that only the class of `loaded` knows are kept where the vocabulary has them. What is put around a
    text is the file's, unless tokenizer_config.json asks for what `loaded` does instead.
    """
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    vocabulary, named = tokenizer.get_vocab(), tokenizer.special_tokens_map
    of_class = {name: token for name, token in loaded.special_tokens_map.items() if name not in named}
    tokenizer.add_special_tokens({name: t for name, t in of_class.items() if isinstance(t, str) and t in vocabulary})
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    asked = {name: config[name] for name in ("add_bos_token", "add_eos_token") if isinstance(config.get(name), bool)}
    if asked.items() <= puts_around(loaded).items() and not asked.items() <= puts_around(tokenizer).items():
        tokenizer.backend_tokenizer.post_processor = loaded.backend_tokenizer.post_processor
    return tokenizer


def puts_around(tokenizer: Any) -> dict[str, bool]:
    """Whether BOS is put in front of a text and EOS behind it, by the names that tokenizer_config.json has for that."""
    ids = tokenizer("0", verbose=False)["input_ids"] or [None]
    return {
        "add_bos_token": ids[0] == tokenizer.bos_token_id,
        "add_eos_token": ids[-1] == tokenizer.eos_token_id,
    }

"""Model folders whose tokenizer.json is not what the library's classes would make of its vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from support.places import ROOT

DEMO = ROOT / "evals/demo/model"
Json = dict[str, Any]
SPACE = "\u2581"
PATTERN = (
    f"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|\\p{{N}}|{SPACE}?[^\\s{SPACE}\\p{{L}}\\p{{N}}]+[\\r\\n]*"
    f"|{SPACE}*[\\r\\n]+|{SPACE}+(?!\\S)|{SPACE}+"
)


def edit(path: Path, **change: Any) -> Json:
    """Change a JSON file, None removing a key; returns its content."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content = {key: value for key, value in (content | change).items() if value is not None}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return content


def copy(folder: Path, **tokenizer: Any) -> Path:
    """The embedded model in `folder`, with sections of its tokenizer.json replaced."""
    shutil.copytree(DEMO, folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")) | tokenizer
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def around(front: tuple[str, int] | None = None, back: tuple[str, int] | None = None) -> Json:
    """A post-processor that puts tokens, given by text and id, around a text."""
    special = [{"SpecialToken": {"id": token[0], "type_id": 0}} if token else None for token in (front, back)]
    single = [piece for piece in (special[0], {"Sequence": {"id": "A", "type_id": 0}}, special[1]) if piece]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in filter(None, (front, back))},
    }


def spelt_otherwise() -> Json:
    """Sections of a tokenizer.json that gives a text of ASCII the ids of the embedded one, but writes spaces as U+2581
    and bytes as they are."""
    model = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    printable = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    letters |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in printable)}

    def plain(token: str) -> str:
        return bytes(letters[letter] for letter in token).decode("ascii").replace(" ", SPACE)

    vocab: dict[str, int] = {}
    for token, i in model["vocab"].items():
        special, ascii_only = token in ("<|endoftext|>", "<|pad|>"), all(letters.get(one, 128) < 128 for one in token)
        vocab[token if special else plain(token) if ascii_only else f"<byte{i}>"] = i
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    pairs = [[*map(plain, pair)] for pair in pairs if all(letters[one] < 128 for one in "".join(pair))]
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "Fuse"}]
    return {
        "model": model | {"vocab": vocab, "merges": [pair for pair in pairs if {*pair, "".join(pair)} <= vocab.keys()]},
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "post_processor": None,
    }

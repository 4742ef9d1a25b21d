"""The stop rule against its naive definition, token by token, on a byte-level vocabulary and on toy decoders."""

import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer

from evals.stopping import StopStrings, cut
from evals.types import UserError
from support.places import ROOT
from support.shared_data import GSM8K_MODEL, SHARED, needs_shared

Decode = Callable[[Sequence[int]], str]


VOCABULARY = "Stop strings end answers where they should, with the vocabulary of a model trained on GSM8K"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(ROOT / "evals/demo/model", id="embedded"),
        pytest.param(SHARED / GSM8K_MODEL, marks=needs_shared(GSM8K_MODEL, claim=VOCABULARY), id="gsm8k-25m"),
    ],
)
def tok(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_file(str(request.param / "tokenizer.json"))


def first_stop(rule: Callable[[list[int]], bool], tokens: list[int]) -> int | None:
    """How many tokens a generation is long that asks after every token."""
    return next((n for n in range(1, len(tokens) + 1) if rule(tokens[:n])), None)


def naive(stops: Sequence[str], decode: Decode) -> Callable[[list[int]], bool]:
    return lambda tokens: any(stop in decode(tokens) for stop in stops)


def agree(stops: Sequence[str], decode: Decode, rows: list[list[int]]) -> int:
    """Compare on all rows; returns how many of them stopped."""
    rule, reference = StopStrings(stops, decode), naive(stops, decode)
    ends = [first_stop(reference, row) for row in rows]
    assert [first_stop(rule, row) for row in rows] == ends
    return sum(end is not None for end in ends)


def test_cut_is_at_the_earliest_stop() -> None:
    assert cut("18 </s> Question: 3", ("Question:", "</s>")) == "18 "
    assert cut("18", ("Question:",)) == "18"
    assert cut("18", ()) == "18"
    assert cut("Question:", ("Question:",)) == ""


BYTES = ["ab", "b", "a", "c", "\xe2", "\x80", "\x99", "\xe2\x80", "\x99a", "’", "b\xe2", "é", "\xc3", "\xa9b", "", " "]
TOY = [piece.encode("utf-8" if "’" in piece or piece == "é" else "latin-1") for piece in BYTES]


def toy_decode(tokens: Sequence[int]) -> str:
    """Byte-level: tokens are bytes, some of them parts of a character, one of them (like a special token) empty."""
    return b"".join(TOY[token] for token in tokens).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    "stops", [["ab"], ["’"], ["b’a"], ["é"], ["aab", "c’"], ["’’"], ["a b", "bébé"], ["abcabcabcab"]]
)
def test_equals_the_definition_on_a_toy_vocabulary(stops: list[str]) -> None:
    rng = random.Random(len(stops[0]))
    rows = [rng.choices(range(len(TOY)), k=rng.randint(1, 60)) for _ in range(400)]
    if len(stops[0]) > 8:  # too long to come up by chance
        rows = [[*row, 2, 1, 3, 0, 3, 0, 14, 3, 0, 2, 3] for row in rows]
    stopped = agree(stops, toy_decode, rows)
    assert stopped > 0


def metaspace_decode(tokens: Sequence[int]) -> str:
    """A decoder that drops the leading space of a text, as SentencePiece vocabularies do."""
    return "".join([" a", "b", " b", "a", " ", "c"][token] for token in tokens).removeprefix(" ")


def test_equals_the_definition_where_leading_spaces_are_dropped() -> None:
    rng = random.Random(2)
    rows = [rng.choices(range(6), k=40) for _ in range(300)]
    for stops in (["a b"], ["b a"], ["c a", "bb b"], ["  "], [" "]):
        assert agree(stops, metaspace_decode, rows) > 0


STOPS = ("Question:", "</s>", "<|im_end|>")


def test_equals_the_definition_on_a_real_vocabulary(tok: Tokenizer) -> None:
    rng = random.Random(0)
    texts = [
        "She has 3*4=<<3*4=12>>12 eggs.\n#### 12\n\nQuestion: Tom",
        "It’s 5 € each. </s>more",
        "Nothing stops this. Quest ion: Question :",
        "<|im_end|> at once",
        "a\U0001f600b and Ques" + "tion:s",
    ]
    rows = [tok.encode(text).ids for text in texts]
    for _ in range(60):  # stop strings split in other ways than the tokenizer would
        text = rng.choice(texts)
        places = sorted(rng.sample(range(1, len(text)), 6))
        parts = [text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)]
        rows.append([token for part in parts for token in tok.encode(part).ids])
    rows += [rng.choices(range(tok.get_vocab_size()), k=60) for _ in range(60)]
    assert agree(STOPS, tok.decode, rows) > 30


def test_stops_that_are_common_or_not_ascii_on_a_real_vocabulary(tok: Tokenizer) -> None:
    rng = random.Random(1)
    size = tok.get_vocab_size()
    byte_tokens = [token for token in range(size) if "\ufffd" in tok.decode([token])]
    rows = [rng.choices(range(size), k=50) for _ in range(40)]
    rows += [rng.choices(byte_tokens, k=50) for _ in range(20)]
    rows += [tok.encode(text).ids for text in ("It costs 5 € or 6 €.", "don’t 😀😀", "“a” – ¾", "a\nb")]
    for stops in (["e"], ["€"], ["’t"], ["😀😀"], [" 6 €"], ["– ¾"], ["\n"], [" t", "th"]):
        assert agree(stops, tok.decode, rows) > 0


def test_most_tokens_decode_nothing(tok: Tokenizer) -> None:
    decoded = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(tokens)
        return tok.decode(tokens)

    rule = StopStrings(STOPS, decode)
    tokens = tok.encode("She has 3*4=<<3*4=12>>12 eggs and sells them.\n" * 30).ids
    for token in set(tokens):
        rule([token])
    decoded = 0
    assert first_stop(rule, tokens) is None
    assert decoded < 5 * len(tokens)  # all texts from the start would be len(tokens)^2 / 2


def test_no_stop_strings_never_stop() -> None:
    assert not StopStrings((), toy_decode)([0, 1])
    assert not StopStrings(("ab",), toy_decode)([])


@pytest.mark.parametrize("stop", ["", "a\ufffd"])
def test_impossible_stop_strings_are_refused(stop: str) -> None:
    with pytest.raises(UserError, match=r"task\.stop"):
        StopStrings([stop], toy_decode)

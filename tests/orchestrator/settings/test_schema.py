"""The help of `powersample run`: every setting once, with what it means, its default and the kinds that have it."""

from __future__ import annotations

import json
import re

import pytest

from evals.samplers.registry import SAMPLERS
from orchestrator.commands.table import make_parser
from orchestrator.settings.parser import flag_name
from orchestrator.settings.schema import allowed, known_settings, settings_read
from support.configs import configured


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def run_help() -> str:
    return make_parser("run").format_help().rstrip()


def line_of(flag: str) -> str:
    """Flag and explanation, which stands on a line of its own where the flag is long."""
    text = re.sub(r"\n {24}", "  ", run_help())
    (line,) = [line for line in text.splitlines() if re.match(rf"  {re.escape(flag)}[ ,]", line)]
    return line


def test_it_opens_with_one_sentence_and_ends_with_examples() -> None:
    usage, empty, sentence, after, *_ = run_help().splitlines()
    assert usage == "usage: powersample run [--config FILE] [options]"
    assert (empty, after) == ("", "")
    assert sentence.startswith("Sample answers to math problems")
    assert sentence.count(".") == 1
    assert run_help().rpartition("\n\n")[2].startswith("examples:\n  powersample run\n")


def test_every_setting_is_there_once_with_at_most_one_default() -> None:
    for name, about in known_settings().items():
        assert allowed(name)
        assert line_of(flag_name(name)).count("(default") <= 1
        assert about["description"] in line_of(flag_name(name))
    for word in ("null", "None", "tuple", "==", "RunConfig"):
        assert word not in run_help()


def test_defaults_and_values_are_shown_as_a_user_writes_them() -> None:
    assert line_of("--sampler.alpha").startswith("  --sampler.alpha X ")
    assert line_of("--sampler.alpha").endswith("(default: 4)")
    assert line_of("--limit").startswith("  --limit N ")
    assert line_of("--limit").endswith("(default: all)")
    assert line_of("--use-batched").endswith("(default: on)")
    assert line_of("--engine.allow-pickle").endswith("(default: off)")
    assert line_of("--sampler.cuts").startswith("  --sampler.cuts {uniform,entropy} ")
    stop = line_of("--task.stop")
    shown = stop[stop.index("(default: ") + 10 : -1]
    assert configured("--task.stop", shown).task.stop == tuple(json.loads(shown))
    for words in ("answers per problem", "pass@k", "maj@k"):
        assert words in line_of("--num-samples")


def test_it_says_which_settings_belong_to_which_kind() -> None:
    for kind in SAMPLERS:
        (line,) = re.findall(rf"^ +{kind}  +(.+)$", run_help(), re.MULTILINE)
        assert line.split(", ") == (settings_read(kind) or ["nothing"])
        assert re.search(rf"\b{kind}\b", line_of("--sampler.kind"))

"""The help of `powersample run`: it opens with what the command is for, and says of every option what a user needs."""

from __future__ import annotations

import json
import re

import pytest

from evals.config import READS, SamplerConfig
from orchestrator.commands import make_parser
from orchestrator.names import flag_name, is_group, known_settings
from orchestrator.settings import read_options


def help_text() -> str:
    return make_parser("run").format_help().rstrip()


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def line_of(flag: str) -> str:
    """Flag and explanation, which stands on a line of its own where the flag is long."""
    text = re.sub(r"\n {24}", "  ", help_text())
    (line,) = [line for line in text.splitlines() if re.match(rf"  {re.escape(flag)}[ ,]", line)]
    return line


def test_it_opens_with_one_sentence_for_users() -> None:
    usage, empty, sentence, after, *_ = help_text().splitlines()
    assert usage == "usage: powersample run [--config FILE] [options]"
    assert (empty, after) == ("", "")
    assert sentence.startswith("Sample answers to math problems")
    assert sentence.count(".") == 1


def test_every_setting_is_there_once_with_at_most_one_default() -> None:
    for name, about in known_settings().items():
        if not is_group(name):
            assert line_of(flag_name(name)).count("(default") <= 1
            assert about["description"] in line_of(flag_name(name))
    for word in ("null", "None", "tuple", "==", "RunConfig"):
        assert word not in help_text()


def test_defaults_and_values_are_shown_as_a_user_writes_them() -> None:
    assert line_of("--sampler.alpha").endswith("(default: 4)")
    assert line_of("--limit").endswith("(default: all)")
    assert line_of("--use-batched").endswith("(default: on)")
    assert line_of("--engine.allow-pickle").endswith("(default: off)")
    stop = line_of("--task.stop")
    shown = stop[stop.index("(default: ") + 10 : -1]
    assert read_options(make_parser("run").read(["--task.stop", shown])).values == {"task": {"stop": json.loads(shown)}}
    for words in ("answers per problem", "pass@k", "maj@k"):
        assert words in line_of("--num-samples")


def test_it_says_which_settings_belong_to_which_kind() -> None:
    for kind, names in READS.items():
        (line,) = re.findall(rf"^ +{kind}  +(.+)$", help_text(), re.MULTILINE)
        assert set(line.split(", ")) == (names or {"nothing"})
        assert kind in (SamplerConfig.model_fields["kind"].description or "")


def test_it_ends_with_examples() -> None:
    assert help_text().rpartition("\n\n")[2].startswith("examples:\n  powersample run\n")


def test_flags_become_nested_texts() -> None:
    flags = ["--config", "a.yaml", "--limit=3", "--sampler.num-moves", "2", "--no-sampler.replay", "--config", "b.yaml"]
    args = make_parser("run").read(flags)
    assert args.config == "b.yaml"
    assert read_options(args).values == {"limit": "3", "sampler": {"num_moves": "2", "replay": False}}
    assert vars(make_parser("run").read([])) == {}

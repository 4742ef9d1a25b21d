"""Chat templates get the time that they are given, whatever the clock; the same chat must be the same text again."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from typing import Any

import pytest

from evals.engine.tokenizer import load_tokenizer
from evals.types import Chat, UserError
from support.places import ROOT

EAST = timezone(timedelta(hours=14))
CHAT = Chat(3, ({"role": "user", "content": "Q?"},), {}, datetime(2024, 2, 29, 7, 5, 9, tzinfo=EAST))


def loaded(template: Any) -> Any:
    tokenizer = load_tokenizer(str(ROOT / "evals/demo/model"))
    tokenizer._tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Pago_Pago", "Asia/Kathmandu"])
def test_a_template_sees_the_time_of_the_chat(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = loaded("{{ strftime_now('%Y-%m-%d %H:%M:%S %d %b %a %s 100%% %%s [%Z]') }} {{ messages[0].content }}")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        text = tokenizer.decode(tokenizer.encode(CHAT))
    finally:
        monkeypatch.undo()
        time.tzset()
    seconds = int(datetime(2024, 2, 28, 17, 5, 9, tzinfo=UTC).timestamp())
    assert text == f"2024-02-29 07:05:09 29 Feb Thu {seconds} 100% %s [] Q?"
    named = loaded("{{ strftime_now(format='%Y') }} {{ messages[0].content }}")
    assert named.decode(named.encode(CHAT)) == "2024 Q?", "the library's name of the parameter"
    later = CHAT._replace(time=CHAT.time + timedelta(days=1))
    assert tokenizer.decode(tokenizer.encode(later)).startswith("2024-03-01 07:05:09"), "not the one before"


def test_a_default_date_comes_from_the_chat_unless_it_is_given() -> None:
    template = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    tokenizer = loaded(template + "{{ date_string }}: {{ messages[0].content }}")
    assert tokenizer.decode(tokenizer.encode(CHAT)) == "29 Feb 2024: Q?"
    given = CHAT._replace(args={"date_string": "26 Jul 2024"})
    tokenizer.check_chat(given)
    assert tokenizer.decode(tokenizer.encode(given)) == "26 Jul 2024: Q?"


@pytest.mark.parametrize("template", [None, "", {}])
def test_an_empty_template_is_none(template: Any) -> None:
    tokenizer = loaded(template)
    assert not tokenizer.has_chat_template
    with pytest.raises(UserError, match="has no chat template"):
        tokenizer.encode(CHAT)


def test_another_text_each_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, numbers = loaded("{{ messages[0].content }}"), count()
    monkeypatch.setattr(tokenizer._tokenizer, "apply_chat_template", lambda *_, **__: f"{next(numbers)}")
    with pytest.raises(UserError, match=r"gives another text each time; .*, or set task\.chat to false\.$"):
        tokenizer.check_chat(CHAT)

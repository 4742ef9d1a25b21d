"""Renders chats by the template that a tokenizer brings: the same text wherever and whenever, or one sentence why not.

The library renders. What its templates could take from the clock, the zone or chance is replaced in the environment
that it keeps for each template: plain variables would not do, since newer versions give templates data alone.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import partial
from inspect import signature
from textwrap import shorten
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.meta import find_undeclared_variables
from transformers.utils.chat_template_utils import _compile_jinja_template

from evals.engine.model_support import first_line
from evals.types import Chat, UserError

RAW = "set task.chat to false"
MOST_WORDS = 200  # characters of what a template says


def render(tokenizer: Any, chat: Chat) -> str:
    """The text of a chat, up to where the assistant begins.

    Raises UserError, with the words of the template or the library, where there is no template or it fails.
    """
    templates = tokenizer.chat_template
    if not templates:
        raise UserError(
            "The prompts are chats (task.preset, task.chat) but the model's tokenizer has no chat template; choose a "
            f"chat model, or {RAW}."
        )
    if isinstance(templates, dict) and "default" not in templates:
        raise UserError(
            f"The model's tokenizer has several chat templates ({', '.join(templates)}) and none is called default; "
            f"give that name to the one that is to be used, or {RAW}."
        )
    try:
        return rendered(tokenizer, chat)
    except Exception as error:  # templates are programs of others, and may raise anything
        reason = shorten(first_line(error), MOST_WORDS, placeholder=" …")
        raise UserError(
            f"The model's chat template does not take the prompt of problem {chat.problem_id} ({reason}); "
            f"{way_out(tokenizer, chat)}, or {RAW}."
        ) from error


def rendered(tokenizer: Any, chat: Chat, **more: Any) -> str:
    """The text of a chat by the library. Raises what the template raises."""
    environment = environment_of(tokenizer)
    environment.globals |= {"strftime_now": partial(strftime, chat), "lipsum": partial(refuse_chance, "lipsum")}
    environment.filters["random"] = partial(refuse_chance, "random")
    turns = [dict(turn) for turn in chat.turns]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **chat.args, **more)


def environment_of(tokenizer: Any) -> Any:
    """The environment in which the library renders the tokenizer's template. Raises what compiling it raises."""
    return _compile_jinja_template(tokenizer.get_chat_template()).environment


def strftime(chat: Chat, format: str) -> str:
    """The library's `strftime_now` at the time of the chat; of the directives only %s would ask for the zone here."""
    seconds = str(int(chat.time.timestamp()))
    return chat.time.replace(tzinfo=None).strftime(re.sub("%[%s]", lambda m: m[0].replace("%s", seconds), format))


def refuse_chance(name: str, *_: Any, **__: Any) -> NoReturn:
    """Raises TemplateError: a prompt that is drawn by chance would be another one after a stop."""
    raise TemplateError(f"it draws by chance, with {name}")


def way_out(tokenizer: Any, chat: Chat) -> str:
    """How a user gets on whose chat the template does not take."""

    def works(without_system: bool = False, **more: Any) -> bool:
        turns = chat.turns[1:] if without_system else chat.turns
        try:
            return bool(rendered(tokenizer, chat._replace(turns=turns), **more))
        except Exception:  # noqa: BLE001 - then this is not what it lacks
            return False

    if chat.turns[0]["role"] == "system" and works(without_system=True):
        return (
            "it takes no system turn, which is where task.preset puts the solved examples: set task.num_shots to 0, "
            "take task.preset lmeval-gsm8k with task.chat, whose examples stand in the user's turn"
        )
    if works(tools=[]):
        return "it wants tools, and there are none: give the model a template that does without"
    return "mend the template in the model's folder"


def check_chat(tokenizer: Any, chat: Chat) -> None:
    """Check the template with one chat of a run. Raises UserError where it fails, for arguments that it does not read,
    for a turn that it leaves out, and where the same chat is not the same text again."""
    library = {*signature(tokenizer.apply_chat_template).parameters, *_compile_jinja_template("").environment.globals}
    if reserved := sorted(chat.args.keys() & {*library, "messages"}):
        raise refused_argument(reserved[0], "this name is the library's own; leave it out")
    text = render(tokenizer, chat)
    read = find_undeclared_variables(environment_of(tokenizer).parse(tokenizer.get_chat_template()))
    free = sorted(read - library - {"messages"})
    for name in sorted(chat.args.keys() - free):
        near = get_close_matches(name, free, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise refused_argument(name, f"it reads {', '.join(free) or 'none'}{meant}")
    for place, turn in enumerate(chat.turns):
        other = (*chat.turns[:place], {**turn, "content": f"{turn['content']}0"}, *chat.turns[place + 1 :])
        if render(tokenizer, chat._replace(turns=other)) == text:
            raise UserError(
                f"The model's chat template leaves out what the {turn['role']} says, so the model would not see it; "
                f"give it a template that takes texts as contents and has {turn['role']} turns, or {RAW}."
            )
    if render(tokenizer, chat) != text:
        raise UserError(
            f"The model's chat template gives another text each time; mend it in the model's folder, or {RAW}."
        )


def refused_argument(name: str, reason: str) -> UserError:
    """The error about an argument of the template."""
    return UserError(f"{name} is no argument for the model's chat template: {reason}.", ("task.chat_template_args",))

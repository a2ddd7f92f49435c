"""Messages of a request → the turns of a conversation, and the sources of its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PromptError
from ..prompt import Turn, messages_to_turns

INSTRUCTING = ("system", "developer")


def read(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Turns and sources.

    No model of the family has a place for what the system says. What it says first stands in front of the first
    question, as `messages_to_turns` puts it; what it says later, in front of the question that follows. Answers in a
    row are one, and one that nobody asked for answers nothing.

    Args:
        messages: role and content each; contents are texts, or parts of type text and image_url.

    Raises:
        PromptError: the roles are out of order, or nobody is to be answered.
    """
    first = next((place for place, one in enumerate(messages) if one["role"] not in INSTRUCTING), len(messages))
    said = [one["content"] for one in messages[:first]]
    plain: list[dict[str, Any]] = [{"role": "system", "content": join(said)}] if said else []
    for one in messages[first:]:
        role = "user" if one["role"] in INSTRUCTING else one["role"]
        before = plain[-1]["role"] if plain else "system"
        if role == before == "assistant":
            plain[-1]["content"] = join([plain[-1]["content"], one["content"]])
            continue
        if role == "assistant" and before == "system":
            plain.append({"role": "user", "content": ""})
        plain.append({"role": role, "content": one["content"]})
    turns, sources = messages_to_turns(plain)
    if turns[-1].answer is not None:
        raise PromptError("the last message is the assistant's own. Let a user's message follow, to be answered.")
    if any(not isinstance(source, str) for source in sources):
        raise PromptError("a picture has no url.")
    return tuple(turns), tuple(sources)


def join(contents: Sequence[Any]) -> list[dict[str, Any]]:
    """Texts and lists of parts as one list of parts."""
    return [
        part
        for content in contents
        for part in ([{"type": "text", "text": content}] if isinstance(content, str) else content)
    ]

"""Knows what a conversation is - a list of messages with `role` and `content` - and where its answer is; must not know files."""

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]
# roles of ShareGPT (`from`, `value`) -> roles of chat templates
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, in either spelling."""
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return listed and bool(value) and all(isinstance(m, Mapping) and {"role", "from"} & m.keys() for m in value)


def conversation(value: Any, column: str, where: str) -> list[Message]:
    """The messages of a column with `role` and `content`; their other keys stay, except those that hold None.

    Raises:
        ValueError: not a list of messages, or a message whose content is no text; `where` begins the message.
    """
    if not is_conversation(value):
        wanted = "a list of messages, each with role and content (or from and value)"
        raise ValueError(f"{where}: column '{column}' is {str(value)[:60]!r}; give {wanted}")
    messages = []
    for number, given in enumerate(value):
        known = {key: item for key, item in given.items() if item is not None}
        if "from" in known and "role" not in known:
            said = str(known.pop("from"))
            known = {"role": ROLES.get(said, said), "content": known.pop("value", None), **known}
        if not isinstance(known.get("role"), str) or not isinstance(known.get("content", ""), str):
            raise ValueError(
                f"{where}: message {number} of column '{column}' is {str(dict(given))[:60]!r}; give role and content as texts"
            )
        messages.append({"role": known.pop("role"), "content": known.pop("content", ""), **known})
    return messages


def split_answer(messages: list[Message], column: str, where: str) -> tuple[list[Message], str]:
    """What stands before the last assistant turn, and that turn's text. Later messages are left out.

    Raises:
        ValueError: no assistant turn, or nothing before it; `where` begins the message.
    """
    last = next((i for i in reversed(range(len(messages))) if messages[i]["role"] == "assistant"), None)
    if not last:
        found = ", ".join(message["role"] for message in messages)
        raise ValueError(f"{where}: column '{column}' needs an assistant turn after a user's; its roles are {found}")
    return messages[:last], messages[last]["content"]


def flat(value: Any) -> Any:
    """The contents of a conversation as one text, a message per line; any other value unchanged."""
    return "\n".join(m.get("content") or "" for m in value) if isinstance(value, list) else value

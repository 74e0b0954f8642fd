"""Conversations -> token ids: the chat template, the system message, and texts that become user messages.

Knows: a tokenizer and messages. Must not know: rows, limits, networks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AUTO, MODEL, NONE = "auto", "model", "none"  # values of the setting chat_template that are no file


@dataclass(frozen=True)
class Chat:
    """How prompts that are conversations become token ids.

    Args:
        texts: whether a text is a user message too.
        template: Jinja; None is the tokenizer's own, `none` writes the contents alone, a message per line.
        system: a system message before conversations that have none.
        kwargs: for the template, e.g. {"enable_thinking": False}.
    """

    texts: bool = False
    template: str | None = None
    system: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def messages(self, prompt: Any) -> list[dict[str, Any]]:
        """The messages of a prompt, with the system message."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if self.system and messages[0].get("role") != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return messages

    def ids(self, tokenizer: Any, prompt: Any, where: str) -> list[int]:
        """The ids of a conversation, to be continued by the assistant.

        Raises:
            ValueError: there is no template, or it fails on this conversation.
        """
        messages = self.messages(prompt)
        if self.template == NONE:
            return tokenizer("\n".join(str(message.get("content") or "") for message in messages))["input_ids"]
        if self.template is None and not tokenizer.chat_template:
            raise ValueError(
                f"{where}: the prompt is a conversation, but the tokenizer has no chat template. Give one by `chat_template: "
                f"FILE`, or write the contents alone by `chat_template: none`."
            )
        begun = messages[-1].get("role") == "assistant"  # an answer that is continued
        try:
            return tokenizer.apply_chat_template(
                messages, chat_template=self.template, add_generation_prompt=not begun, continue_final_message=begun,
                tokenize=True, return_dict=False, **self.kwargs,
            )  # fmt: skip
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            line = getattr(error, "lineno", None)  # of a Jinja error in its syntax
            reason = reason if line is None else f"line {line} of the template: {reason}"
            said = f"{where}: the chat template fails on this conversation ({reason})."
            raise ValueError(f"{said} Mend the template (chat_template), or the row.") from error


def read_template(setting: str) -> str | None:
    """The Jinja text of the setting `chat_template`, `none`, or None for the tokenizer's own.

    Raises:
        ValueError: no such file, or an empty one.
    """
    if setting in (AUTO, MODEL):
        return None
    path = Path(setting)
    if setting == NONE:
        return NONE
    if not path.is_file():
        raise ValueError(
            f"chat_template: {setting} is no file. Give auto, model, none or a file with a Jinja template."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"chat_template: {setting} is not UTF-8 ({error.reason}). Save it as UTF-8.") from None
    if "{{" not in text and "{%" not in text:
        raise ValueError(f"chat_template: {setting} holds no Jinja template, so all prompts would be the same.")
    return text

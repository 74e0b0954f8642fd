"""The input and output settings of a trained model: one record, saved beside the weights and used whenever they are loaded.

Knows: the sampling constraints, limits, the encoder of rows. Must not know: training, tasks, flags. These settings belong here
alone: a limit that a later `evaluate` or `generate` does not know would change its numbers silently.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from rl_warmup.models.chat import AUTO, NONE, Chat, read_template
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.encoding import RowEncoder
from rl_warmup.models.positions import Positions
from rl_warmup.models.tokens import LayoutTokens, special_tokens_in
from rl_warmup.runtime.documents import read_json
from rl_warmup.runtime.settings import RANGES

LAYOUT_FILE = "warmup_layout.json"
CONSTRAINTS = ("temperature", "top_p", "min_length", "max_length")
MODES = ("policy", "empty")
CUTS = ("error", "left", "right")
LONGEST = 512  # tokens of a written target where training had no limit
# keys that files of earlier versions lack
LATER = (
    "prompt_truncation", "prompt_template", "chat", "chat_template", "system", "chat_template_kwargs", "special_targets",
)  # fmt: skip
KINDS: dict[str, tuple[type, ...]] = {  # key of the file -> what it may hold
    "separator": (str,), "separator_id": (int,), "law": (dict,), "inference": (str,), "max_prompt_length": (int, type(None)),
    "max_target_length": (int,), "prompt_truncation": (str,), "prompt_template": (str, type(None)), "chat": (bool,),
    "chat_template": (str, type(None)), "system": (str, type(None)), "chat_template_kwargs": (dict,),
    "special_targets": (list,),
}  # fmt: skip
EXAMPLE = (
    '{"separator": "<extra_id_0>", "separator_id": 4, "law": {"temperature": 1.0, "top_p": 1.0, "min_length": 1, "max_length": '
    '32}, "inference": "policy", "max_prompt_length": 512, "max_target_length": 128}'
)


@dataclass(frozen=True)
class Inference:
    """The settings that decide what a trained model reads and may write."""

    constraints: SamplingConstraints  # for sampled, greedy and scored warmups; the file calls them `law`
    separator: str  # the token that ends a warmup, as the vocabulary spells it
    mode: str = "policy"  # which writes a warmup first; `empty` answers at once (a model trained without warmups)
    max_prompt_length: int | None = None  # tokens; None is no limit
    prompt_truncation: str = "error"  # for longer prompts: `error`, or the side on which they are cut
    max_target_length: int = LONGEST  # tokens that may be written as a target, its end token included
    prompt_template: str | None = "{text}"  # how training made a prompt from a text; None if it used several columns
    chat: bool = False  # training prompts were conversations, so a text becomes a user message
    # `template`, `system` and `kwargs` of `chat.Chat`
    chat_template: str | None = None
    system: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    special_targets: Sequence[int] = ()  # special tokens that training's targets hold; predictions hold no others

    @classmethod
    def of(cls, options: Any, tokens: LayoutTokens, device: Any = None) -> Inference:
        """The settings of training with these options (`options.WarmupOptions`), except that rows are cut, never dropped.

        With `chat_template: auto`, the training rows decide about `chat` (`trainer.WarmupTrainer`).
        """
        constraints = SamplingConstraints(
            tokens.separator_id, tokens.banned.to(device), options.temperature, options.top_p,
            options.min_warmup_length, options.max_warmup_length,
        )  # fmt: skip
        mode = "empty" if options.objective == "sft" else "policy"
        limit = options.max_target_length or LONGEST
        template = read_template(options.chat_template)
        return cls(
            constraints, tokens.separator, mode, options.max_prompt_length, cut_of(options), limit,
            chat=options.chat_template not in (AUTO, NONE), chat_template=template, system=options.system or None,
            chat_template_kwargs=options.chat_template_kwargs or {},
        )  # fmt: skip

    def seen_in(self, rows: Sequence[dict[str, Any]], tokens: LayoutTokens) -> Inference:
        """These settings with the special tokens that targets of encoded training rows hold."""
        return replace(self, special_targets=special_tokens_in((row["target_ids"] for row in rows), tokens))

    @classmethod
    def read(cls, folder: str | Path, tokens: LayoutTokens) -> Inference:
        """The settings of a folder. `tokens` are those of its model, with the separator from `read_layout`.

        Raises ValueError: as `read_layout`; or the tokenizer's id of the separator is another one.
        """
        found = read_layout(folder)
        if found["separator_id"] != tokens.separator_id:
            raise ValueError(
                f"{Path(folder, LAYOUT_FILE)}: the separator {tokens.separator!r} was token {found['separator_id']} while the "
                f"model was trained, and is {tokens.separator_id} in the tokenizer beside it. Put the tokenizer back that "
                f"training wrote."
            )
        constraints = SamplingConstraints(
            tokens.separator_id, tokens.banned, **{name: found["law"][name] for name in CONSTRAINTS}
        )
        later = {name: found[name] for name in LATER if name in found}
        return cls(
            constraints, tokens.separator, found["inference"], found["max_prompt_length"],
            max_target_length=found["max_target_length"], **later,
        )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write `warmup_layout.json` beside the weights."""
        record = {
            "separator": self.separator, "separator_id": self.constraints.separator_id,
            "law": {name: getattr(self.constraints, name) for name in CONSTRAINTS}, "inference": self.mode,
            "max_prompt_length": self.max_prompt_length, "max_target_length": self.max_target_length,
            "prompt_truncation": self.prompt_truncation, "prompt_template": self.prompt_template, "chat": self.chat,
            "chat_template": self.chat_template, "system": self.system, "chat_template_kwargs": self.chat_template_kwargs,
            "special_targets": list(self.special_targets),
        }  # fmt: skip
        Path(folder, LAYOUT_FILE).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def suppressed(self, tokens: LayoutTokens) -> list[int]:
        """Ids that neither a warmup nor a prediction may hold; the end token is not among them."""
        allowed = {tokens.eos_id, *self.special_targets}
        return [i for i in tokens.banned_ids if i not in allowed]

    def encoder(self, model: Any, tokenizer: Any, writes_targets: bool = True) -> RowEncoder:
        """An encoder of rows and prompts for this model. Targets are not cut, as they are only scored.

        Args:
            writes_targets: whether the longest target that the model may write must fit as well.
        """
        longest = self.max_target_length if writes_targets else 0
        positions = Positions.of(model, self.constraints.max_length, self.mode == "policy", longest)
        return RowEncoder(
            tokenizer, self.constraints.separator_id, self.max_prompt_length, None, self.prompt_truncation,
            encoder_decoder=model.config.is_encoder_decoder, positions=positions,
            chat=self.chat_format(),
        )  # fmt: skip

    def chat_format(self) -> Chat:
        """How conversations become ids."""
        return Chat(self.chat, self.chat_template, self.system, self.chat_template_kwargs)

    def template_hash(self) -> dict[str, str]:
        """Identifies the template of a file, so that a resumed run notices that it changed; empty without one."""
        own = self.chat_template not in (None, NONE)
        return {"chat_template_text": sha256(str(self.chat_template).encode()).hexdigest()[:12]} if own else {}

    def prompt(self, text: Any) -> Any:
        """The prompt that training would have made from a text. Texts that match the template already and conversations (lists
        of messages) are returned unchanged."""
        if not isinstance(text, str):
            return text
        before, field, after = (self.prompt_template or "").partition("{text}")
        before, after = (part.replace("{{", "{").replace("}}", "}") for part in (before, after))
        filled = text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after)
        prompt = f"{before}{text}{after}" if field and not filled else text
        return [{"role": "user", "content": prompt}] if self.chat else prompt


def cut_of(options: Any) -> str:
    """On which side a trained model's prompts are cut, or `error`: where training dropped a row, its prompt is cut."""
    return "right" if options.prompt_truncation == "drop" else options.prompt_truncation


def read_layout(folder: str | Path) -> dict[str, Any]:
    """The checked contents of a folder's `warmup_layout.json`; an empty dict if there is no such file.

    Raises ValueError: names the file and the key that is missing or has a wrong value.
    """
    path = Path(folder, LAYOUT_FILE)
    if not path.is_file():
        return {}
    found = read_json(path, "Copy it again from the run, or train again.")
    strange = [f"{name!r} is no key of it" for name in found if name not in KINDS]  # of a later version, or misspelt
    fault = next(filter(None, [*strange, *(_fault(found, name) for name in KINDS)]), None)
    if fault is not None:
        raise ValueError(
            f"{path}: {fault}. Copy the file again from the run or one of its checkpoints; where there is none, write what the "
            f"run's recipe.yaml says, such as {EXAMPLE}."
        )
    return found


def _fault(found: dict[str, Any], name: str) -> str | None:
    """What is wrong with a key of the file, or None."""
    if name not in found:
        return None if name in LATER else f"{name!r} is missing"
    value: Any = found[name]
    if type(value) not in KINDS[name]:
        kinds = ("null" if kind is type(None) else kind.__name__ for kind in KINDS[name])
        return f"{name!r} is {value!r}, not {' or '.join(kinds)}"
    if name == "special_targets" and not all(type(i) is int for i in value):
        return f"{name!r} is {value!r}, not a list of token ids"
    if name == "law":
        numbers = [value.get(key) for key in CONSTRAINTS]
        if all(type(number) in (int, float) for number in numbers) and _are_valid(*numbers):
            return None
        return f"'law' is {value!r}; it holds {', '.join(CONSTRAINTS)}, numbers under which a warmup can be drawn"
    allowed: tuple[str, ...] | None = {"inference": MODES, "prompt_truncation": CUTS}.get(name)
    if allowed and value not in allowed:
        return f"{name!r} is {value!r}, not one of {', '.join(allowed)}"
    if name.startswith("max_") and value is not None and value < 1:
        return f"{name!r} is {value}, not above 0"
    return None


def _are_valid(temperature: float, top_p: float, min_length: int, max_length: int) -> bool:
    whole = isinstance(min_length, int) and isinstance(max_length, int)
    lengths = whole and 0 <= min_length <= max_length and max_length > 0
    return lengths and all(
        RANGES[name].fault(value) is None for name, value in [("temperature", temperature), ("top_p", top_p)]
    )

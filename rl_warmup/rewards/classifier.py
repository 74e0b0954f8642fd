"""A frozen Hugging Face sequence-classification model as a reward.

Knows: transformers' loaders, texts. Must not know: the policy, token ids. Weights come from safetensors only, and no code
of a checkpoint is run.
"""

from __future__ import annotations

import string
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rl_warmup.runtime.sharing import whole_on_every_process

FIELDS = ("prompt", "completion", "target")


class Classifier:
    """The score of one label for a text made of prompt, warmup and target.

    A network with one output is a reward model: its logit is the score. With several, it is log P(label | text), nats.

    Args:
        model_name_or_path: a folder or a name on the hub.
        label: name or number of the label; required if there are several.
        template: of the text, with the fields {prompt}, {completion} (the warmup) and {target}.
        batch_size: texts per forward. max_length: tokens of a text; longer ones are cut.
    """

    def __init__(
        self, model_name_or_path: str, label: str | int | None = None, template: str = "{completion}",
        batch_size: int = 32, max_length: int = 512,
    ) -> None:  # fmt: skip
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        except (ValueError, TypeError) as error:
            raise ValueError(f"template is {template!r}, which cannot be filled in ({error}).") from error
        if not names or any(name not in FIELDS for name in names):
            raise ValueError(
                f"template is {template!r}; give {{prompt}}, {{completion}} or {{target}}, no other fields."
            )
        self.model_name_or_path, self.label, self.template = model_name_or_path, label, template
        self.batch_size, self.max_length = batch_size, max_length
        self.model: Any = None
        self.tokenizer: Any = None

    def prepare(self, device: torch.device | str, **kwargs: Any) -> None:
        """Load network and tokenizer. Raises ValueError if they cannot be used."""
        path = self.model_name_or_path
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            with whole_on_every_process():
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    path, use_safetensors=True, output_loading_info=True, trust_remote_code=False
                )
        except Exception as error:
            raise ValueError(f"No sequence-classification model can be loaded from {path!r} ({error}).") from error
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"{path!r} is no sequence-classification model: it has no weights for {', '.join(missing[:3])}. Give a "
                f"classifier or a reward model."
            )
        labels, asked = {index: str(name) for index, name in model.config.id2label.items()}, self.label
        known = [index for index, name in labels.items() if asked in (index, name) and not isinstance(asked, bool)]
        if not known and (asked is not None or len(labels) > 1):
            raise ValueError(f"label is {asked!r}; {path!r} has {', '.join(labels.values())}.")
        self.index = known[0] if known else 0
        self.model = model.requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[Any], target: list[str]) -> list[float]:
        if self.model is None:
            raise RuntimeError("The classifier is not loaded yet: call prepare() first, as RewardSet.load does.")
        rows = zip(map(_text, prompts), map(_text, completions), target, strict=True)
        texts = [self.template.format(prompt=x, completion=c, target=y) for x, c, y in rows]
        settings = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": self.max_length}
        scores: list[float] = []
        for begin in range(0, len(texts), self.batch_size):
            inputs = self.tokenizer(texts[begin : begin + self.batch_size], **settings).to(self.model.device)
            with torch.autocast(device_type=self.model.device.type, enabled=False):
                logits = self.model(**inputs).logits.float()
            scores += (logits if logits.size(1) == 1 else logits.log_softmax(1))[:, self.index].tolist()
        return scores


def _text(value: Any) -> str:
    """A text, or the last message of a conversation."""
    return value if isinstance(value, str) else value[-1]["content"]

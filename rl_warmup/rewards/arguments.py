"""The arguments of reward functions, by the names of their parameters; each is made once, on first use.

Knows: a batch, its log-probabilities, a tokenizer's `decode`. Must not know: which functions there are.
There are M = B*G group rows, prompt by prompt. Every value is a list of M entries unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from rl_warmup.batch import WarmupBatch
from rl_warmup.models.encoding import ADDED

CHEAP = (
    "prompts", "prompt_ids", "completions", "completion_ids", "target", "target_ids", "target_logps",
    "target_token_logps", "warmup_logps", "warmup_finish", "trainer_state",
)  # fmt: skip
PREDICTIONS = ("predictions", "sampled_predictions")
ON_REQUEST = ("baseline_target_logps", *PREDICTIONS, "batch")  # only for functions that name them, never in **kwargs
OF_A_MODEL = ("target_logps", "target_token_logps", "warmup_logps", "baseline_target_logps", *PREDICTIONS, "batch")
NOT_COLUMNS = ("prompt", "completion", "target", *ADDED)
OF_A_ROW = {"prompts": "prompt", "prompt_ids": "prompt_ids", "target": "target", "target_ids": "target_ids"}


class Arguments:
    """All arguments for one micro-batch: the names above (`protocol.RewardArguments` describes them), and columns of the rows.

    Args:
        batch: only its group rows are used.
        target_logps: (M,) log P(y|x,c) summed over the target, nats; None without a model: then arguments that need one are
            absent.
        target_token_logps: (M, T) the same per token; read only where `batch.target_mask` counts.
        warmup_logps: (M,) log P(c|x) summed over the policy's actions, nats.
        baseline_target_logps: returns (M,) log P(y|x,∅), nats; an extra forward.

    Raises:
        ValueError: a column of the data has the name of an argument.
    """

    def __init__(
        self, batch: WarmupBatch, tokenizer: Any, target_logps: Tensor | None, target_token_logps: Tensor | None,
        warmup_logps: Tensor | None, baseline_target_logps: Callable[[], Tensor] | None = None, trainer_state: Any = None,
    ) -> None:  # fmt: skip
        self.batch = group_rows(batch)
        self.trainer_state = trainer_state
        self._tokenizer, self._baseline, self._made = tokenizer, baseline_target_logps, dict[str, Any]()
        self._logps: dict[str, Any] = {
            "target_logps": target_logps,
            "target_token_logps": target_token_logps,
            "warmup_logps": warmup_logps,
        }
        self.absent = OF_A_MODEL if target_logps is None else ()
        self.names = [name for name in (*CHEAP, *ON_REQUEST) if name not in self.absent]
        self.columns = list(dict.fromkeys(key for row in batch.prompts for key in row if key not in NOT_COLUMNS))
        if taken := [column for column in self.columns if column in CHEAP + ON_REQUEST]:
            raise ValueError(
                f"The data has a column {taken[0]!r}, but reward functions have an argument of that name. Rename the column; "
                f"reserved are {', '.join((*CHEAP, *ON_REQUEST))}."
            )

    def __getitem__(self, name: str) -> Any:
        """The value of an argument or a column; an argument is made once."""
        if name in self.columns:
            return self._per_warmup(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Any:
        if name in OF_A_ROW:
            return self._per_warmup(OF_A_ROW[name])
        if name in PREDICTIONS:
            return self._written(name)
        if name in ("batch", "trainer_state"):
            return getattr(self, name)
        if name == "completion_ids":
            return [warmup.ids for warmup in self.batch.warmups]
        if name == "warmup_finish":
            return [warmup.finish for warmup in self.batch.warmups]
        if name == "completions":  # one assistant message where the prompt is a list of messages
            pairs = zip(self["prompts"], self._decoded(self["completion_ids"]), strict=True)
            return [as_messages([text], "assistant")[0] if isinstance(x, list) else text for x, text in pairs]
        if name == "baseline_target_logps":
            return self._baseline_target_logps()
        values = self._logps[name]
        if name == "target_token_logps":
            counts = self.batch.target_mask.bool().cpu()
            return [row[count].tolist() for row, count in zip(values.cpu(), counts, strict=True)]
        return values.tolist()

    def _per_warmup(self, column: str) -> list[Any]:
        return [row.get(column) for row in self.batch.prompts for _ in range(self.batch.group_size)]

    def _baseline_target_logps(self) -> list[float]:
        if self._baseline is None:
            raise ValueError("A reward needs baseline_target_logps, but the caller has none: give it a function.")
        values, wanted = self._baseline(), self._logps["target_logps"].shape
        if values.shape != wanted:
            raise ValueError(
                f"baseline_target_logps returned the shape {tuple(values.shape)}; it must be {tuple(wanted)}."
            )
        return values.detach().float().tolist()

    def _written(self, name: str) -> list[str]:
        written = [(warmup.predictions or {}).get(name) for warmup in self.batch.warmups]
        if any(ids is None for ids in written):
            raise ValueError(f"A reward needs {name}, but the caller made none: add it to `Rollout.predictions`.")
        return [text.strip() for text in self._decoded(written)]

    def _decoded(self, sequences: list[Any]) -> list[str]:
        return [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in sequences]

    def row(self, index: int) -> str:
        """Label of a row in error messages."""
        prompt, warmup = divmod(index, self.batch.group_size)
        return f"row {index} (id {self.batch.prompts[prompt].get('id', prompt)!r}, warmup {warmup})"


def as_messages(texts: list[Any], role: str) -> list[list[dict[str, str]]]:
    """Texts as conversations of one message; conversations stay as they are."""
    return [[{"role": role, "content": text}] if isinstance(text, str) else text for text in texts]


def group_rows(batch: WarmupBatch) -> WarmupBatch:
    """The group rows of the batch: its first B*G rows, as views."""
    size = batch.num_prompts * batch.group_size
    names = ("prompt_index", "row_kind", "seq_ids", "seq_mask", "warmup_mask", "target_mask", "warmups")
    return replace(batch, **{name: getattr(batch, name)[:size] for name in names})

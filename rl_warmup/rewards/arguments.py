"""The arguments of reward functions, by the names of their parameters; each is made once, on first use.

Knows: a batch, its log-probabilities, a tokenizer's `decode`. Must not know: which functions there are.
There are M = B*G group rows, prompt by prompt. Every value is a list of M entries unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
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


class Arguments:
    """All arguments for one micro-batch: the names above, and the other columns of the data rows.

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
        self._tokenizer = tokenizer
        self._target_logps, self._target_token_logps = target_logps, target_token_logps
        self._warmup_logps, self._baseline = warmup_logps, baseline_target_logps
        self.absent = OF_A_MODEL if target_logps is None else ()
        self.names = [name for name in (*CHEAP, *ON_REQUEST) if name not in self.absent]
        self.columns = list(dict.fromkeys(key for row in batch.prompts for key in row if key not in NOT_COLUMNS))
        if taken := [column for column in self.columns if column in CHEAP + ON_REQUEST]:
            raise ValueError(
                f"The data has a column {taken[0]!r}, but reward functions have an argument of that name. Rename the column; "
                f"reserved are {', '.join((*CHEAP, *ON_REQUEST))}."
            )

    def __getitem__(self, name: str) -> Any:
        return self._per_warmup(name) if name in self.columns else getattr(self, name)

    def _per_warmup(self, column: str) -> list[Any]:
        return [row.get(column) for row in self.batch.prompts for _ in range(self.batch.group_size)]

    @cached_property
    def prompts(self) -> list[Any]:
        """The prompt of every row, as in the data: text, or a list of messages."""
        return self._per_warmup("prompt")

    @cached_property
    def prompt_ids(self) -> list[list[int]]:
        """Its token ids."""
        return self._per_warmup("prompt_ids")

    @cached_property
    def completions(self) -> list[Any]:
        """The warmups as text; as one assistant message if the prompt is a list of messages."""
        texts = self._decoded(self.completion_ids)
        return [
            [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
            for prompt, text in zip(self.prompts, texts, strict=True)
        ]

    @cached_property
    def completion_ids(self) -> list[list[int]]:
        """Token ids of the warmups, without the separator."""
        return [warmup.ids for warmup in self.batch.warmups]

    @cached_property
    def target(self) -> list[str]:
        """The target of every row, as text."""
        return self._per_warmup("target")

    @cached_property
    def target_ids(self) -> list[list[int]]:
        """Its token ids, the end token included."""
        return self._per_warmup("target_ids")

    @cached_property
    def target_logps(self) -> list[float]:
        """log P(y|x,c), summed, nats."""
        assert self._target_logps is not None
        return self._target_logps.tolist()

    @cached_property
    def target_token_logps(self) -> list[list[float]]:
        """log P(y_t|x,c,y_<t) of every target token, nats; lists as long as `target_ids`."""
        assert self._target_token_logps is not None
        counts = self.batch.target_mask.bool().cpu()
        return [row[count].tolist() for row, count in zip(self._target_token_logps.cpu(), counts, strict=True)]

    @cached_property
    def warmup_logps(self) -> list[float]:
        """log P(c|x), summed, nats."""
        assert self._warmup_logps is not None
        return self._warmup_logps.tolist()

    @cached_property
    def warmup_finish(self) -> list[str]:
        """How every warmup ended: one of `batch.FINISHES`."""
        return [warmup.finish for warmup in self.batch.warmups]

    @cached_property
    def baseline_target_logps(self) -> list[float]:
        """log P(y|x,∅), summed, nats. Costs a forward."""
        if self._baseline is None:
            raise ValueError("A reward needs baseline_target_logps, but the caller has none: give it a function.")
        assert self._target_logps is not None
        values = self._baseline()
        if values.shape != self._target_logps.shape:
            wanted = tuple(self._target_logps.shape)
            raise ValueError(f"baseline_target_logps returned the shape {tuple(values.shape)}; it must be {wanted}.")
        return values.detach().float().tolist()

    @cached_property
    def predictions(self) -> list[str]:
        """The likeliest target after every warmup, token by token. Costs a generation of B*G targets."""
        return self._written("predictions")

    @cached_property
    def sampled_predictions(self) -> list[str]:
        """A target sampled from P(y|x,c) after every warmup. Costs the same."""
        return self._written("sampled_predictions")

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

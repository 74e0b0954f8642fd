"""A model of lm-evaluation-harness: its questions answered by a warmup, then a target. Needs the extra `lm-eval`.

Knows: a `WarmupGenerator`, the harness's model class. Must not know: training.
The harness finds models of its own package alone, so this module starts its command with this model added (docs/serving.md):

    python -m rl_warmup.inference.harness run --model rl_warmup --model_args pretrained=FOLDER --tasks NAME
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rl_warmup.batch import Warmup
from rl_warmup.engine import sample_warmups
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.inference.likelihood import mixed_logprobs
from rl_warmup.runtime.sharing import uniforms

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise ImportError("lm_eval is not installed. Install the extra: pip install 'rl_warmup[lm-eval]'.") from error

NARROWING = {"top_k": (None, 0), "top_p": (None, 1.0), "num_beams": (None, 1), "repetition_penalty": (None, 1.0)}


@register_model("rl_warmup")
class WarmupLM(LM):
    """The harness's model. A context is a prompt, which the folder's template of training is filled with; a continuation is a
    target, whose tokens do not depend on the space before it: surrounding whitespace is left out."""

    def __init__(
        self, pretrained: str, num_warmups: int = 1, select: str = "marginal", seed: int = 0, batch_size: Any = 32,
        device: str | None = None, max_batch_size: Any = None,
    ) -> None:  # fmt: skip
        """Load a folder that training wrote.

        Args:
            pretrained: the folder.
            num_warmups: 1 uses the likeliest tokens as the warmup; n above 1 samples n of them with `seed`.
            select: which target `generate_until` returns of several warmups, as `WarmupGenerator.generate`.
            batch_size: rows at a time; what is no number ("auto") is 32.
            max_batch_size: of the harness's own search for a batch size; not used.

        Raises:
            ValueError: as `WarmupGenerator.from_pretrained`; or several warmups of a model trained without them.
        """
        super().__init__()
        if str(device).startswith("cuda") and not torch.cuda.is_available():
            device = None  # the command names cuda:0 where nobody named a device
        self.generator = WarmupGenerator.load(pretrained, device)
        self._device = self.generator.model.device
        self.num_warmups, self.select, self.seed = num_warmups, select, seed
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 32
        if num_warmups > 1 and self.generator.mode == "empty":
            raise ValueError("num_warmups: this model was trained without warmups. Leave it out.")

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of every (context x, continuation y); nats, summed over y's tokens, without an end token.

        With one warmup, log P(y|x,c*), where c* is the greedy warmup: the likeliest allowed token at every step. With n, the
        marginal log (1/n) Σ_i P(y|x,c_i), c_i ~ P(c|x) under the sampling constraints of training: an estimate of log P(y|x)
        that is too low by Jensen's inequality, on average, and rises with n. All continuations of a context share its
        warmups. A model trained without warmups gives log P(y|x).

        `is greedy`: whether greedy writing after the greedy warmup begins with y.

        Raises:
            ValueError: names a request whose context or continuation is empty, or does not fit the model.
        """
        pairs = [(context, continuation.strip()) for context, continuation in (request.args for request in requests)]
        if empty := [number for number, (_, continuation) in enumerate(pairs) if not continuation]:
            raise ValueError(f"request {empty[0]}: the continuation is empty. Give it a text.")
        contexts = {context: place for place, context in enumerate(dict.fromkeys(context for context, _ in pairs))}
        rows = self.generator.encoded([{"prompt": context} for context in contexts])
        written = self.generator.predict(rows, self.batch_size)
        groups = self._warmups(rows, written)
        ids = self.generator.tokenizer([continuation for _, continuation in pairs], add_special_tokens=False)[
            "input_ids"
        ]
        places = [contexts[context] for context, _ in pairs]
        asked = [{**rows[place], "target_ids": target} for place, target in zip(places, ids, strict=True)]
        found = mixed_logprobs(self.generator, asked, [groups[place] for place in places], self.batch_size)
        greedy = [written[p]["prediction_ids"][: len(y)] == y for p, y in zip(places, ids, strict=True)]
        return list(zip(found, greedy, strict=True))

    def _warmups(self, rows: list[dict[str, Any]], written: list[dict[str, Any]]) -> list[list[Warmup]]:
        """The warmups after which a row's targets are scored."""
        w, n, size = self.generator, self.num_warmups, self.batch_size
        if n == 1:
            return [[Warmup(row["warmup_ids"], row["warmup_finish"])] for row in written]
        drawn: list[Warmup] = []
        for start in range(0, len(rows), size):
            prompts = [row["prompt_ids"] for row in rows[start : start + size]]
            draws = uniforms("harness", self.seed, range(start, start + len(prompts)), n, w.constraints.max_length)
            drawn += sample_warmups(w.model, w.layout, w.constraints, prompts, n, draws=draws)
        return [drawn[i : i + n] for i in range(0, len(drawn), n)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Raises NotImplementedError: a warmup model gives a target after a prompt a probability, not a text by itself."""
        raise NotImplementedError(
            "loglikelihood_rolling: a warmup model gives a target after a prompt a probability, not a text by itself, so it "
            "has no perplexity. Choose tasks with loglikelihood or generate_until."
        )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The target written after the warmup, up to the first of the texts in `until`; the warmup is not in it.

        With several warmups the target that `select` chooses. `max_gen_toks` bounds the target's tokens, as training's
        max_target_length does.

        Raises:
            ValueError: a way of sampling that would change the model's distribution (top_k, top_p, beams, penalties).
        """
        out = [""] * len(requests)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(_asked(request.args[1]), []).append(number)
        for (limit, sample, temperature, until), numbers in alike.items():
            settings = self.generator.settings
            shorter = replace(
                settings, max_target_length=min(limit or settings.max_target_length, settings.max_target_length)
            )
            written = replace(self.generator, settings=shorter).generate(
                [requests[number].args[0] for number in numbers], num_warmups=self.num_warmups, select=self.select,
                sample_target=sample, temperature=temperature, logprobs=False, batch_size=self.batch_size, seed=self.seed,
                places=numbers,
            )  # fmt: skip
            for number, prediction in zip(numbers, written, strict=True):
                text = prediction["prediction"]
                out[number] = text[: min([text.index(stop) for stop in until if stop in text], default=len(text))]
        return out

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return str(self.generator.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Raises NotImplementedError: the folder says itself how a text becomes a conversation."""
        raise NotImplementedError(
            "apply_chat_template: the folder's own template is applied to every context as in training. Leave "
            "--apply_chat_template out."
        )


def _asked(settings: dict[str, Any]) -> tuple[int | None, bool, float, tuple[str, ...]]:
    """The harness's settings of generation: limit, whether to sample, temperature, stop texts. Raises as `generate_until`."""
    sample = bool(settings.get("do_sample")) and settings.get("temperature") != 0
    for name, harmless in NARROWING.items():
        value = settings.get(name)
        if value not in harmless and (sample or not name.startswith("top_")):
            raise ValueError(f"generation_kwargs: {name}: {value!r} would change what is measured. Leave it out.")
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    temperature = float(settings.get("temperature") or 1.0)
    return settings.get("max_gen_toks"), sample, temperature if sample else 1.0, tuple(stop for stop in stops if stop)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()

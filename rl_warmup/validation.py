"""The part of the trainer that writes: the model as inference sees it, and what it is worth on validation rows.

Knows: transformers' evaluation loop, the current model under whatever engine trains it. Must not know: gradients, weights of
warmups, recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from rl_warmup.diagnostics import Means, rollout_metrics
from rl_warmup.generation import Writer
from rl_warmup.hold import HoldingTrainer
from rl_warmup.launched import whole_weights
from rl_warmup.layouts.scoring import score
from rl_warmup.run_folder import clock

TextMetrics = Callable[[list[dict[str, Any]]], dict[str, float]]


class ValidatingTrainer(HoldingTrainer):
    """Predicts and scores with the model that is being trained; `WarmupTrainer` adds how it is trained."""

    text_metrics: TextMetrics | None

    @contextmanager
    def _writing(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The model in eval mode, ready for `generate`, and the settings `generate` needs under this distribution."""
        was_training = self.model.training
        self.model.eval()
        try:
            # sample under the precision that scores; every weight is whole, so ranks may stop at different lengths
            with whole_weights(self.model_wrapped), self.accelerator.autocast():
                yield self.accelerator.unwrap_model(self.model), {"synced_gpus": False}
        finally:
            self.model.train(was_training)

    def prediction_step(
        self, model: Any, inputs: list, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """The n-sample bound on log P(y|x) per target token, its negative as loss, and the gain over no warmup."""
        rollout = self.rollout.for_evaluation(self.args.num_eval_warmups)
        with torch.no_grad(), self._writing() as (writer, settings):
            plans = rollout.plan(writer, inputs, cold_start=False, **settings)
        batch = rollout.batch(inputs, plans).to(self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = score(model, batch, self.law)
        groups = batch.num_prompts * batch.group_size
        target, warmup = scores.target_logprob[:groups], scores.warmup_logprob[:groups]
        weights = rollout.weigh(batch, target, warmup, 1.0, cold_start=True)
        sums = rollout_metrics(batch, scores, weights, target, {})
        self.eval_means.add({k: v for k, v in sums.items() if "reward" not in k})
        bound = sums["target_logprob" if self.rollout.objective == "sft" else "target_bound"][0]
        tokens = sum(len(row["target_ids"]) for row in inputs)
        self.eval_means.add({"loss": (-bound, tokens)})  # exact over batches of different size, unlike Trainer's mean
        return torch.tensor(-bound / tokens, device=self.args.device), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Trainer's loop under a random state of its own, so that evaluating more often changes no training run."""
        began = clock()
        prefix = kwargs.get("metric_key_prefix", "eval")
        self.eval_means = Means()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.args.seed + self.args.process_index)
            output = super().evaluation_loop(*args, **kwargs)
            means = self.eval_means.flush(self._sum_over_processes)
            if self.text_metrics is not None:
                means |= self.text_metrics(self.predict_rows(self.eval_dataset))
            output.metrics.update({f"{prefix}_{name}": value for name, value in means.items()})
        self.run_folder.pause(clock() - began)
        return output

    def writer(self) -> Writer:
        """The current model as inference sees it."""
        inference = "empty" if self.rollout.objective == "sft" else "policy"
        limit = self.args.max_target_length or 512
        model = self.accelerator.unwrap_model(self.model)
        return Writer(
            model, self.processing_class, self.layout, self.law, limit, inference, self.args.max_prompt_length
        )

    @contextmanager
    def shared_writer(self) -> Iterator[Writer]:
        """The current model for all processes together: each predicts its share. All must enter, and do the same inside."""
        with torch.no_grad(), self._writing() as (model, settings):
            yield replace(self.writer(), model=model, shared=True, generate=settings)

    def predict_rows(self, rows: list[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
        """Predictions for encoded rows, with the policy's likeliest warmup; all processes call it, and all get all of them."""
        with self.shared_writer() as writer:
            return writer.predict(rows, batch_size=self.args.per_device_eval_batch_size, **settings)

"""`WarmupTrainer`: one training step, top to bottom - roll out, score, weigh, step.

Knows: transformers' Trainer, processes and devices. Must not know: recipes, tasks, files other than through callbacks.
Read `engine/plain.py` first; then `method/rollout.py` (which rows, which weights) and `method/objectives.py` (the formulas).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object, set_seed
from torch import Tensor
from tqdm.auto import tqdm
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rl_warmup.batch import RowWeights, Scores, WarmupBatch
from rl_warmup.config import WarmupConfig, void_note, without_effect
from rl_warmup.engine import checkpoints_layers, choose_path, enable_scoring, score, score_sampled
from rl_warmup.inference.validation import TextMetrics, ValidatingTrainer, as_metrics
from rl_warmup.method.diagnostics import Means, format_sample, rollout_metrics, sample_table, step_cost, table_rows
from rl_warmup.method.guard import Guard
from rl_warmup.method.losses import kl_loss, weighted_loss
from rl_warmup.method.objectives import log_mean_exp
from rl_warmup.method.proposals import DRAFT, REFERENCE
from rl_warmup.method.reference_trainer import ReferenceTrainer, end_with_the_best, starts_separator_as_end
from rl_warmup.method.rollout import Rollout
from rl_warmup.method.schedule import ReadingMeasurement, Schedule
from rl_warmup.method.training_data import (
    callbacks_for,
    check_written,
    count_targets,
    encode_sets,
    first_rows,
    settle_chat,
    training_rows,
)
from rl_warmup.method.update import Update
from rl_warmup.method.warmup_files import StoredWarmups
from rl_warmup.models.inference_settings import Inference, read_layout
from rl_warmup.models.layouts import make_layout
from rl_warmup.models.loading import (
    add_adapter,
    check_adapters,
    disable_dropout,
    refuse_fp16,
    save_quantization,
    tokenizer_of,
    with_dtype,
)
from rl_warmup.models.plain_use import save_for_plain_use
from rl_warmup.models.tokens import declare_tokens, end_by_separator
from rl_warmup.plugins import spelled
from rl_warmup.rewards import PREDICTIONS, RewardScores, RewardSet
from rl_warmup.rewards.loading import function_of, weighted
from rl_warmup.runtime.continued import ContinuedTrainer
from rl_warmup.runtime.launched import LaunchCheck, refuse_launch
from rl_warmup.runtime.run_folder import ProgressBar, ProgressLine, RunFolder, append_jsonl, tells
from rl_warmup.runtime.search import SearchTrainer, first_model
from rl_warmup.runtime.terminal import bars
from rl_warmup.runtime.trackers import send_table


class WarmupTrainer(SearchTrainer, ContinuedTrainer, ValidatingTrainer, ReferenceTrainer):
    """Trains a model to write a warmup and then the target, from (prompt, target) pairs alone.

    ```python
    from rl_warmup import WarmupConfig, WarmupTrainer

    trainer = WarmupTrainer(
        model="google-t5/t5-small",
        args=WarmupConfig(output_dir="runs/first", num_warmups=4, max_warmup_length=16, learning_rate=1e-4),
        train_dataset=[{"prompt": "translate: house", "target": "Haus"}],
    )
    trainer.train()
    ```

    Args:
        model: a `PreTrainedModel` (encoder-decoder or decoder-only), a folder or a hub name.
        args: a `WarmupConfig`; its `objective: sft` makes this the control.
        train_dataset: rows with `prompt` and `target`; TRL's prompt-completion rows work unchanged. Further columns reach
            the rewards. An IterableDataset is read and encoded as it is needed (`training_data.EncodedStream`).
        eval_dataset: rows for validation, or a dict of such sets, each measured under `eval_NAME_...`.
        processing_class: the tokenizer; by default the one of the model's name.
        reward_funcs: rewards instead of `args.rewards`: names, `{name, weight, kwargs}` (the name may be a function), or
            callables with TRL's signature. None or [] means the target's log-probability.
        compute_metrics: predictions (dicts with `prediction` and `target`) -> metrics; when given, every evaluation also
            writes predictions.
        peft_config: a LoRA configuration.
        model_init: makes the model anew, for `hyperparameter_search`; in the place of `model`.
        dtype: of the trained weights, whatever the model comes in (a quantized one stays as it is); auto changes nothing.
    """

    # The loss is a sum divided by the target tokens of the whole update: it must not be divided again by the number of
    # micro-batches (transformers would, and differently for T5 than for others).
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any = None,
        args: WarmupConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_funcs: list[Any] | None = None,
        compute_metrics: TextMetrics | None = None,
        peft_config: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        model_init: Callable[..., Any] | None = None,
        dtype: str = "float32",
    ) -> None:
        args = WarmupConfig(output_dir="warmup-run") if args is None else args
        if not isinstance(args, WarmupConfig):
            raise ValueError(f"args: is a {type(args).__name__}; give a WarmupConfig, which takes the same settings.")
        model, loaded = with_dtype(first_model(model, model_init, args.seed), dtype)
        processing_class = (loaded or tokenizer_of(model)) if processing_class is None else processing_class
        args.check_again()
        if (void := void_note(without_effect(args))) and not args.process_index:
            print(void)
        refuse_launch(args, model)
        refuse_fp16(model.config.model_type, "fp16" if args.fp16 else str(model.dtype))
        declared = read_layout(model.name_or_path) if model.name_or_path else {}
        tokens = declare_tokens(model, processing_class, args.separator or declared.get("separator"))
        check_adapters(model)
        if starts_separator_as_end(args, model, peft_config):
            end_by_separator(model, tokens)
        enable_scoring(model)
        choose_path(model, args.scoring, args.sampling)
        if peft_config is not None:
            set_seed(args.seed)  # Trainer's own comes after the adapter's first weights are drawn
            model = add_adapter(model, peft_config)
        if args.disable_dropout:
            disable_dropout(model)
        self.layout = make_layout(model, tokens)
        self.settings = Inference.of(args, tokens, args.device)
        # Rows that are scored are never dropped, or a long target would leave the comparison unseen.
        self.eval_encoder = self.settings.encoder(model, processing_class)
        read_only = self.eval_encoder.positions and replace(self.eval_encoder.positions, written=0)
        self.encoder = replace(
            self.eval_encoder, counts=Counter(), positions=read_only, max_target_length=args.max_target_length,
            prompt_truncation=args.prompt_truncation, target_truncation=args.target_truncation,
        )  # fmt: skip
        train_rows = training_rows(self.encoder, train_dataset, args, StoredWarmups.of(args, processing_class, tokens))
        known = first_rows(train_rows)
        self.settings = settle_chat(self.settings, known, args, processing_class)
        self.encoder.chat = self.eval_encoder.chat = self.settings.chat_format()
        eval_rows = encode_sets(self.eval_encoder, eval_dataset, "validation", args)
        self.text_metrics = as_metrics(compute_metrics)
        # Ranks seed their sampling apart (below), but must shuffle the rows alike, or rows repeat and go missing.
        args.data_seed = args.seed if args.data_seed is None else args.data_seed
        if REFERENCE in args.proposals and args.objective != "sft" and eval_rows:
            end_with_the_best(args, eval_rows)
        super().__init__(
            model=model, args=args, data_collator=list, train_dataset=train_rows, eval_dataset=eval_rows,
            processing_class=processing_class, callbacks=callbacks, optimizers=optimizers, model_init=model_init,
        )  # fmt: skip
        self.model_accepts_loss_kwargs = True  # with loss_is_scaled_for_ga, for transformers before 5.20
        self.settings = self.settings.seen_in(known, tokens)
        count = partial(count_targets, train_rows, args)
        self.rollout = Rollout.of(args, self.layout, self.settings.constraints, processing_class, known, count)
        specs = reward_funcs if reward_funcs is not None else args.rewards
        self.rewards = RewardSet.load(
            weighted(specs, args.reward_weights), tokenizer=processing_class, layout=self.layout,
            constraints=self.constraints, device=args.device, report=self._warn,
        )  # fmt: skip
        self.plugins = [args.objective, *args.proposals, *map(function_of, specs)]
        # a run that goes on is compared by these too
        self.recipe = {"reward_funcs": spelled(reward_funcs), "dtype": str(dtype), **self.settings.template_hash()}
        self.rollout.predictions = self.rewards.asked(PREDICTIONS)
        if self.rollout.predictions or DRAFT in args.proposals:
            check_written(self.encoder, known, self.eval_encoder.positions)
        self.means = Means()
        self._add_own_callbacks(args)
        self.update = Update([])
        self.keep_start()
        set_seed(args.seed, device_specific=True)  # after Trainer's own, so that ranks sample different warmups

    # ------------------------------------------------------------------ one update

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor]:
        """The micro-batches of one update (lists of rows) and their common denominator: the update's target tokens."""
        parts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.update = Update(parts)
        tokens = sum(len(row["target_ids"]) for row in self.update.rows)
        return parts, torch.tensor(self._sum_over_processes([float(tokens)])[0], device=device)

    def _prepare_inputs(self, inputs: list[dict[str, Any]]) -> WarmupBatch:
        """Rows of a micro-batch -> rolled out batch.

        The first micro-batch brings the rollout of the whole update: one rollout before all of them makes eight
        micro-batches of one prompt equal one of eight, random draws included. It waits until here because Trainer restores
        the random state of a resumed run only after `get_batch_samples`.
        """
        if self.update.batches is None:
            self.update.batches = self._roll_out(self.update)
        return self.update.batches.popleft().to(self.args.device)

    def _roll_out(self, update: Update) -> deque[WarmupBatch]:
        prompts, cold_start = update.rows, self.schedule.in_cold_start
        with self._writing() as model:
            cache = self.rollout.cache_prompts(model, prompts, cold_start) if self._shares_prompts(update) else None
            with self.agreed():
                rows = iter(self.rollout.choose_rows(model, prompts, cold_start, cache))
        batches = (self.rollout.batch(part, [next(rows) for _ in part]) for part in update.parts)
        return deque(replace(batch, prefix_cache=cache) for batch in batches)

    def _shares_prompts(self, update: Update) -> bool:
        """Whether sampling and gradient can share one pass over the prompts: nothing else wraps the forward, or cuts it."""
        alone = self.accelerator.num_processes == 1 and not self.is_deepspeed_enabled and not self.is_fsdp_enabled
        return alone and len(update.parts) == 1 and self.args.disable_dropout and not checkpoints_layers(self.model)

    def compute_loss(
        self, model: Any, inputs: WarmupBatch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Scores make rewards, rewards make two weights per row, and weights times log-probabilities are the loss.

        `engine/plain.py` has the same step without options in twenty lines.
        """
        batch, tokens, uses_kl = inputs, num_items_in_batch, self._uses_kl(inputs)
        if self.rollout.draws_rows(batch.group_size):  # some rows of a group get a gradient, chosen by their weights
            scores = self.as_numbers(score_sampled(model, batch, self.constraints))
            judged = self._judge(model, batch, scores)
            weights = self._weigh(batch, judged.total, scores.warmup_logprob)
            trained, constants = self.rollout.draw_rows(batch, weights)
            learned = score(model, trained, self.constraints, None if uses_kl else constants)
        else:
            known = self._weights_before_scores(batch)
            learned = score(model, batch, self.constraints, None if uses_kl else known)
            scores, trained = self.as_numbers(learned), batch
            judged = self._judge(model, batch, scores)
            constants = weights = known or self._weigh(batch, judged.total, scores.warmup_logprob)
        formed = learned.objective  # by the forward, where it knew the weights
        loss = sum(weighted_loss(learned, constants, tokens)) if formed is None else -formed / tokens
        if uses_kl:
            loss = loss + self._kl_to_start(model, batch, trained, learned, constants) / tokens
        self._record(batch, trained, scores, weights, judged, weighted_loss(scores, weights, tokens))
        if self.schedule.measures_reading(self.state.global_step) and not self.diverges():
            self._measure_reading(model, batch, scores)
        self.watchdog.reached(f"update {self.state.global_step + 1}, warmups scored")
        # DDP and ZeRO average gradients over processes, while the denominator already counts all of them.
        return loss * self.accelerator.num_processes

    def _kl_to_start(
        self, model: Any, batch: WarmupBatch, trained: WarmupBatch, learned: Scores, weights: RowWeights
    ) -> Tensor:
        """The weighted KL of the policy to the starting policy over the rows with gradient, in nats."""
        assert self.start is not None
        with self.accelerator.autocast():  # no engine wraps the copy, and two precisions would differ without any drift
            before = self.start.warmup_logps(model, trained, self.constraints)
        kl = kl_loss(learned.token_logps * trained.warmup_mask, before, weights.kl)
        actions = batch.warmup_mask[: batch.num_prompts * batch.group_size].sum().item()
        self.means.add({"kl": (kl.item() * batch.group_size / self.rollout.beta, actions)})
        return kl

    def _weights_before_scores(self, batch: WarmupBatch) -> RowWeights | None:
        """Weights that need no scores: a single warmup has all the weight, whatever it scores."""
        if batch.group_size > 1:
            return None
        nothing = torch.zeros(batch.num_prompts * batch.group_size, device=self.args.device)
        return self._weigh(batch, nothing, nothing)

    def _uses_kl(self, batch: WarmupBatch) -> bool:
        """Whether the KL to the starting policy counts for this batch."""
        return bool(self.start and self.rollout.beta and batch.group_size and not self.schedule.in_cold_start)

    def _weigh(self, batch: WarmupBatch, rewards: Tensor, warmup_logprobs: Tensor) -> RowWeights:
        return self.rollout.weigh(batch, rewards, warmup_logprobs, self.schedule.tau, self.schedule.in_cold_start)

    def _record(
        self, batch: WarmupBatch, trained: WarmupBatch, scores: Scores, weights: RowWeights, judged: RewardScores,
        losses: tuple[Tensor, Tensor],
    ) -> None:  # fmt: skip
        """Tell schedule, log and run folder about a micro-batch, unless its loss is no number."""
        policy_loss, target_loss = (part.item() for part in losses)
        groups, cold_start = batch.num_prompts * batch.group_size, self.schedule.in_cold_start
        if not self.is_number(policy_loss, target_loss) or self.update.fault is not None:
            return
        if cold_start and groups and not self.schedule.reading:
            chosen = weights.posterior.flatten()
            logprob, actions = scores.warmup_logprob[:groups], scores.warmup_tokens[:groups]
            self.schedule.observe_proposals((chosen * logprob).sum().item(), (chosen * actions).sum().item())
        elif groups and not cold_start:
            self.schedule.observe_ess(weights.ess.sum().item(), batch.num_prompts)
        self.means.add(rollout_metrics(batch, scores, weights, judged.total, judged.by_name, judged.failed))
        ranks, share = self.accelerator.num_processes, 1 / len(self.update.parts)  # parts of one update, on every rank
        self.means.add({"loss/policy": (policy_loss * ranks, share), "loss/target": (target_loss * ranks, share)})
        size, sampled = self.model.num_parameters(), groups > 0 and not cold_start
        tokens, self.update.flops = step_cost(batch, trained, size, sampled)
        self.run_folder.count(tokens, self.update.flops)
        self.update.shown = (replace(batch, prefix_cache=None), scores, weights, judged)
        self.update.warmups += batch.warmups[:groups]

    def check_weights(self) -> None:
        """Extends: once the update is known to be sound, all its groups together tell how varied the warmups are."""
        super().check_weights()
        self.means.add(self.update.variety(gather_object, self.accelerator.num_processes))

    @torch.no_grad()
    def _measure_reading(self, model: Any, batch: WarmupBatch, scores: Scores) -> None:
        """Report log P(y|x) after the group's warmups, another prompt's (of the starting model) and none to the schedule."""
        prompts, size = batch.num_prompts, batch.group_size
        others = self.rollout.without_warmups(batch.prompts, self.schedule.in_cold_start).to(self.args.device)
        got = score(model, others, self.constraints).target_logprob
        own = scores.target_logprob[: prompts * size].view(prompts, size)
        bound, mean, none = log_mean_exp(own), own.mean(1), got[-prompts:]
        other = log_mean_exp(got[:-prompts].view(prompts, -1)) if len(got) > prompts else none
        self.schedule.observe_reading(ReadingMeasurement(*(part.sum().item() for part in (bound, mean, other, none))))

    def _judge(self, model: Any, batch: WarmupBatch, scores: Scores) -> RewardScores:
        groups = batch.num_prompts * batch.group_size

        def baseline() -> Tensor:
            empty = self.rollout.without_warmups(batch.prompts).to(self.args.device)
            got = self.as_numbers(score(model, empty, self.constraints)).target_logprob
            return got.repeat_interleave(batch.group_size)

        return self.rewards(
            batch,
            target_logps=scores.target_logprob[:groups],
            target_token_logps=scores.token_logps[:groups],
            warmup_logps=scores.warmup_logprob[:groups],
            baseline_target_logps=baseline,
            trainer_state=self.state,
        )

    # ------------------------------------------------------------------ logs and checkpoints

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Adds the rollout's metrics since the last log, and shows a few warmups."""
        if "loss" in logs:
            logs = {**logs, **self.means.flush(self._sum_over_processes), "tau": self.schedule.tau}
            logs["loss"] = logs["loss/policy"] + logs["loss/target"]  # Trainer's own forgets what preceded a restart
            if self.args.objective != "sft":
                schedule, measured = self.schedule, self.schedule.measurement
                known = {"proposal_logp": schedule.proposal_logp, "read": measured and measured.read}
                logs |= {"phase": schedule.phase} | {name: value for name, value in known.items() if value is not None}
            self._log_warmups()
        super().log(logs, start_time)

    def _log_warmups(self) -> None:
        if self.update.shown is None or not self.args.log_warmups or not self.is_world_process_zero():
            return
        shown = sample_table(*self.update.shown, self.warmup_generator().decode, self.args.log_warmups)
        records = [{"step": self.state.global_step, **row} for row in shown]
        append_jsonl(self.run_folder.folder / "warmups.jsonl", records)
        send_table(self, table_rows(records))
        if shown and tells(self.args):
            tqdm.write(format_sample(shown[0]))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder, model = output_dir or self.args.output_dir, self.accelerator.unwrap_model(self.model)
            self.inference().save(folder)
            save_for_plain_use(folder, model, self.inference(), self.layout.tokens)
            save_quantization(model, folder)

    # ------------------------------------------------------------------ small parts

    def _add_own_callbacks(self, args: WarmupConfig) -> None:
        """Schedule and run folder, and a readable line per log in the place of Trainer's dictionaries."""
        proposals = args.proposals if args.objective != "sft" else []
        self.schedule = Schedule(
            has_proposals=bool(proposals), readiness=args.readiness, proposal_only=args.proposal_only, tau=args.tau,
            target_ess=args.target_ess, reduce=self._sum_over_processes, reading=REFERENCE in proposals,
            threshold=args.reading_threshold, updates=(args.min_reading_updates, args.max_reading_updates),
            gave_up=self._train_plainly, warn=self._warn,
        )  # fmt: skip
        self.run_folder = RunFolder(args.output_dir)
        self.pop_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None and bars():
            self.add_callback(ProgressBar())
        ours: list[Any] = [LaunchCheck(self), self.means, self.run_folder, self.schedule, ProgressLine()]
        if args.guard != "off" and args.objective != "sft":
            limits = (self.constraints.min_length, self.constraints.temperature, self.constraints.max_length)
            ours.append(Guard(args.guard, args.num_warmups, *limits, self._change_constraints, self._warn))
        for callback in (*ours, *callbacks_for(self.train_dataset)):
            self.add_callback(callback)

    def _train_plainly(self) -> None:
        """Continue as SFT: without warmups and without the KL."""
        self.rollout, self.start = replace(self.rollout, objective="sft"), None

    def _change_constraints(self, **changes: Any) -> None:
        self.rollout.constraints = replace(self.constraints, **changes)

    def _warn(self, warning: dict[str, Any]) -> None:
        if self.is_world_process_zero():
            append_jsonl(self.run_folder.folder / "warnings.jsonl", [warning])

    def floating_point_ops(self, inputs: Any) -> float:
        """Of the last micro-batch: `diagnostics.step_cost`."""
        return self.update.flops

"""Rewards of what the model writes after a warmup: made for whom asks, the same as evaluation would write."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rl_warmup.engine import generate_targets
from rl_warmup.method.rollout import add_predictions, prediction_limit
from rl_warmup.rewards.prediction_metrics import PredictionMetric


def written(world, *names):
    """The world's batch with predictions on its warmups."""
    ids = [row["prompt_ids"] for row in world.batch.prompts for _ in range(2)]
    warmups = add_predictions(world.model, world.layout, world.constraints, ids, world.batch.warmups[:4], 3, names)
    return replace(world.batch, warmups=[*warmups, *world.batch.warmups[4:]])


def test_predictions_are_the_likeliest_targets_after_each_warmup(each_world):
    seen = {}

    def look(predictions, target):
        seen.update(predictions=predictions, target=target)
        return [0.0] * 4

    each_world.judge([look], batch=written(each_world, "predictions"))
    for row, text in enumerate(seen["predictions"]):
        prompt = each_world.batch.prompts[row // 2]["prompt_ids"]
        (alone,) = generate_targets(
            each_world.model,
            each_world.layout,
            each_world.constraints,
            [prompt],
            3,
            [each_world.batch.warmups[row].ids],
        )
        assert text == each_world.tokenizer.decode(alone.target, skip_special_tokens=True).strip()


def test_predictions_end_at_twice_the_longest_target(each_world):
    rows = each_world.batch.prompts  # targets of 3 and 2 tokens, the end token counted
    assert (prediction_limit(rows, 512), prediction_limit(rows, 4)) == (6, 4)


def test_sampled_predictions_are_drawn(each_world):
    """A dozen draws after one warmup are not all the same, and differ from the likeliest somewhere."""
    drawn = set()
    for _ in range(12):
        batch = written(each_world, "sampled_predictions")
        drawn.add(tuple(batch.warmups[0].predictions["sampled_predictions"]))
    assert len(drawn) > 3


def test_nobody_asks_nothing_is_written(world):
    board = world.board(["target_logprob", "prompt_overlap", lambda completions, **kwargs: [0.0] * 4])
    assert board.asked(("predictions", "sampled_predictions")) == ()
    assert written(world).warmups == world.batch.warmups
    asking = world.board([{"name": "prediction_metric", "kwargs": {"metric": "exact_match"}}])
    assert asking.asked(("predictions", "sampled_predictions")) == ("predictions",)
    with pytest.raises(ValueError, match="A reward needs predictions, but the caller made none"):
        world.judge(asking)


@pytest.mark.parametrize(
    ("metric", "scores"),
    [
        ("exact_match", [1.0, 0.0, 0.0]),
        ("bleu", [1.0, 0.0, (1 / 2) ** 0.5 * 0.5**0.5]),  # of "a c": one of two words, no pair: smoothed to 1/2
        ("rouge1", [1.0, 0.0, 0.5]),
        ("chrf++", [1.0, 0.0, None]),
    ],
)
def test_metrics_row_by_row_as_shares(metric, scores):
    got = PredictionMetric(metric)(predictions=["a b", "", "a c"], target=["a b", "a b", "a b"])
    for value, wanted in zip(got, scores, strict=True):
        assert 0 < value < 1 if wanted is None else value == pytest.approx(wanted)


def test_a_metric_that_cannot_be_a_reward_says_so_before_training():
    with pytest.raises(
        ValueError, match="The metric 'rouge' gives rouge1, rouge2, rougeL; give a metric of one number"
    ):
        PredictionMetric("rouge")
    with pytest.raises(ValueError, match=r"There is no metric 'chrf'. Did you mean 'chrf\+\+'"):
        PredictionMetric("chrf")


@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
def test_a_run_rewards_the_metric_of_its_predictions(kind, new_lab, tmp_path):
    """Greedy predictions draw nothing, so the log of the first update is that of a run without them."""
    from rl_warmup import WarmupConfig, WarmupTrainer

    logs = []
    for weight in (0.0, None):
        lab = new_lab(kind)
        extra = [] if weight is None else [{"name": "prediction_metric", "weight": 0.0, "kwargs": {"metric": "chrf++"}}]
        args = WarmupConfig(
            output_dir=str(tmp_path / f"{weight}"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, num_warmups=2,
            max_warmup_length=3, max_target_length=6, save_strategy="no", logging_steps=1, disable_tqdm=True,
            report_to="none", rewards=["target_logprob", *extra],
        )  # fmt: skip
        torch.manual_seed(0)
        trainer = WarmupTrainer(
            model=lab.model, processing_class=lab.tokenizer, args=args,
            train_dataset=[{"prompt": "a b c", "target": "d e"}, {"prompt": "f", "target": "g h"}],
        )  # fmt: skip
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert 0 <= logs[0].pop("rewards/prediction_metric/mean") <= 1
    assert logs[0] == pytest.approx(logs[1])

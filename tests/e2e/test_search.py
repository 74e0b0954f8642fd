"""`hyperparameter_search` and `model_init`: every trial is a trainer of its own, with its own settings and model."""

from __future__ import annotations

import pytest
import torch

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.method.reference import FILE
from rl_warmup.runtime.documents import read_jsonl


@pytest.fixture
def searchable(tmp_path, tiny, rows):
    def make(**settings):
        args = WarmupConfig(
            output_dir=str(tmp_path / "search"), max_steps=2, per_device_train_batch_size=4, use_cpu=True, num_warmups=2,
            max_warmup_length=4, save_strategy="no", logging_steps=1, disable_tqdm=True, report_to="none", guard="act",
            **({"proposals": ["reverse"], "readiness": -50.0} | settings),
        )  # fmt: skip
        return WarmupTrainer(
            model_init=lambda: tiny()[0], args=args, train_dataset=rows(16), eval_dataset=rows(4),
            processing_class=tiny()[1],
        )  # fmt: skip

    return make


def test_a_search_tries_our_settings_and_returns_the_best(searchable, tmp_path):
    trainer = searchable()
    asked, used = [], []

    def space(trial):
        chosen = {"num_warmups": trial.suggest_int("num_warmups", 2, 5), "tau": 2.0}
        asked.append(chosen["num_warmups"])
        return chosen | {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True)}

    def objective(metrics):
        used.append(trainer.rollout.num_warmups)
        return metrics["eval_loss"]

    best = trainer.hyperparameter_search(space, objective, n_trials=3, backend="optuna", direction="minimize")
    assert set(best.hyperparameters) == {"num_warmups", "learning_rate"}
    assert list(dict.fromkeys(used)) == list(dict.fromkeys(asked))
    for i in range(3):  # the switch of the cold start is each trial's own, and so is the posterior's temperature
        folder = tmp_path / "search" / f"run-{i}"
        assert [line["tau"] for line in read_jsonl(folder / "metrics.jsonl") if "tau" in line] == [2.0, 2.0]
        shown = {line["step"]: line["warmups"][0]["finish"] for line in read_jsonl(folder / "warmups.jsonl")}
        assert shown[1] == "proposal"
        assert shown[2] != "proposal"
    for name, value in best.hyperparameters.items():  # the documented way to go on
        setattr(trainer.args, name, value)
    trainer.train()
    assert trainer.rollout.num_warmups == best.hyperparameters["num_warmups"]
    assert trainer.constraints is trainer.rollout.constraints
    trainer._change_constraints(min_length=2)  # what the guard holds is this trainer's
    assert trainer.constraints is trainer.rollout.constraints
    assert len(read_jsonl(tmp_path / "search" / "metrics.jsonl")) == 2


def test_every_trial_has_samples_of_its_own(searchable, tmp_path):
    """Or trials at the same time would write over each other's, and one could not be resumed after the next."""
    trainer = searchable(proposals=["reference"])
    space = lambda trial: {"num_warmups": 2 + trial.number}  # noqa: E731
    trainer.hyperparameter_search(space, n_trials=2, backend="optuna", direction="minimize")
    headers = [read_jsonl(tmp_path / "search" / f"run-{i}" / FILE)[0] for i in range(2)]
    assert [header["num_warmups"] for header in headers] == [2, 3]
    assert not (tmp_path / "search" / FILE).exists()


def test_training_twice_with_a_model_init_gives_the_same_twice(searchable):
    trainer = searchable()
    results = []
    for _ in range(2):
        trainer.train()
        results.append([parameter.detach().clone() for parameter in trainer.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert len(trainer.state.log_history) == 3  # two updates and the end, not five


def test_a_setting_of_one_trial_ends_with_it(searchable, tmp_path):
    trainer = searchable()
    before = (trainer.args.tau, trainer.args.num_warmups)
    space = lambda trial: {"tau": 3.0} if trial.number == 0 else {"num_warmups": 3}  # noqa: E731
    trainer.hyperparameter_search(space, n_trials=2, backend="optuna", direction="minimize")
    taus = [read_jsonl(tmp_path / "search" / f"run-{i}" / "metrics.jsonl")[0]["tau"] for i in range(2)]
    assert taus == [3.0, before[0]]
    assert (trainer.args.tau, trainer.args.num_warmups) == before


@pytest.mark.parametrize("space", [{"output_dir": "x"}, {"learning_rate": "x"}, {"num_warmups": -1}])
def test_a_faulty_value_of_a_trial_is_named(searchable, space):
    with pytest.raises(ValueError, match=f"hp_space: {next(iter(space))}"):
        searchable().hyperparameter_search(lambda trial: space, n_trials=1, backend="optuna")


def test_a_trial_is_checked_like_a_recipe(searchable):
    with pytest.raises(ValueError, match="hp_space: 'num_warmup' is not a setting"):
        searchable().hyperparameter_search(lambda trial: {"num_warmup": 3}, n_trials=1, backend="optuna")


def test_a_model_or_a_model_init(tiny):
    for given in ({}, {"model": tiny()[0], "model_init": lambda: tiny()[0]}):
        with pytest.raises(ValueError, match="either a model or a model_init"):
            WarmupTrainer(**given)

"""`evaluate` and `predict` measure the rows they are given, each of them once, whatever the batch and whoever asks."""

from __future__ import annotations

from functools import partial

import pytest
from datasets import Dataset, DatasetDict

from tests.e2e.conftest import ledger_rows

VALIDATION, OTHER = ledger_rows(5, seed=5), ledger_rows(3, seed=9)
CLOCK = ("runtime", "per_second")


def figures(metrics: dict, prefix: str = "eval") -> dict[str, float]:
    """The figures under a prefix, clocks and epoch left out."""
    kept = {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items() if name.startswith(f"{prefix}_")}
    return {name: value for name, value in kept.items() if not any(clock in name for clock in CLOCK)}


def told(predictions: list[dict]) -> dict[str, float]:
    """Figures that tell which rows were predicted."""
    letters = sum(len(row["prompt"] + row["target"]) + row["prompt"].count("2") for row in predictions)
    return {"rows": len(predictions), "letters": letters, "written": sum(len(row["prediction"]) for row in predictions)}


@pytest.fixture
def make_trainer(make_trainer):
    """Of a model that writes few tokens."""
    return partial(make_trainer, max_target_length=5, target_truncation="right")


@pytest.fixture
def trainer(make_trainer):
    return make_trainer(eval_dataset=VALIDATION, compute_metrics=told, per_device_eval_batch_size=2)


@pytest.mark.parametrize(
    "form",
    [list, Dataset.from_list, iter, tuple, lambda rows: [{"prompt": r["prompt"], "completion": r["target"]} for r in rows]],
    ids=["list", "Dataset", "iterator", "tuple", "trl"],
)  # fmt: skip
def test_the_rows_given_are_measured_in_every_form(trainer, form):
    own, other = figures(trainer.evaluate()), figures(trainer.evaluate(form(OTHER)))
    assert (own["rows"], other["rows"]) == (5, 3)
    assert other["letters"] == told([{**row, "prediction": ""} for row in OTHER])["letters"]
    assert own["loss"] != pytest.approx(other["loss"], abs=1e-4)
    assert figures(trainer.evaluate(form(VALIDATION))) == own  # raw or encoded, asked for once or again
    assert figures(trainer.evaluate(trainer.eval_dataset)) == own


@pytest.mark.parametrize("form", [dict, lambda sets: DatasetDict({k: Dataset.from_list(v) for k, v in sets.items()})])
def test_each_set_of_a_dict_is_measured_under_its_name(trainer, form):
    metrics = trainer.evaluate(form({"five": VALIDATION, "three": OTHER}))
    assert figures(metrics, "eval_five") == figures(trainer.evaluate(VALIDATION))
    assert figures(metrics, "eval_three") == figures(trainer.evaluate(OTHER))
    metrics = trainer.evaluate(form({"three": OTHER}), metric_key_prefix="late")
    assert figures(metrics, "late_three") == figures(trainer.evaluate(OTHER))


def test_sets_of_validation_rows_are_measured_while_training(make_trainer):
    sets = {"five": VALIDATION, "three": OTHER}
    trainer = make_trainer(
        eval_dataset=sets, compute_metrics=told, eval_strategy="steps", eval_steps=1, max_steps=2,
        load_best_model_at_end=True, metric_for_best_model="three_loss", save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer.train()
    logs = trainer.state.log_history
    assert [log["eval_five_rows"] for log in logs if "eval_five_rows" in log] == [5, 5]
    assert [log["eval_three_rows"] for log in logs if "eval_three_rows" in log] == [3, 3]
    assert figures(trainer.evaluate("three"))["rows"] == 3
    assert trainer.state.best_metric == min(log["eval_three_loss"] for log in logs if "eval_three_loss" in log)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"load_best_model_at_end": True}, ["metric_for_best_model", "'loss'", "five_loss"]),
        ({"metric_for_best_model": "three_bogus"}, ["metric_for_best_model", "three_rows"]),
        ({"compute_metrics": lambda predictions: None}, ["compute_metrics", "NoneType"]),
        ({"compute_metrics": lambda predictions: {}["x"]}, ["compute_metrics", "KeyError"]),
        ({"compute_metrics": lambda predictions: {1: 2.0}}, ["compute_metrics", "1"]),
    ],
)  # fmt: skip
def test_what_validation_cannot_give_is_known_before_training(make_trainer, tmp_path, settings, named):
    sets = {"five": VALIDATION, "three": OTHER}
    given = {"compute_metrics": told, **settings}
    trainer = make_trainer(
        eval_dataset=sets, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, **given
    )
    with pytest.raises(ValueError, match=named[0]) as error:
        trainer.train()
    assert all(word in str(error.value) for word in named)
    assert not list((tmp_path / "run").glob("*"))


def test_a_search_ends_with_the_best_model_of_the_first_set(make_trainer):
    trainer = make_trainer(
        eval_dataset={"five": VALIDATION, "three": OTHER}, eval_strategy="steps", eval_steps=1, max_steps=2,
        proposals=["reference"], min_reading_updates=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.best_metric == min(
        log["eval_five_loss"] for log in trainer.state.log_history if "eval_five_loss" in log
    )


@pytest.mark.parametrize("objective", ["marginal", "sft"])
def test_predict_gives_the_rows_back_with_what_was_written(make_trainer, objective):
    trainer = make_trainer(compute_metrics=told, objective=objective)
    trainer.train()
    output = trainer.predict(OTHER)
    assert [row["prompt"] for row in output.predictions] == [row["prompt"] for row in OTHER]
    again = trainer.predict_rows(OTHER)
    for name in ("warmup_ids", "prediction_ids", "target"):
        assert [row[name] for row in output.predictions] == [row[name] for row in again]
    assert figures(output.metrics, "test") == figures(trainer.evaluate(OTHER))
    assert figures(trainer.predict(OTHER, metric_key_prefix="late").metrics, "late")["rows"] == 3
    assert not any(name.startswith("test") for name in trainer.predict(OTHER, metric_key_prefix="late").metrics)
    with pytest.raises(ValueError, match="three"):
        trainer.predict({"three": OTHER})


def test_rows_without_ids_are_known_by_their_number(trainer):
    """The same one, however they are asked for: predictions, text metrics, raw rows or encoded ones."""
    seen = []
    trainer.text_metrics = lambda predictions: seen.append([row["id"] for row in predictions]) or {}
    trainer.evaluate()
    trainer.evaluate(VALIDATION)
    for rows in (VALIDATION, trainer.eval_dataset):
        seen += [
            [row["id"] for row in found] for found in (trainer.predict(rows).predictions, trainer.predict_rows(rows))
        ]
    assert len(seen) == 8
    assert all(ids == ["0", "1", "2", "3", "4"] for ids in seen)


def test_predict_works_without_text_metrics(make_trainer):
    trainer = make_trainer()
    assert len(trainer.predict(OTHER).predictions) == 3
    assert figures(trainer.predict(OTHER).metrics, "test") == figures(trainer.evaluate(OTHER))


@pytest.mark.parametrize("kind", ["scratch-t5", "scratch-llama"])
@pytest.mark.parametrize("objective", ["marginal", "sft"])
def test_figures_do_not_depend_on_the_batch(make_trainer, kind, objective):
    seen = []
    for size in (1, 2, 3, 8):
        trainer = make_trainer(
            kind, objective=objective, compute_metrics=told, per_device_eval_batch_size=size,
            dataloader_drop_last=True, dataloader_persistent_workers=False,
        )  # fmt: skip
        seen.append(figures(trainer.evaluate(VALIDATION)))
    for other in seen[1:]:
        assert other == pytest.approx(seen[0], rel=1e-4, abs=1e-5)
    assert ("gain" in seen[0]) == (objective == "marginal")


def test_prompts_beyond_the_limit_are_cut_as_in_training(make_trainer):
    trainer = make_trainer(max_prompt_length=3, prompt_truncation="left", eval_dataset=VALIDATION)
    cut = [{**row, "prompt": " ".join(row["prompt"].split()[-2:])} for row in VALIDATION]
    assert figures(trainer.evaluate(VALIDATION)) == pytest.approx(figures(trainer.evaluate()), rel=1e-6)
    whole, same = (figures(trainer.evaluate(rows)) for rows in (VALIDATION, cut))
    assert whole == pytest.approx(same, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("some rows", "no set of rows"), (["a", "b"], "no set of rows"), ({"prompt": "a", "target": "b"}, "no set of rows"),
        (7, "no set of rows"), ([["a"]], "no set of rows"),
        ([], "no row"), ([{"prompt": "a"}], "target"), ([{"target": "a"}], "prompt"),
        ([{"prompt": "a+1", "target": " "}], "row 0"), ({"late": [{"prompt": "a"}]}, "late row 0"),
    ],
)  # fmt: skip
def test_what_is_no_set_of_rows_is_refused_by_name(trainer, rows, named):
    found = named
    for measure in (trainer.evaluate, trainer.predict):
        if isinstance(rows, str) and measure == trainer.evaluate:
            named = "no set of the trainer"  # a name, as in transformers
        with pytest.raises(ValueError, match=named):
            measure(rows)
        named = found


def test_without_validation_rows_evaluate_says_so(make_trainer):
    trainer = make_trainer()
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="predict"):
        trainer.predict(None)
    trainer.eval_dataset = OTHER  # raw rows, set later
    assert figures(trainer.evaluate()) == figures(trainer.evaluate(OTHER))


def test_evaluating_draws_nothing_from_the_training(trainer):
    import torch

    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    trainer.evaluate(OTHER)
    trainer.predict(OTHER)
    assert torch.equal(torch.rand(3), expected)

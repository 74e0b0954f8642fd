"""Recipes and settings: every fault is found, all at once, each with its remedy."""

from __future__ import annotations

from dataclasses import fields

import pytest
import yaml

from rl_warmup import options
from rl_warmup.config import SINGLE_WARMUP_OBJECTIVES, WarmupConfig, build_recipe, option_faults, read_recipe
from rl_warmup.method import proposals
from rl_warmup.method.objectives import RULES
from rl_warmup.options import TaskOptions, WarmupOptions

BASE = {"model_name_or_path": "scratch-t5", "output_dir": "run", "use_cpu": True}


def faults_of(**values) -> str:
    with pytest.raises(ValueError, match=".") as error:
        build_recipe({**BASE, **values})
    return str(error.value)


def recipe_of(**values):
    return build_recipe({**BASE, **values})


# ---------------------------------------------------------------------- names that live in two places


def test_lists_of_names_agree():
    """`options` imports nothing, so it reads them as text."""
    assert set(options.PROPOSALS) == {*proposals.PROPOSALS, *proposals.DRAWN, proposals.DRAFT}
    assert set(options.OBJECTIVES) == {"sft", *RULES}


def test_our_keys_hide_none_of_transformers():
    from transformers import TrainingArguments

    theirs = {f.name for f in fields(TrainingArguments)}
    assert not theirs & {f.name for f in fields(WarmupOptions)}
    assert not theirs & {f.name for f in fields(TaskOptions)}


def test_every_option_has_a_help_line():
    for cls in (WarmupOptions, TaskOptions):
        assert all(f.metadata["help"] for f in fields(cls))


def test_defaults_are_usable():
    assert option_faults(WarmupOptions()) == []
    recipe = recipe_of()
    assert (recipe.config.objective, recipe.config.num_warmups, recipe.config.remove_unused_columns) == (
        "marginal",
        4,
        False,
    )


# ---------------------------------------------------------------------- one fault, one sentence


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"num_warmup": 3}, "'num_warmup' is not a setting. Did you mean 'num_warmups'?"),
        ({"lerning_rate": 1}, "'lerning_rate' is not a setting. Did you mean 'learning_rate'?"),
        ({"xyzzy": 1}, "'xyzzy' is not a setting. See `rl-warmup train --help`."),
        (
            {"objective": "margnal"},
            "objective: There is no objective 'margnal'. Did you mean 'marginal'?",
        ),
        ({"objective": 3.5}, "objective: There is no objective '3.5'. Known are sft, marginal, "),
        (
            {"proposals": ["reverse", "keyword"]},
            "proposals: There is no proposal 'keyword'. Did you mean 'keywords'?",
        ),
        (
            {"min_reading_updates": 9, "max_reading_updates": 8},
            "min_reading_updates: 9 exceeds max_reading_updates 8;",
        ),
        ({"proposals": ["reference"], "num_warmups": 1}, "proposals: [reference] (the default) needs at least 2"),
        (
            {"proposals": ["stored"]},
            "stored_warmups: is None, and proposals is ['stored']; to train on a file's warmups",
        ),
        (
            {"stored_warmups": "c.jsonl"},
            "stored_warmups: is 'c.jsonl', and proposals is ['reference']; to train on a file's warmups",
        ),
        ({"beta": -0.1}, "beta: is -0.1, must be at least 0, or empty."),
        ({"reading_threshold": 1.5}, "reading_threshold: is 1.5, must be between 0 and 1."),
        ({"imitation": "both"}, "imitation: 'both' is not one of all, posterior."),
        ({"prompt_truncation": "middle"}, "prompt_truncation: 'middle' is not one of error, left, right, drop."),
        ({"predict_split": "train"}, "predict_split: 'train' is not one of validation, test."),
        ({"num_warmups": 0}, "num_warmups: is 0, must be at least 1."),
        ({"num_warmups": "many"}, "num_warmups: 'many' is not a whole number."),
        ({"num_warmups": 2.5}, "num_warmups: 2.5 is not a whole number."),
        ({"num_warmups": True}, "num_warmups: True is not a whole number."),
        ({"num_warmups": None}, "num_warmups: None is not a whole number."),
        ({"temperature": 0}, "temperature: is 0.0, must be at least 0.0001."),
        ({"temperature": "hot"}, "temperature: 'hot' is not a number."),
        ({"temperature": float("nan")}, "temperature: is nan, must be at least 0.0001."),
        ({"top_p": 0}, "top_p: is 0.0, must be at least 1e-06 and at most 1."),
        ({"top_p": 1.2}, "top_p: is 1.2, must be at least 1e-06 and at most 1."),
        ({"tau": -1}, "tau: is -1.0, must be at least 0.0001."),
        ({"tsallis_q": 1.5}, "tsallis_q: is 1.5, must be between 0 and 1."),
        ({"empty_share": -0.1}, "empty_share: is -0.1, must be between 0 and 1."),
        ({"uniform_target_share": 2}, "uniform_target_share: is 2.0, must be between 0 and 1."),
        ({"readiness": 0.5}, "readiness: is 0.5, must be below 0 (nats per token)."),
        ({"anchor_weight": -1, "proposals": ["head"]}, "anchor_weight: is -1.0, must be at least 0."),
        ({"max_warmup_length": 0, "min_warmup_length": 0}, "max_warmup_length: is 0, must be at least 1."),
        ({"min_warmup_length": -1}, "min_warmup_length: is -1, must be at least 0."),
        ({"min_warmup_length": 9, "max_warmup_length": 8}, "min_warmup_length: 9 exceeds max_warmup_length 8;"),
        ({"target_ess": 5}, "target_ess: 5.0 must lie between 1 and num_warmups (4)."),
        ({"target_ess": 0.5}, "target_ess: 0.5 must lie between 1 and num_warmups (4)."),
        ({"backward_samples": 0}, "backward_samples: 0 must lie between 1 and num_warmups (4)"),
        ({"backward_samples": 5}, "backward_samples: 5 must lie between 1 and num_warmups (4)"),
        (
            {"proposals": [], "proposal_only": True},
            "proposals: is empty, but proposal_only or anchor_weight need at least one proposal.",
        ),
        (
            {"proposals": [], "anchor_weight": 0.1},
            "proposals: is empty, but proposal_only or anchor_weight need at least one proposal.",
        ),
        ({"target_truncation": "left"}, "target_truncation: 'left' would cut the beginning of the answer"),
        ({"bf16": "perhaps"}, "bf16: 'perhaps' is not true or false."),
        ({"task_kwargs": 3}, "task_kwargs: 3 is not a mapping."),
    ],
)
def test_one_fault_is_one_sentence(values, complaint):
    message = faults_of(**values)
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize("objective", sorted(set(RULES) - set(SINGLE_WARMUP_OBJECTIVES)))
def test_a_group_of_one_is_refused_where_warmups_are_compared(objective):
    message = faults_of(objective=objective, num_warmups=1)
    assert message == (
        f"num_warmups: is 1, but the objective {objective!r} compares warmups of a group; give at least 2."
    )


@pytest.mark.parametrize("objective", SINGLE_WARMUP_OBJECTIVES)
def test_a_group_of_one_is_fine_elsewhere(objective):
    assert recipe_of(objective=objective, num_warmups=1, proposals=[]).config.num_warmups == 1
    if objective != "sft":  # by default a group is read first
        assert faults_of(objective=objective, num_warmups=1).startswith("num_warmups: is 1, but proposals: [reference]")


def test_a_missing_model_is_named():
    with pytest.raises(ValueError, match="model_name_or_path is missing. Give a folder, a name on the hub, scratch-t5"):
        build_recipe({"output_dir": "run"})


def test_all_faults_come_at_once():
    message = faults_of(num_warmup=3, objective="margnal", temperature=-1, top_p="x", learning_rate="fast")
    lines = message.splitlines()
    assert lines[0] == "5 settings cannot be used:"
    assert len(lines) == 6
    for key in ("num_warmup", "objective", "temperature", "top_p", "learning_rate"):
        assert sum(key in line for line in lines) >= 1, key


def test_the_config_itself_checks_too():
    """Python users do not pass through a recipe."""
    with pytest.raises(ValueError, match=r"2 settings cannot be used:\n.*tau: is 0.*\n.*num_warmups: is 1"):
        WarmupConfig(output_dir="run", tau=0, objective="grpo", num_warmups=1, use_cpu=True)
    assert WarmupConfig(output_dir="run", num_warmups=2, use_cpu=True).num_warmups == 2


# ---------------------------------------------------------------------- values as YAML and flags give them


@pytest.mark.parametrize(("given", "read"), [("1e-4", 1e-4), (1, 1.0), ("3", 3.0), (2.5e-3, 2.5e-3)])
def test_numbers_are_read_however_yaml_gives_them(given, read):
    value = recipe_of(learning_rate=given).config.learning_rate
    assert value == read
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("values", "key", "read"),
    [
        ({"num_warmups": "8"}, "num_warmups", 8),
        ({"proposals": "head"}, "proposals", ["head"]),
        ({"max_prompt_length": None}, "max_prompt_length", None),
        ({"target_ess": "2.5"}, "target_ess", 2.5),
        ({"rewards": [{"name": "target_logprob", "weight": 2}]}, "rewards", [{"name": "target_logprob", "weight": 2}]),
        ({"seed": 7}, "seed", 7),
        ({"separator": "<extra_id_1>"}, "separator", "<extra_id_1>"),
    ],
)
def test_values_take_the_type_of_their_field(values, key, read):
    assert getattr(recipe_of(**values).config, key) == read


@pytest.mark.parametrize("text", ["no", '"no"', "off"])
def test_a_strategy_may_be_the_word_no(tmp_path, text):
    """YAML reads it as false."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{yaml.safe_dump(BASE)}save_strategy: {text}\n")
    assert recipe_of(save_strategy=yaml.safe_load(text)).config.save_strategy == "no"
    assert read_recipe(path).config.save_strategy == "no"


@pytest.mark.parametrize(
    "flags",
    [
        ["--tau", "2", "--proposals", "[head, reverse]", "--learning_rate", "1e-4"],
        ["--tau=2", "--proposals=[head, reverse]", "--learning_rate=1e-4"],
        ["tau=2", "proposals=[head, reverse]", "learning_rate=1e-4"],
    ],
)
def test_flags_in_all_their_forms_override_the_file(tmp_path, flags):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**BASE, "tau": 9, "num_warmups": 3}))
    config = read_recipe(path, flags).config
    assert (config.tau, config.proposals, config.learning_rate) == (2.0, ["head", "reverse"], 1e-4)
    assert config.num_warmups == 3


@pytest.mark.parametrize("flags", [["tau"], ["--tau", "1", "stray"]])
def test_flags_that_cannot_be_read(flags):
    with pytest.raises(ValueError, match="Cannot read '.*': give settings as `--key value` or `key=value`"):
        read_recipe(None, flags)


def test_flags_alone_are_a_recipe_and_their_faults_are_the_same():
    recipe = read_recipe(
        None, ["model_name_or_path=scratch-llama", "output_dir=x", "use_cpu=true", "scratch={width: 8}"]
    )
    assert recipe.model.model_name_or_path == "scratch-llama"
    assert recipe.task.scratch == {"width": 8}
    with pytest.raises(ValueError, match="'num_warmup' is not a setting. Did you mean 'num_warmups'"):
        read_recipe(None, ["model_name_or_path=scratch-t5", "--num-warmup=2"])


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("a: [1", "is not valid YAML"), ("- a\n- b\n", "must be a mapping of settings"), ("", "must be a mapping")],
)
def test_files_that_are_no_recipe(tmp_path, text, complaint):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_recipe(path)
    with pytest.raises(ValueError, match="nowhere.yaml does not exist"):
        read_recipe(tmp_path / "nowhere.yaml")


def test_a_saved_recipe_is_the_same_recipe(tmp_path):
    recipe = recipe_of(tau=2, proposals=["head"], learning_rate="1e-4", task="ledger", task_kwargs={"length": 3})
    again = read_recipe(recipe.save(tmp_path))
    for f in fields(WarmupOptions):
        assert getattr(again.config, f.name) == getattr(recipe.config, f.name)
    assert again.task == recipe.task
    assert again.config.learning_rate == recipe.config.learning_rate
    assert again.save(tmp_path / "b").read_text() == (tmp_path / "recipe.yaml").read_text()

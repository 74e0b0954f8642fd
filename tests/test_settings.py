"""Every setting is judged: it does what it says, or is refused with its reason; numbers are numbers."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path

import numpy as np
import pytest
import transformers
import trl
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from rl_warmup.config import WarmupConfig, build_recipe, without_effect
from rl_warmup.options import CONTROLS, TaskOptions, WarmupOptions
from rl_warmup.runtime import compat, settings
from rl_warmup.runtime.settings import (
    ACCELERATOR,
    ACCELERATOR_KEYS,
    EFFECTIVE,
    NEEDS,
    RANGES,
    REFUSED,
    REFUSED_VALUES,
    SCRATCH,
    Range,
)
from rl_warmup.runtime.values import defaults_of

BASE = {"model_name_or_path": "scratch-t5", "output_dir": "run", "use_cpu": True}
INHERITED = (TrainingArguments, compat.model_config_class())
DEFAULTS = defaults_of([WarmupConfig, compat.model_config_class()])
PACKAGE = Path(settings.__file__).parents[1]
# another value than the default, where its type does not give one
OTHER = {
    "torch_compile_backend": "eager", "torch_compile_mode": "default", "liger_kernel_config": {"rope": True},
    "include_for_metrics": ["inputs"], "label_names": ["labels"], "length_column_name": "size", "eval_accumulation_steps": 2,
    "label_smoothing_factor": 0.1, "neftune_noise_alpha": 5.0, "include_num_input_tokens_seen": "all",
    "lora_target_modules": ["q"], "lora_target_parameters": ["q"], "lora_modules_to_save": ["q"],
    "lora_task_type": "SEQ_2_SEQ_LM",
    "bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": "uint8", "hub_model_id": "a/b", "hub_strategy": "every_save",
    "hub_revision": "x", "dataloader_prefetch_factor": 2, "dataloader_multiprocessing_context": "fork", "fsdp_config": {"a": 1},
    "activation_checkpointing_kwargs": {"use_reentrant": False}, "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "project": "mine", "trackio_space_id": "a/b", "trackio_bucket_id": "a/b", "trackio_static_space_id": "a/b",
    "lora_dropout": 0.25, "debug": "underflow_overflow",
}  # fmt: skip


def other(name):
    if name in OTHER:
        return OTHER[name]
    return not DEFAULTS[name] if isinstance(DEFAULTS[name], bool) else DEFAULTS[name] + 1


def faults_of(**values) -> list[str]:
    with pytest.raises(ValueError, match=".") as caught:
        build_recipe({**BASE, **values})
    lines = str(caught.value).splitlines()
    return [line.removeprefix("  - ") for line in lines[1:]] if len(lines) > 1 else lines


def keys_of(faults: list[str]) -> list[str]:
    return [fault.partition(":")[0] for fault in faults]


# ---------------------------------------------------------------------- the table


def test_every_inherited_setting_is_judged_once():
    """If this fails after an update of transformers or trl: find out what the new setting does here, and add it to `settings`."""
    known = {f.name for cls in INHERITED for f in dataclasses.fields(cls)}
    assert known - EFFECTIVE.keys() - REFUSED.keys() == set()
    assert set(EFFECTIVE) & set(REFUSED) == set()
    assert {*NEEDS, *NEEDS.values(), *(name for name, _ in REFUSED_VALUES)} <= known


def test_effective_settings_are_read_where_the_table_says():
    trainer = "".join(path.read_text() for path in Path(transformers.__file__).parent.glob("trainer*.py"))
    trainer += "".join(path.read_text() for path in Path(transformers.__file__).parent.glob("integrations/*.py"))
    arguments = inspect.getsource(TrainingArguments)
    peft = inspect.getsource(trl.get_peft_config) + inspect.getsource(trl.get_quantization_config)
    for name, where in EFFECTIVE.items():
        if where == "Trainer":
            assert re.search(rf"args\.{name}\b", trainer), name
        elif where == "TrainingArguments":
            assert re.search(rf"self\.{name}\b|\"{name}\"", arguments) or f"args.{name}" in trainer, name
        elif where == "compat.py":
            assert f".{name}" in peft or f".{name}" in next(PACKAGE.rglob(where)).read_text(), name
        elif where.endswith(".py"):
            assert f".{name}" in next(PACKAGE.rglob(where)).read_text(), name


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "parallelism_config"])  # an object: in no recipe
def test_a_refused_setting_is_refused_in_recipes_and_in_python(name):
    faults = faults_of(**{name: other(name)})
    assert keys_of(faults) == [name]
    assert REFUSED[name] in faults[0]
    if name in {f.name for f in dataclasses.fields(TrainingArguments)}:
        with pytest.raises(ValueError, match=f"^{name}: "):
            WarmupConfig(output_dir="run", use_cpu=True, **{name: other(name)})


@pytest.mark.parametrize(
    "name", [name for name in NEEDS if name != "trackio_static_space_id"]
)  # its type varies by version
def test_a_setting_without_the_one_it_needs_is_refused(name):
    off = {"save_strategy": "no"} if NEEDS[name] == "save_strategy" else {}
    assert keys_of(faults_of(**{name: other(name)}, **off)) == [name]


def test_refused_values_and_void_pairs():
    assert keys_of(faults_of(train_sampling_strategy="group_by_length")) == ["train_sampling_strategy"]
    assert keys_of(faults_of(use_peft=True, lora_task_type="SEQ_CLS")) == ["lora_task_type"]
    assert keys_of(faults_of(lr_scheduler_type="constant", warmup_steps=3)) == ["warmup_steps"]
    assert keys_of(faults_of(use_peft=True, lora_dropout=0.1)) == ["lora_dropout"]
    assert keys_of(faults_of(optim="sgd", adam_beta1=0.5)) == ["adam_beta1"]
    assert keys_of(faults_of(optim_args="momentum=0.9")) == ["optim_args"]
    assert keys_of(faults_of(optim_target_modules=["q"])) == ["optim_target_modules"]
    for key, (allowed, _) in ACCELERATOR.items():
        assert keys_of(faults_of(accelerator_config={key: not allowed})) == ["accelerator_config"]
    for config in (
        {"bogus": 1}, {"gradient_accumulation_kwargs": {"num_steps": 4}}, {"gradient_accumulation_kwargs": {"bogus": 4}},
        {"gradient_accumulation_kwargs": 3}, {"non_blocking": "x"},
    ):  # fmt: skip
        assert keys_of(faults_of(accelerator_config=config)) == ["accelerator_config"]
        with pytest.raises(ValueError, match="^accelerator_config: "):
            WarmupConfig(output_dir="run", use_cpu=True, accelerator_config=config)
    assert keys_of(faults_of(controls=["shuffled", "shuffled"], metrics=["bleu", "rouge", "bleu"])) == [
        "metrics",
        "controls",
    ]
    given = {"non_blocking": True, "gradient_accumulation_kwargs": {"sync_each_batch": True}}
    build_recipe({**BASE, "accelerator_config": given})
    build_recipe({**BASE, "use_peft": True, "lora_dropout": 0.1, "disable_dropout": False})
    build_recipe({**BASE, "optim": "sgd", "optim_args": "momentum=0.9"})
    build_recipe({**BASE, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3, "eval_strategy": "no"})


@pytest.mark.parametrize(
    ("given", "void"),
    [
        ({"tsallis_q": 0.3}, {"tsallis_q"}), ({"tsallis_q": 0.3, "objective": "tsallis"}, set()),
        ({"eval_steps": 5}, {"eval_steps"}), ({"eval_steps": 5, "eval_strategy": "steps"}, set()),
        ({"metric_for_best_model": "x", "greater_is_better": True}, {"metric_for_best_model", "greater_is_better"}),
        ({"metric_for_best_model": "x", "eval_strategy": "epoch"}, set()),
        ({"readiness": -1.0, "reading_threshold": 0.1, "min_reading_updates": 3}, {"readiness"}),
        ({"proposals": [], "readiness": -1.0, "reading_threshold": 0.1, "min_reading_updates": 3},
         {"readiness", "reading_threshold", "min_reading_updates"}),
        ({"readiness": -1.0, "reading_threshold": 0.1, "proposals": ["reverse"]}, {"reading_threshold"}),
        ({"readiness": -1.0, "reading_threshold": 0.1, "proposals": ["reference"]}, {"readiness"}),
        ({"beta": 0.1, "readiness": -1.0, "proposals": ["head"], "proposal_only": True}, {"beta", "readiness"}),
        ({"proposals": ["reference"], "proposal_only": True, "beta": 0.1, "anchor_weight": 0.5, "target_ess": 1.5, "guard": "act",
          "min_reading_updates": 1, "max_reading_updates": 9, "tau": 2.0, "uniform_target_share": 0.1, "backward_samples": 1},
         {"beta", "anchor_weight", "target_ess", "guard", "min_reading_updates", "max_reading_updates"}),
        ({"proposals": ["reference"], "objective": "grpo", "max_steps": 100, "anchor_weight": 0.5}, {"objective"}),
        ({"proposals": ["reference"], "objective": "grpo", "max_steps": 101}, set()),
        ({"proposals": ["reverse"], "objective": "sft", "max_steps": 9}, {"proposals"}),
        ({"proposals": [], "objective": "sft", "max_steps": 9}, set()),
        ({"beta": 0.1, "tau": 2.0, "num_warmups": 1, "objective": "sft"}, {"beta", "tau", "num_warmups"}),
        ({"save_strategy": "no", "save_steps": 3, "save_total_limit": 2}, {"save_steps", "save_total_limit"}),
        ({"save_strategy": "epoch", "save_steps": 3, "save_total_limit": 2}, {"save_steps"}),
        ({"save_steps": 3, "save_total_limit": 2, "logging_steps": 3, "num_train_epochs": 7}, set()),
        ({"save_strategy": "no", "save_total_limit": 2, "proposals": ["reference"], "eval_strategy": "epoch"}, set()),
        ({"logging_strategy": "no", "logging_steps": 3}, {"logging_steps"}),
        ({"logging_strategy": "epoch", "logging_steps": 3, "eval_strategy": "steps"}, set()),  # eval_steps become 3
        ({"max_steps": 2, "num_train_epochs": 7}, {"num_train_epochs"}),
        ({"hub_token": "x", "hub_private_repo": True}, {"hub_token", "hub_private_repo"}),
        ({"hub_token": "x", "hub_private_repo": True, "push_to_hub": True}, set()),
        ({"model_name_or_path": "t5-small", "scratch": {"width": 16}}, {"scratch"}), ({"scratch": {"width": 16}}, set()),
    ],
)  # fmt: skip
def test_settings_without_effect_are_known(given, void):
    recipe = build_recipe({**BASE, **given})
    assert set(without_effect(recipe.config, recipe.model, recipe.task)) == void


def test_what_a_run_always_does_cannot_be_switched_off():
    assert keys_of(faults_of(do_train=False, do_predict=False)) == ["do_train", "do_predict"]
    assert keys_of(faults_of(do_eval=False, eval_strategy="steps")) == ["do_eval"]
    assert keys_of(faults_of(bf16=True, fp16=True)) == ["fp16"]
    assert keys_of(faults_of(debug=["tpu_metrics_debug"])) == ["debug"]
    build_recipe({**BASE, "do_train": True, "do_predict": True, "do_eval": False})


def test_the_keys_of_an_accelerator_config_are_known(tmp_path):
    assert set(ACCELERATOR_KEYS) == {f.name for f in dataclasses.fields(AcceleratorConfig)}
    (tmp_path / "a.json").write_text('{"gradient_accumulation_kwargs": {"num_steps": 4}}')
    with pytest.raises(ValueError, match="num_steps"):
        WarmupConfig(output_dir="run", use_cpu=True, accelerator_config=str(tmp_path / "a.json"))


def test_an_unknown_new_setting_is_refused(monkeypatch):
    monkeypatch.delitem(settings.EFFECTIVE, "weight_decay")
    assert keys_of(faults_of(weight_decay=0.5)) == ["weight_decay"]


def test_a_config_can_be_made_again_from_itself():
    """TrainingArguments rewrites some of its own values."""
    config = WarmupConfig(output_dir="run", use_cpu=True, eval_strategy="steps", eval_steps=5, logging_steps=5)
    again = dataclasses.replace(config, eval_strategy="no")
    assert (again.eval_steps, again.eval_strategy.value) == (5, "no")


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_warmup_length": 2.5}, "max_warmup_length"),
        ({"num_warmups": "x"}, "num_warmups"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"max_steps": None}, "max_steps"),
        ({"tau": True}, "tau"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "lr_scheduler_kwargs"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 1}}, "lr_scheduler_kwargs"),
    ],
)
def test_what_is_no_setting_of_its_kind_is_refused_in_python_and_in_recipes(given, named):
    with pytest.raises(ValueError, match=f"^{named}: "):
        WarmupConfig(output_dir="run", use_cpu=True, **given)
    assert keys_of(faults_of(**given)) == [named]


def test_numbers_of_other_kinds_are_read_in_python():
    config = WarmupConfig(output_dir="run", use_cpu=True, learning_rate="0.1", num_warmups=np.int64(3), max_steps=20.0)
    assert (config.learning_rate, config.num_warmups, config.max_steps) == (0.1, 3, 20)
    assert [type(value) for value in (config.learning_rate, config.num_warmups, config.max_steps)] == [float, int, int]
    cosine = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}}
    assert WarmupConfig(output_dir="run", use_cpu=True, **cosine).lr_scheduler_kwargs == {"num_cycles": 2}


def numeric() -> dict[str, set]:
    found = {}
    for cls in (*INHERITED, WarmupOptions, TaskOptions):
        for name, hint in typing.get_type_hints(cls).items():
            kinds = {int, float} & set(typing.get_args(hint) or (hint,))
            if kinds and name not in REFUSED and name != "local_rank":
                found[name] = kinds
    return found


def test_every_number_has_a_range():
    assert numeric().keys() - {f for f in numeric() if f.startswith("_")} == RANGES.keys()


@pytest.mark.parametrize("name", numeric())
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), 10**400, -(10**400), 10**5000, 1e300], ids=range(7)
)
def test_numbers_are_finite_and_of_this_world(name, value):
    whole = numeric()[name] == {int}
    if value == 1e300 and not whole and RANGES[name].high == float("inf"):
        return  # where there is no upper bound it is a number like others
    values = {"use_peft": True} if name.startswith("lora") else {}
    faults = faults_of(**values, **{name: value})
    assert name in keys_of(faults)
    assert all(len(fault) < 300 for fault in faults)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 0), ("max_steps", -2), ("max_steps", 10**40), ("gradient_accumulation_steps", -1),
        ("gradient_accumulation_steps", 0), ("per_device_train_batch_size", 0), ("num_warmups", 1000000), ("seed", -1),
        ("seed", 2**32), ("data_seed", -1), ("learning_rate", -1e-4), ("warmup_steps", -1), ("num_train_epochs", 0),
        ("weight_decay", -0.1), ("adam_beta1", 1.0), ("adam_beta2", 1.5), ("logging_steps", 0), ("eval_steps", -5),
        ("save_steps", 0), ("save_total_limit", 0), ("max_grad_norm", -1), ("dataloader_num_workers", -1),
        ("max_prompt_length", 1), ("hang_timeout", 0), ("log_warmups", -1), ("num_eval_warmups", 10**6),
    ],
)  # fmt: skip
def test_numbers_outside_their_range(name, value):
    assert name in keys_of(faults_of(**{name: value}))
    inherited = name in {f.name for f in dataclasses.fields(WarmupConfig)}
    with pytest.raises(ValueError, match=f"{name}: is "):
        WarmupConfig(output_dir="run", use_cpu=True, **{name: value}) if inherited else None


@pytest.mark.parametrize(
    ("allowed", "value", "words"),
    [
        (Range(1), 0, "at least 1"), (Range(1, 5), 6, "at most 5"), (Range(0, 1), 2, "between 0 and 1"),
        (Range(0, 1, True), 0, "above 0 and at most 1"), (Range(0, 1, below=True), 1, "at least 0 and below 1"),
        (Range(-9, 0, below=True), 0, "below 0"), (Range(0, 1), 0.5, None),
        (Range(1, also=", or empty"), 0, "at least 1, or empty"),
    ],
)  # fmt: skip
def test_what_a_range_says(allowed, value, words):
    assert allowed.fault(value) == words


# ---------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_dir", ["a"]), ("output_dir", {"a": 1}), ("output_dir", False), ("output_dir", ""), ("task", ["file"]),
        ("model_name_or_path", ""), ("model_name_or_path", ["a"]), ("metrics", [5]), ("metrics", [{"nam": "bleu"}]),
        ("metrics", [{"name": "bleu", "kwargs": 3}]), ("rewards", [5]), ("rewards", [{"weight": 1}]), ("controls", [5]),
        ("controls", ["shufled"]), ("controls", "other_run"), ("task_kwargs", "text"), ("task_kwargs", {1: 2}),
        ("eval_strategy", "sometimes"), ("lr_scheduler_type", "linaer"), ("optim", "adamm"), ("run_name", True),
        ("deepspeed", 5), ("report_to", [5]), ("bf16", "--seed"), ("show_progress", 1), ("separator", ["a"]),
    ],
)  # fmt: skip
def test_values_of_a_wrong_type(name, value):
    assert keys_of(faults_of(**{name: value})) == [name]


@pytest.mark.parametrize("key", SCRATCH)
@pytest.mark.parametrize("value", ["x", -1, 0, 1.5, True, [2], 10**400, float("inf")])
def test_every_size_of_a_scratch_model_is_checked(key, value):
    faults = faults_of(scratch={key: value})
    assert keys_of(faults) == ["scratch"]
    assert key in faults[0]


def test_a_missing_model_and_everything_else_at_once():
    faults = faults_of(
        model_name_or_path=None, max_steps=0, output_dir=["a"], label_smoothing_factor=0.1, lora_r=4, xyz=1
    )
    assert len(faults) == 6
    for key in ("model_name_or_path", "max_steps", "output_dir", "label_smoothing_factor", "lora_r", "xyz"):
        assert sum(key in fault for fault in faults) == 1, key


def test_what_transformers_and_trl_refuse_comes_in_the_same_list():
    assert len(faults_of(use_peft=True, load_in_4bit=True, load_in_8bit=True, max_steps=0)) == 2
    with pytest.raises(ValueError, match="lr_scheduler_type: reduce_lr_on_plateau .* Set eval_strategy"):
        build_recipe({**BASE, "lr_scheduler_type": "reduce_lr_on_plateau"})


def test_names_of_controls_agree():
    from rl_warmup.inference import controls

    assert {*CONTROLS, "other_run"} == set(controls.CONTROLS)


def test_a_secret_is_in_no_error():
    assert "hf_S" not in " ".join(faults_of(hub_token={"hf_S": 1}))


@pytest.mark.parametrize("given", [{"eval_steps": 50}, {"eval_steps": 2, "eval_delay": 9}])
def test_nothing_to_choose_the_best_model_from_is_refused(given):
    saves = {"eval_strategy": "steps", "save_strategy": "steps", "save_steps": given["eval_steps"], "max_steps": 6}
    assert keys_of(faults_of(**saves, **given, load_best_model_at_end=True)) == ["load_best_model_at_end"]
    build_recipe({**BASE, **saves, **given})
    build_recipe({**BASE, **saves, "eval_steps": 2, "save_steps": 2, "eval_delay": 3, "load_best_model_at_end": True})

"""Config, trainer and generator as people get them wrong in Python; one ValueError each, never another error."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch.utils.data import IterableDataset
from transformers import AutoModelForSeq2SeqLM, EarlyStoppingCallback, T5EncoderModel, TrainerCallback

from rl_warmup import WarmupConfig, WarmupGenerator, WarmupTrainer
from rl_warmup.models.loading import load_model
from tests.robustness.conftest import ROWS, WORDS, named, refused

SMALL = {
    "max_steps": 1, "num_warmups": 2, "max_warmup_length": 3, "max_target_length": 3, "use_cpu": True, "disable_tqdm": True,
    "save_strategy": "no", "report_to": "none", "per_device_train_batch_size": 4,
}  # fmt: skip
FRAME = SimpleNamespace(columns=["prompt"], iloc=None, __iter__=None)  # what tells a pandas DataFrame


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with its tokenizer in `base`, and a run in `run`."""
    place = tmp_path_factory.mktemp("api")
    size = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
    model, tokenizer = load_model("scratch-t5", lambda: [" ".join(WORDS)] * 3, size)
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    WarmupTrainer(str(place / "base"), WarmupConfig(output_dir=str(place / "run"), **SMALL), ROWS).save_model()
    return place


@pytest.fixture(scope="module")
def generator(folder) -> WarmupGenerator:
    return WarmupGenerator.from_pretrained(folder / "run")


CONFIG: dict[str, tuple[Any, ...]] = {
    "is not a list": (("rewards", None), ("proposals", None)),
    "is not true or false": (("overwrite", "false"), ("disable_dropout", "no"), ("bf16", "no"), ("use_cpu", "x"), ("overwrite", 1)),
    "is not a text": (("separator", []), ("chat_template", None), ("system", []), ("output_dir", b"x")),
    "is empty": (("separator", ""), ("output_dir", "")),
    "is not a mapping": (("model_card", "x"), ("chat_template_kwargs", 5), ("lr_scheduler_kwargs", 5)),
    "is not a mapping with texts as keys": (("chat_template_kwargs", {1: 2}),),
    "is not one of": (("log_level", "loud"), ("eval_strategy", "x"), ("save_strategy", "x"), ("lr_scheduler_type", "x")),
    "is no name": (("proposals", {"reverse"}), ("proposals", iter(["reverse"]))),
    "is not a whole number": (("log_warmups", np.array([4, 4])), ("num_warmups", np.array([4, 4])), ("num_warmups", torch.tensor([2, 3])), ("seed", np.array([1]))),
    "is not a number": (("temperature", np.array([0.5, 0.5])),),
    "use num_warmups": (("num_generations", 4),), "use learning_rate": (("lr", 1e-4),), "Did you mean 'learning_rate'": (("learning_rat", 1),),
    "disable_tqdm": (("show_progress", False),), "compute_metrics": (("metrics", ["chrf++"]),), "mine.py:refused": (("objective", refused),), "mine.py:name": (("objective", partial(refused)),),
    "go to WarmupTrainer": (("model_name_or_path", "t5"), ("torch_dtype", "bfloat16"), ("dataset_name", "x"), ("task", "ledger")),
    "deepspeed: 5 is not": (("deepspeed", 5),),
    "accelerator_config: 5 is not": (("accelerator_config", 5),),
}  # fmt: skip
CONFIG_ROWS = [(name, value, said) for said, pairs in CONFIG.items() for name, value in pairs]


@pytest.mark.parametrize(("name", "value", "said"), CONFIG_ROWS, ids=named)
def test_a_setting(name, value, said, tmp_path):
    refused(lambda: WarmupConfig(**{"output_dir": str(tmp_path), "use_cpu": True, name: value}), name, said)


def test_numbers_tuples_and_paths_of_other_libraries_are_taken(tmp_path):
    args = WarmupConfig(
        output_dir=tmp_path, use_cpu=True, num_warmups=np.int64(3), temperature=torch.tensor(0.5), overwrite=np.bool_(True),
        proposals=("reverse",), rewards=np.array(["gain"]), eval_strategy=False,
    )  # fmt: skip
    assert (args.output_dir, args.num_warmups, args.temperature) == (str(tmp_path), 3, 0.5)
    assert (args.overwrite, args.proposals, args.rewards) == (True, ["reverse"], ["gain"])
    assert type(args.num_warmups) is int


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("num_warmups", 0, "must be at least 1"), ("temperature", 0, "must be at least"), ("max_warmup_length", None, "is not a whole"),
     ("proposals", ["nosuch"], "no proposal 'nosuch'"), ("objective", "x", "no objective 'x'")],
)  # fmt: skip
def test_settings_that_were_changed_since(folder, tmp_path, name, value, said):
    args = WarmupConfig(output_dir=str(tmp_path), **SMALL)
    setattr(args, name, value)
    refused(lambda: WarmupTrainer(str(folder / "base"), args, ROWS), name, said)


def sgd(weight: Any = None) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True) if weight is None else weight], lr=1.0)


class Watcher(TrainerCallback):
    def __init__(self, what):
        self.what = what


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.cycle(ROWS)


LORA = {"target_modules": ["q"]}
U, A = {"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}
ALONE = torch.optim.lr_scheduler.LambdaLR(sgd(), lambda step: 1.0)
TRAINER: list[tuple[dict[str, Any], str]] = [
    *(({"train_dataset": rows}, said) for rows, said in [
        (5, "was given 5"), (Path("rows.jsonl"), "takes one set of rows"), (b"x", "takes one set of rows"), (dict, "takes one set"),
        (object(), "takes one set of rows"), (["a"], "row 0: is a str ('a'), no row"), ([*ROWS, None], "row 8: is a NoneType"),
        ([("a", "b")], "row 0: is a tuple"), (torch.ones(2), "row 0: is a Tensor"),
        ([{"prompt": [], "target": "alpha"}], "the prompt is empty"),
        *(([{"prompt": [message], "target": "alpha"}], "message 0 of the prompt is") for message in (
            {"from": "human", "value": "alpha"}, {"role": "user"}, {"role": "user", "content": [{"type": "text", "text": "alpha"}]})),
        ([{"prompt": [U], "completion": [A, U, A]}], "the completion has 3 messages"),
        ([{"prompt": [U], "completion": [{**A, "content": None}]}], "or one without a text"),
    ]),
    ({"eval_dataset": {"a": {"b": ROWS}}}, "'a' is {'b'"), ({"eval_dataset": {"a": ROWS, "b": None}}, "'b' is None"),
    ({"eval_dataset": {"a": ROWS, 1: {}}}, "1 is {}"),
    *(({"model": model}, said) for model, said in [
        (5, "is a int, no model"), ({"a": 1}, "is a dict"), (AutoModelForSeq2SeqLM, "is a type"), (torch.nn.Linear(2, 2), "is a Linear"),
    ]),
    ({"model": None, "model_init": lambda: None}, "model_init: returned a NoneType"), ({"model": None, "model_init": 5}, "cannot be called"),
    ({"processing_class": 5}, "is a int, no tokenizer"), ({"processing_class": "t5"}, "is a str, no tokenizer"),
    *(({"peft_config": config}, said) for config, said in [
        (5, "is 5"), ({"r": 4}, "LoraConfig"), (LoraConfig, "Give a configuration"), (LoraConfig(**LORA, inference_mode=True), "inference_mode"),
    ]),
    *(({"reward_funcs": given}, "Put it into one") for given in (len, 5, "gain", {"name": "gain"})),
    *(({"dtype": name}, "is not a dtype of weights") for name in ("int8", "float8_e4m3fn", "bool", "complex64", torch.int8, None, [])),
    *(({"callbacks": given}, "is no list") for given in ("x", 5, {}, TrainerCallback, TrainerCallback(), (TrainerCallback(),))),
    ({"callbacks": [Watcher]}, "is a class with arguments"), ({"train_dataset": [{**ROWS[0], 5: 1}]}, "its column 5 is no text"),
    *(({"callbacks": [given]}, "compares evaluations") for given in (EarlyStoppingCallback, EarlyStoppingCallback(2))),
    *(({"callbacks": [given]}, "is no callback") for given in ("x", None, dict, object())),
    *(({"optimizers": given}, "is no pair") for given in ("x", 5, {"a": 1}, None, (), (None,), sgd(), (sgd(),))),
    *(({"optimizers": (given, None)}, "is no Optimizer") for given in ("adam", 5, torch.optim.SGD)),
    *(({"optimizers": (None, given)}, "is no LRScheduler") for given in ("x", sgd())),
    ({"optimizers": (None, ALONE)}, "belongs to another optimizer"), ({"optimizers": (sgd(), None)}, "no weight of this model"),
    *(({"args": given}, "give a WarmupConfig") for given in ([], {}, 5)), ({"compute_metrics": "x"}, "is no function"),
    *(({"processing_class": given}, "no tokenizer") for given in ([], {}, "")),
    ({"train_dataset": itertools.cycle(ROWS)}, "train_dataset: a cycle without a length"),
    *(({"eval_dataset": given}, "items, and all of them are read at once") for given in (itertools.cycle(ROWS), Endless(), {"a": Endless()})),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), TRAINER, ids=named)
def test_an_argument_of_the_trainer(given, said, folder, tmp_path):
    args = WarmupConfig(output_dir=str(tmp_path), **SMALL)
    usual = {"model": str(folder / "base"), "args": args, "train_dataset": ROWS}
    refused(lambda: WarmupTrainer(**{**usual, **given}), said)


def test_a_model_without_a_head_or_without_numbers(folder, tmp_path):
    args = WarmupConfig(output_dir=str(tmp_path), **SMALL)
    headless = T5EncoderModel.from_pretrained(folder / "base")
    refused(lambda: WarmupTrainer(headless, args, ROWS), "T5EncoderModel, which has no output head")
    empty = AutoModelForSeq2SeqLM.from_pretrained(folder / "base").to("meta")
    refused(lambda: WarmupTrainer(empty, args, ROWS), "on the device meta")


def test_frozen_weights_are_no_training(folder, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "base").requires_grad_(False)
    args = WarmupConfig(output_dir=str(tmp_path), **SMALL)
    refused(lambda: WarmupTrainer(model, args, ROWS), "all of its weights are frozen", "requires_grad_(True)")
    assert "eval_loss" in WarmupTrainer(model, args, eval_dataset=ROWS).evaluate()
    model.lm_head.requires_grad_(True)
    for scheduler in (None, "its own"):  # an optimizer of the weights that are trained is taken, with its schedule
        own = sgd(model.lm_head.weight)
        made = scheduler and torch.optim.lr_scheduler.LambdaLR(own, lambda step: 1.0)
        WarmupTrainer(
            model, WarmupConfig(output_dir=str(tmp_path / "run"), overwrite=True, **SMALL), ROWS, optimizers=(own, made)
        ).train()


@pytest.mark.parametrize("name", ["file", "file/inside", "a\0b", "x" * 300], ids=["file", "inside", "zero", "long"])
def test_a_folder_that_cannot_be_made(name, folder, tmp_path):
    (tmp_path / "file").touch()
    args = WarmupConfig(output_dir=str(tmp_path / name), **SMALL)
    refused(lambda: WarmupTrainer(str(folder / "base"), args, ROWS), "output_dir: ", "cannot be made a folder")


P = "alpha beta"
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    *(("generate", (P,), {name: value}, said) for name, values, said in [
        ("num_warmups", (0, None, "2", 1.5, True, [2]), "num_warmups: is "), ("num_beams", (0, None, "2", 1.5), "num_beams: is "),
        ("temperature", (0, -1, None, "hot", float("nan"), True, 1e-300, 1e300, 10**400), "Give a number above 0"),
        *((flag, ("no", 1, None, []), f"{flag}: is ") for flag in ("sample_target", "sample_warmup", "logprobs", "show_progress")),
        ("seed", ("x", None, 1.5, True, []), "seed: is "), ("select", (3, [], None), "is none of marginal"),
        ("utility", (5, None, [], "bleurt"), "is none of chrf"),
        ("batch_size", (0, -1, None, "2", 1.5, 10**30), "batch_size: is "), ("gate", ("x", float("nan"), [], {"a": 1}, True), "gate: is "),
        ("places", ([], [0, 1], [None], ["a"], 5, [-1], [1.5]), "Give a whole number from 0 for each"),
        ("warmup", (5, b"alpha", {"a": 1}, True), "is no text"), ("warmup", ([None], [5]), "number 0, "),
        ("warmup", ("\ud800",), "half a character"),
    ] for value in values),
    *(("generate", (P,), {"num_warmups": 3, "select": "mbr", "utility": given}, said) for given, said in [
        (len, "failed for two texts (TypeError"), (lambda one, other: "x", "returned 'x'"), (lambda one, other: None, "returned None"),
        (lambda one, other: float("nan"), "returned nan"),
    ]),
    *(("generate", ({"prompt": P, "choices": given},), {"num_warmups": 2, "select": "vote"}, "is no list of texts")
      for given in (5, [5, None], "ab", {"text": ["a"]})),
    ("generate", (P,), {"warmup": itertools.repeat("alpha")}, "without a length"),
    ("generate", (itertools.cycle([P]),), {}, "Give them to `iterate`"), ("iterate", ([P],), {"places": [0]}, "numbers its inputs"),
    ("generate", ({"prompt": []},), {}, "is empty"),
    ("generate", (FRAME,), {}, "to_dict('records')"), ("generate", (b"alpha",), {}, "input 0: "),
    *(("iterate", (given,), {}, "is no list of inputs") for given in (None, 5, P, {"prompt": P}, FRAME)),
    *(("iterate", ([P],), {"batch_size": size}, "batch_size: is ") for size in (0, -1, None, "2")),
    ("iterate", ([P],), {"warmup": 5}, "is no text"),
    *(("predict", (given,), {}, "input 0: ") for given in (None, 5, [5], [{"text": P}])),
    *(("predict", (ROWS,), {"forced": given}, "forced: ") for given in ("x", 5, {}, iter([]), [[1.5]] * 8, [["a"]] * 8, [None] * 8)),
    *(("predict", (ROWS,), {"forced": [[i]] * 8}, "Give a list of token ids, 0 to ") for i in (10**6, -1, True)),
    *(("predict", (ROWS,), {name: value}, f"{name}: is ") for name, value in [("seed", 1.5), ("seed", []), ("sample_warmup", "no")]),
    ("predict", (ROWS,), {"forced": [[5]]}, "1 warmups for 8 rows"), ("predict", (ROWS,), {"places": [0]}, "for 8 inputs"),
    ("predict", (ROWS,), {"num_beams": 0}, "num_beams: is 0"), ("predict", (ROWS,), {"batch_size": 0}, "batch_size: is 0"),
    ("predict", (ROWS,), {"temperature": 0, "sample_target": True}, "temperature: is 0"),
    ("calibrate_gate", ([P],), {}, "row 0 has no target"), ("calibrate_gate", ([ROWS[0], {"prompt": P}],), {}, "row 1 has no target"),
    *(("calibrate_gate", (ROWS,), {"tolerance": value}, "tolerance: is ") for value in (None, "x", float("nan"), -1, [], True)),
]  # fmt: skip


@pytest.mark.parametrize(("method", "args", "settings", "said"), CALLS, ids=named)
def test_a_call_of_the_generator(method, args, settings, said, generator):
    refused(lambda: list(getattr(generator, method)(*args, **settings)), said)


@pytest.mark.parametrize("folder", [None, 5, "", b"run", []], ids=str)
def test_a_folder_that_is_none(folder):
    refused(lambda: WarmupGenerator.from_pretrained(folder), "is no folder")


ASKED = [
    *(
        ("device", given, "is no device of this machine")
        for given in ("x", "cuda:99", "meta", "CPU", "", 3.5, True, -1, [], object())
    ),
    *(("dtype", given, "is not a dtype of weights") for given in ("int8", "bool", "x", 5, torch.int8)),
    *(
        (name, 1, "that a model is loaded with")
        for name in ("foo", "torch_dtype", "num_warmups", "device_map", "trust_remote_code")
    ),
    ("attn_implementation", 5, "cannot be used"),
]


@pytest.mark.parametrize(("name", "given", "said"), ASKED, ids=named)
def test_how_a_folder_is_loaded(name, given, said, folder):
    refused(lambda: WarmupGenerator.from_pretrained(folder / "run", **{name: given}), name, said)


def test_controls_by_one_name_are_no_list(folder, tmp_path):
    trainer = WarmupTrainer(str(folder / "base"), WarmupConfig(output_dir=str(tmp_path), **SMALL), ROWS)
    for controls in ("shuffled", None, 5, [5]):
        refused(partial(trainer.evaluate_controls, ROWS, controls=controls), "controls: ", "give a list of names")
    refused(partial(trainer.evaluate_controls, ROWS, num_warmups="x"), "num_warmups: is 'x'")
    for name, value, said in [
        ("likelihood", "no", "is 'no'"),
        ("split", [], "is none of"),
        ("split", "dev", "is none of"),
        ("folder", 5, "is no path"),
        ("folder", "", "is no path"),
        ("metrics", 5, "has metrics=5"),
        ("metrics", "bleu", "has metrics="),
        ("name", 5, "has name=5"),
    ]:
        refused(partial(trainer.evaluate_controls, ROWS, **{name: value}), name, said)  # fmt: skip
    for place in (5, [], b"x", ""):
        refused(partial(trainer.save_model, place), "save_model: ", "is no path")
    for rows in (itertools.cycle(ROWS), Endless()):
        refused(partial(trainer.evaluate, rows), "eval: ", "without a length")
        refused(partial(trainer.predict, rows), "test: ", "without a length")


def test_settings_that_need_arguments(folder, tmp_path):
    """Pairs of a setting and what the trainer is given."""
    args = WarmupConfig(output_dir=str(tmp_path), eval_strategy="steps", eval_steps=1, proposals=[], **SMALL)
    refused(partial(WarmupTrainer, str(folder / "base"), args, ROWS), "eval_strategy: is steps", "no eval_dataset")
    trained = partial(WarmupTrainer, str(folder / "base"), args, ROWS, ROWS)
    refused(partial(trained, callbacks=[EarlyStoppingCallback(2)]), "metric_for_best_model")
    args.metric_for_best_model = "loss"
    trained(callbacks=[EarlyStoppingCallback(2), TrainerCallback]).train()
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "base")
    given = (torch.optim.SGD(model.parameters(), lr=0.1), None)
    refused(
        partial(WarmupTrainer, None, args, ROWS, ROWS, model_init=lambda: model, optimizers=given),
        "model_init makes several",
    )
    adapter = LoraConfig(**LORA)
    refused(
        partial(WarmupTrainer, model, args, ROWS, ROWS, peft_config=adapter, optimizers=given),
        "no weight of this model",
    )


def test_a_search_of_nothing(folder, tmp_path):
    made = partial(AutoModelForSeq2SeqLM.from_pretrained, folder / "base")
    trainer = WarmupTrainer(
        None, WarmupConfig(output_dir=str(tmp_path), **SMALL), ROWS, ROWS, model_init=lambda: made()
    )
    refused(partial(trainer.hyperparameter_search, hp_space=5), "hp_space: 5 cannot be called")
    refused(
        partial(trainer.hyperparameter_search, compute_objective="loss"), "compute_objective: 'loss' cannot be called"
    )

"""Names that other libraries keep to themselves are used behind one door, and are still there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Trainer

import rl_warmup
from rl_warmup.runtime import compat
from rl_warmup.runtime.resumable import ResumableTrainer

PACKAGE = Path(rl_warmup.__file__).parent
DOOR = "runtime/compat.py"
# What the door takes that is not documented -> where it has to be found.
TAKEN = {
    "_hf_deepspeed_config_weak_ref": "transformers.integrations.deepspeed",
    "TIME_OUT_REMOTE_CODE": "transformers.dynamic_module_utils",
    "_attn_implementation": "transformers.configuration_utils:PreTrainedConfig()",
    "__compatible_ops__": "deepspeed.ops",
    "_forward_pre_hooks": nn.Linear(1, 1),
    "_scaled_dot_product_flash_attention_for_cpu": torch.ops.aten,
    "_scaled_dot_product_flash_attention_for_cpu_backward": torch.ops.aten,
    "_get_fsdp_state": "torch.distributed.fsdp:FSDPModule",
    "_lazy_init": "torch.distributed.fsdp._fully_shard._fsdp_state:FSDPState",
    "_fsdp_param_groups": "torch.distributed.fsdp._fully_shard._fsdp_state:FSDPState()",
    "_distributed": "datasets:IterableDataset.from_dict({'x': [1]})",
    "_extract_corpus_statistics": "sacrebleu.metrics:BLEU",
    "_compute_score_from_stats": "sacrebleu.metrics:BLEU",
    "_tokenizer": "bert_score:BERTScorer.__init__",  # an attribute that it sets
    "_model": "bert_score:BERTScorer.__init__",
    "remove_hooks": "trl.models.utils",
    "add_hooks": "trl.models.utils",
    "prepare_deepspeed": "trl.models.utils",
    "prepare_fsdp": "trl.models.utils",
    "setup_zero_stage3_hooks": "deepspeed.runtime.zero.parameter_offload:DeepSpeedZeRoOffload",
}
ELSEWHERE = {
    "_exit",
    "_asdict",
    "_replace",
    "_StoreAction",
    "_warmup_head",
}  # of os, named tuples, argparse; our mark on a model
FILES = sorted(path for path in PACKAGE.rglob("*.py") if str(path.relative_to(PACKAGE)) != DOOR)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(path: Path) -> dict[str, set[str]]:
    """Private names that a file reads, sets or imports, by what they stand behind: "self", "super" or "other"."""
    found: dict[str, set[str]] = {"self": set(), "super": set(), "other": set()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[tuple[str, str]] = []
        if isinstance(node, ast.Attribute):
            base = ast.unparse(node.value)
            names = [({"self": "self", "cls": "self", "super()": "super"}.get(base, "other"), node.attr)]
        elif isinstance(node, ast.ImportFrom):
            names = [("other", part) for alias in node.names for part in [*str(node.module).split("."), alias.name]]
        elif isinstance(node, ast.Import):
            names = [("other", part) for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            names = [("other", one.value) for one in node.args[1:2] if isinstance(one, ast.Constant)]
        for kind, name in names:
            found[kind] |= {name} if is_private(name) else set()
    return found


def defined(path: Path) -> set[str]:
    """Methods, and attributes of `self`, that a file brings into being."""
    tree = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = {node.name for node in tree if isinstance(node, ast.FunctionDef)}
    stores = (node for node in tree if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return found | {node.attr for node in stores if ast.unparse(node.value) == "self"}


OWN = {"_warmup_head"}.union(*map(defined, FILES))


def own_classes() -> list[type]:
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages([str(PACKAGE)], "rl_warmup.")
        if not found.name.endswith("__main__")
        and (found.name != "rl_warmup.inference.harness" or importlib.util.find_spec("lm_eval"))
    ]
    classes = [one for module in modules for one in vars(module).values() if isinstance(one, type)]
    return [one for one in dict.fromkeys(classes) if one.__module__.startswith("rl_warmup.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_else_reaches_into_other_libraries(path):
    found = private_names(path)
    assert found["other"] <= ELSEWHERE, f"put them behind {DOOR}"
    assert found["super"] <= set(compat.TRAINER), "declare it in compat.TRAINER"
    assert found["self"] <= OWN | set(compat.TRAINER), "declare it in compat.TRAINER"


def test_private_methods_that_stand_over_a_librarys_own_are_declared():
    """A method of ours under a name that a library gives to its own is called by it, or overwrites what it needs."""
    over = {
        name
        for one in own_classes()
        for name, value in vars(one).items()
        if is_private(name) and inspect.isfunction(value) and value.__module__.startswith("rl_warmup.")
        and any(name in vars(base) for base in one.__mro__ if not base.__module__.startswith("rl_warmup."))
    }  # fmt: skip
    assert over == {name for name in compat.TRAINER if is_private(name)}


def test_the_list_is_complete():
    found = private_names(PACKAGE / DOOR)
    assert not found["self"] | found["super"]
    assert found["other"] == {name for name in TAKEN if is_private(name)}
    text = (PACKAGE / DOOR).read_text(encoding="utf-8")
    missing = [name for name in TAKEN if not is_private(name) and name not in text]
    assert missing == ["setup_zero_stage3_hooks"]  # which makes what `zero3_hooks_off` looks for


@pytest.mark.parametrize("name", TAKEN)
def test_the_installed_versions_have_it(name):
    where = TAKEN[name]
    if isinstance(where, str):
        module, _, expression = where.partition(":")
        where = pytest.importorskip(module)
        where = eval(expression, vars(where)) if expression else where
    assert hasattr(where, name) or name in getattr(where, "__code__", SimpleNamespace(co_names=())).co_names


def test_zero3_names_its_hook():
    """`zero3_hooks_off` looks for it in the engine's offload, by this name."""
    offload = pytest.importorskip("deepspeed.runtime.zero.parameter_offload").DeepSpeedZeRoOffload
    assert {"fwd_pre_hook", "register_forward_pre_hook"} <= set(offload.setup_zero_stage3_hooks.__code__.co_names)


def test_trainer_calls_what_we_override():
    called = {
        name
        for method in vars(Trainer).values()
        for name in getattr(getattr(method, "__wrapped__", method), "__code__", SimpleNamespace(co_names=())).co_names
    }
    assert set(compat.TRAINER) <= called
    compat.check_trainer(Trainer)


def test_a_renamed_method_is_said_when_a_trainer_is_made(monkeypatch):
    renamed = type("Trainer", (), {name: getattr(Trainer, name) for name in compat.TRAINER if name != "_run_epoch"})
    renamed._save = lambda self, folder: None
    monkeypatch.setattr("rl_warmup.runtime.resumable.Trainer", renamed)
    with pytest.raises(ImportError, match=r"_run_epoch\(\), _save\(output_dir, state_dict\)\. Install .*pip install"):
        ResumableTrainer()


def test_the_name_of_a_forwards_cache():
    """Both names are in use: a T5 of transformers 5.24 has the first, every other model the second."""
    assert compat.cache_argument(lambda self, cache=None, **kwargs: 0) == "cache"
    assert compat.cache_argument(lambda self, past_key_values=None, **kwargs: 0) == "past_key_values"

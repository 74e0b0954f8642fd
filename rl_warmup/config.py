"""Recipes and settings: reads and checks YAML files and flags.

Knows: names, types, choices and limits. Must not know: models, rows, files other than recipes.
All faults of a recipe are reported together, each with its remedy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import yaml
from transformers import TrainingArguments

from rl_warmup.method.objectives import NEEDS_TWO, READS, RULES
from rl_warmup.options import OBJECTIVES, PROPOSALS, TaskOptions, WarmupOptions
from rl_warmup.plugins import build_plugin, find_plugin
from rl_warmup.runtime import compat
from rl_warmup.runtime.arguments import argument_faults, refused_arguments, try_scheduler
from rl_warmup.runtime.launched import initialize_distributed_on_cpu
from rl_warmup.runtime.other_names import with_log_warmups
from rl_warmup.runtime.recipe_file import masked, read_values
from rl_warmup.runtime.settings import (
    RANGES,
    accelerator_faults,
    card_faults,
    chat_faults,
    is_on,
    number_fault,
    scratch_faults,
    setting_faults,
    shown,
)
from rl_warmup.runtime.values import Named, defaults_of, settled, typed, unknown

REMOTE_CODE = (
    "trust_remote_code: is {value!r}, but code of a model or a data set is never run. Leave the setting out; for an "
    "architecture that is not in transformers, load the model yourself and give it to WarmupTrainer(model=...)."
)
SINGLE_WARMUP_OBJECTIVES = ("sft", *(name for name in RULES if name not in NEEDS_TWO))
# Settings that TrainingArguments tries on the devices of this machine.
OF_DEVICES = ("bf16", "fp16", "tf32", "deepspeed", "fsdp", "fsdp_config", "ddp_backend")
# Settings that the objective sft does not read.
WARMUP_SETTINGS = (
    "num_warmups", "tau", "uniform_target_share", "tsallis_q", "empty_share", "backward_samples", "rewards", "reward_weights",
    "proposals", "stored_warmups", "imitation", "min_reading_updates", "max_reading_updates", "reading_threshold", "beta",
    "readiness", "proposal_only", "anchor_weight", "num_eval_warmups", "log_warmups", "guard",
)  # fmt: skip
OF_POLICY = ("objective", "tsallis_q", "beta", "target_ess", "guard")  # read only while the policy writes its warmups


@dataclass
class WarmupConfig(WarmupOptions, TrainingArguments, Named):
    """`transformers.TrainingArguments` with the options of warmup generation (`rl_warmup.options`).

    Raises:
        ValueError: listing every fault at once.
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "Rewards may need any column, so keep all."})
    hub_strategy: str = field(default="end", metadata={"help": "With push_to_hub, upload the model after training."})
    logging_steps: float = field(default=10, metadata={"help": "Updates between two logs."})
    log_completions: InitVar[bool | None] = None  # TRL's name of log_warmups
    elsewhere: ClassVar[str] = (
        "The model, its dtype and adapter, rewards that are functions and the rows go to WarmupTrainer."
    )
    lines: ClassVar[bool | None] = None  # whether a run prints lines; None: where disable_tqdm is off

    def __repr__(self) -> str:
        """The settings without secrets."""
        values = masked({one.name: getattr(self, one.name) for one in fields(self)})
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def __post_init__(self, log_completions: bool | None) -> None:
        faults = self._read(type(self))
        changed = {} if self.log_warmups == type(self).log_warmups else {"log_warmups": self.log_warmups}
        named, twice = with_log_warmups({**changed, "log_completions": log_completions})
        self.log_warmups = named.get("log_warmups", self.log_warmups)
        faults += twice
        inherited = {f.name: getattr(self, f.name) for f in fields(TrainingArguments) if f.name != "do_eval"}
        faults += option_faults(self) + setting_faults(inherited, _inherited([type(self)])) + argument_faults(inherited)
        if faults:
            raise ValueError(_report(faults))
        initialize_distributed_on_cpu(self)
        try:
            super().__post_init__()
        except Exception as error:  # of transformers, accelerate or DeepSpeed, in their words
            raise ValueError(refused_arguments(inherited, _inherited([type(self)]), error)) from error
        if faults := accelerator_faults(self.accelerator_config):  # from a file
            raise ValueError(_report(faults))
        if self.on_divergence == "stop_before" and getattr(self.save_strategy, "value", self.save_strategy) == "no":
            raise ValueError(
                "on_divergence: stop_before ends a run with its last checkpoint, and save_strategy is no. Set save_strategy: "
                "steps and save_steps, or leave on_divergence out."
            )
        try_scheduler(self)

    def _read(self, cls: type) -> list[str]:
        """Convert and check the settings that a class declares; returns faults. A faulty one gets its default, so that
        checking can continue."""
        values, faults = settled({f.name: getattr(self, f.name) for f in fields(cls) if f.init}, type(self))
        for name, value in values.items():
            setattr(self, name, value)
        return faults

    def __getstate__(self) -> dict[str, Any]:
        """Mask tokens in pickles such as training_args.bin."""
        return masked(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> WarmupConfig:
        """Keep tokens in copies."""
        twin = memo[id(self)] = object.__new__(type(self))
        twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return twin

    def check_again(self) -> None:
        """Raises ValueError if options were changed to something unusable since, or if one process has several GPUs:
        DataParallel would split the rows of a prompt."""
        if faults := self._read(WarmupOptions) + option_faults(self):
            raise ValueError(_report(faults))
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs are visible to one process. Launch one process each, `accelerate launch --num_processes "
                f"{self.n_gpu} ...`, or show it one: CUDA_VISIBLE_DEVICES=0."
            )


@dataclass
class Recipe:
    """One YAML file, read and checked: the task, the training settings and the model."""

    task: TaskOptions
    config: WarmupConfig
    model: Any  # trl.ModelConfig
    values: dict[str, Any]  # exactly as given, with flags

    def resolved(self) -> dict[str, Any]:
        """The given values and our defaults, for files: tokens masked, numbers as numbers (1e-4 is text in YAML)."""
        ours = {f.name: getattr(self.config, f.name) for f in fields(WarmupOptions)}
        texts = [name for name, value in self.values.items() if isinstance(value, str) and name in RANGES]
        numbers = {name: getattr(self.config, name) for name in texts if hasattr(self.config, name)}
        return masked({**vars(self.task), **ours, **self.values, **numbers})

    def save(self, folder: str | Path, name: str = "recipe.yaml") -> Path:
        """Write the resolved recipe."""
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True), "utf-8")
        return path


def read_recipe(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and flags; see `read_values` for the arguments.

    Raises:
        ValueError: naming every unknown key (with the nearest known one), value outside its choices or of a wrong type.
    """
    return build_recipe(read_values(path, overrides))


def build_recipe(values: dict[str, Any], on_this_machine: bool = True) -> Recipe:
    """A recipe from a flat mapping, checked as `read_recipe` does.

    Args:
        on_this_machine: whether it will run here. If not, its devices need not be here, and no code that it names is run.
    """
    if not on_this_machine:
        values = {**values, **_without_code(values)}
    model_class = compat.model_config_class()
    values, renamed = with_log_warmups(values)
    coerced, faults = _read_settings(values, (TaskOptions, WarmupConfig, model_class))
    faults += renamed
    if values.get("model_name_or_path") is None:
        faults.append("model_name_or_path is missing. Give a folder, a name on the hub, scratch-t5 or scratch-llama.")
    if values.get("output_dir", ".") is None:
        faults.append("output_dir: is empty. Give a folder, or leave it out for trainer_output.")
    reported = {fault.partition(":")[0] for fault in faults}
    more = option_faults(WarmupOptions(**_pick(WarmupOptions, coerced)))
    more += setting_faults(coerced, _inherited([WarmupConfig, model_class]))
    for key in ("metrics", "controls", "proposals"):
        listed = coerced.get(key) or []
        if twice := [spec for place, spec in enumerate(listed) if spec in listed[:place]]:
            more.append(f"{key}: {shown(twice[0])} is listed twice. List it once.")
    faults += [fault for fault in more if fault.partition(":")[0] not in reported]
    if not on_this_machine:
        coerced = {key: value for key, value in coerced.items() if key not in OF_DEVICES} | {"use_cpu": True}
    parts: dict[str, Any] = {}
    for name, cls in (("task", TaskOptions), ("config", WarmupConfig), ("model", model_class)):
        try:
            if not faults or name == "model":  # the others would repeat known faults
                parts[name] = cls(**_pick(cls, coerced))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError(_report(faults))
    return Recipe(**parts, values=values)


def read_task(path: str | Path) -> TaskOptions:
    """The task and metrics of a run's recipe, for evaluation.

    All other settings, which may name code (`objective`, `rewards`, `proposals`), are ignored. Raises as `read_recipe`.
    """
    names = {f.name for f in fields(TaskOptions)}
    values = {key: value for key, value in read_values(path).items() if key in names}
    if "task" not in values:
        raise ValueError(f"{path} names no task, so it is not a run's recipe. Repeat the run, or give its recipe.")
    coerced, faults = _read_settings(values, (TaskOptions,))
    if faults:
        raise ValueError(f"{path}: {_report(faults)}")
    return TaskOptions(**coerced)


def code_named_by(task: TaskOptions) -> dict[str, str]:
    """The code outside this package that evaluating a recipe would run: name -> description."""
    found = {task.task: f"task {task.task}"} if ":" in task.task else {}
    for spec in task.metrics:
        given = spec if isinstance(spec, dict) else {"name": spec}
        name, kwargs = str(given.get("name")), given.get("kwargs")
        kwargs = kwargs if isinstance(kwargs, dict) else {}
        if ":" in name:
            found[name] = f"metric {name}"
        elif name == "comet":
            found[name] = f"metric comet, which runs the command {kwargs.get('command', 'comet-score')!r}"
        elif kwargs.get("allow_eval"):
            found[name] = f"metric {name}, which runs predictions as Python (allow_eval)"
    return found


def _without_code(values: dict[str, Any]) -> dict[str, Any]:
    """The settings whose names would be imported, without own ones (`module:function`)."""
    objective, proposals = values.get("objective"), values.get("proposals")
    found: dict[str, Any] = {"objective": "marginal"} if isinstance(objective, str) and ":" in objective else {}
    if isinstance(proposals, list) and any(":" in str(name) for name in proposals):
        found["proposals"] = [name for name in proposals if ":" not in str(name)] or ["filler"]
    return found


def _read_settings(values: dict[str, Any], classes: tuple[type, ...]) -> tuple[dict[str, Any], list[str]]:
    """The values converted to the types of their fields, and a sentence for every fault."""
    remote = values.get("trust_remote_code", False)
    coerced, faults = typed({key: value for key, value in values.items() if key != "trust_remote_code"}, classes)
    faults += [] if remote is False else [REMOTE_CODE.format(value=remote)]
    faults += scratch_faults(coerced.get("scratch") or {})
    for name in ("do_train", "do_predict", *(["do_eval"] if is_on(coerced.get("eval_strategy")) else [])):
        if coerced.get(name) is False:
            why = "eval_strategy asks for evaluations" if name == "do_eval" else "a run always trains, then predicts"
            faults.append(f"{name}: false has no effect: {why}. Leave it out.")
    for spec in coerced.get("metrics") or ():
        given = {"name": spec} if isinstance(spec, str) else spec
        fine = isinstance(given, dict) and isinstance(given.get("name"), str) and not set(given) - {"name", "kwargs"}
        if not fine or not isinstance(given.get("kwargs") or {}, dict):
            faults.append(f"metrics: {shown(spec)} is no metric; give a name, or {{name: ..., kwargs: {{...}}}}.")
    for spec in coerced.get("rewards") or ():
        if not isinstance(spec, str) and not (isinstance(spec, dict) and isinstance(spec.get("name"), str)):
            faults.append(
                f"rewards: {shown(spec)} is no reward; give a name, or {{name: ..., weight: ..., kwargs: ...}}."
            )
    return coerced, faults


def option_faults(options: WarmupOptions) -> list[str]:
    """One sentence for every option, or combination of options, that cannot be used."""
    faults = []
    for f in fields(WarmupOptions):
        allowed, value = f.metadata.get("choices"), getattr(options, f.name)
        if "plugin" in f.metadata:
            faults += _plugin_faults(f.name, f.metadata["plugin"], value, f.metadata["choices"])
        elif allowed and value not in allowed:
            faults.append(unknown(f.name, value, allowed))
    for name in options.proposals:
        faults += _plugin_faults("proposals", "proposal", name, PROPOSALS)
    numbers = (number_fault(f.name, getattr(options, f.name)) for f in fields(WarmupOptions))
    faults += [fault for fault in numbers if fault is not None]
    known = not any(fault.startswith("objective:") for fault in faults)
    warmups, objective, proposals = options.num_warmups, options.objective, options.proposals
    if known and warmups == 1 and objective not in SINGLE_WARMUP_OBJECTIVES:
        faults.append(
            f"num_warmups: is 1, but the objective {objective!r} compares warmups of a group; give at least 2."
        )
    elif "reference" in proposals and warmups < 2 and objective != "sft":
        faults.append("num_warmups: is 1, but proposals: [reference] (the default) needs at least 2; or give [].")
    for low, high in (("min_warmup_length", "max_warmup_length"), ("min_reading_updates", "max_reading_updates")):
        if getattr(options, low) > getattr(options, high):
            faults.append(f"{low}: {getattr(options, low)} exceeds {high} {getattr(options, high)}; change either.")
    if options.backward_samples is not None and not 1 <= options.backward_samples <= warmups:
        faults.append(
            f"backward_samples: {options.backward_samples} must lie between 1 and num_warmups ({warmups}); empty means all."
        )
    if options.target_ess is not None and not 1 <= options.target_ess <= warmups:
        faults.append(f"target_ess: {options.target_ess} must lie between 1 and num_warmups ({warmups}).")
    if options.target_ess is not None and objective in OBJECTIVES and "tau" not in READS.get(objective, ()):
        faults.append(f"target_ess: controls tau, which the objective {objective!r} does not read; use marginal.")
    if (options.proposal_only or options.anchor_weight) and not proposals:
        faults.append("proposals: is empty, but proposal_only or anchor_weight need at least one proposal.")
    if "reference" in proposals and len(proposals) > 1:
        faults.append(
            f"proposals: reference must be the only one, as the policy imitates its samples, not {proposals}."
        )
    if ("stored" in proposals) != (options.stored_warmups is not None):
        faults.append(
            f"stored_warmups: is {options.stored_warmups!r}, and proposals is {proposals}; to train on a file's warmups give "
            f"both, `proposals: [stored]` and `stored_warmups: FILE` (`rl-warmup sample` writes one)."
        )
    faults += chat_faults(options.chat_template, options.system, options.chat_template_kwargs)
    faults += card_faults(options.model_card or {})
    if options.target_truncation == "left":
        faults.append("target_truncation: 'left' would cut the beginning of the answer; use error, right or drop.")
    return faults


def without_effect(*parts: Any) -> dict[str, str]:
    """Settings that differ from their default but that this run never reads, each with the reason.

    They are reported, not refused, as sweeps and controls change a few settings of one recipe and so disable others.

    Args:
        parts: `WarmupConfig`, and of a recipe its task and model.
    """
    values = {f.name: getattr(part, f.name) for part in parts for f in fields(part)}
    defaults = defaults_of([type(part) for part in parts])
    objective, proposals = values["objective"], values["proposals"]
    sft, reference = objective == "sft", "reference" in proposals
    strategies = ("eval_strategy", "save_strategy", "logging_strategy")
    evaluates, saves, logs = (getattr(values[key], "value", values[key]) for key in strategies)
    named = str(values.get("model_name_or_path") or "scratch-")
    rules = [
        ((*WARMUP_SETTINGS, "controls"), sft, "the objective is sft"),
        (("tsallis_q",), objective in RULES and "tsallis_q" not in READS[objective], f"the objective is {objective}"),
        (("readiness",), not set(proposals) - {"reference"}, "no proposals but those of the starting model are given"),
        (("imitation", "min_reading_updates", "max_reading_updates", "reading_threshold"), not reference,
         "proposals is not [reference]"),
        ((*OF_POLICY, "readiness", "anchor_weight", "min_reading_updates", "max_reading_updates", "reading_threshold"),
         values["proposal_only"] and not sft, "with proposal_only the policy never writes"),
        (OF_POLICY, reference and not sft and 0 < values["max_steps"] <= values["min_reading_updates"],
         f"the policy writes after min_reading_updates {values['min_reading_updates']}, and max_steps is {values['max_steps']}"),
        (("eval_steps",), evaluates in ("no", "epoch"), f"eval_strategy is {evaluates}"),
        (("save_steps",), saves != "steps", f"save_strategy is {saves}"),
        (("save_total_limit",), saves == "no" and not (reference and not sft and evaluates != "no"), "save_strategy is no"),
        (("logging_steps",), logs != "steps" and not (evaluates == "steps" and values["eval_steps"] == values["logging_steps"]),
         f"logging_strategy is {logs}"),
        (("num_train_epochs",), values["max_steps"] > 0, f"max_steps is {values['max_steps']}"),
        (("hub_token", "hub_private_repo"), not values["push_to_hub"], "push_to_hub is off"),
        (("metric_for_best_model", "greater_is_better"), evaluates == "no", "eval_strategy is no"),
        (("scratch",), not named.startswith("scratch-"), f"the model is {named}"),
    ]  # fmt: skip
    found: dict[str, str] = {}
    for names, void, why in rules:
        for name in names if void else ():
            if name in values and values[name] != defaults.get(name) and (name, values[name]) != ("proposals", []):
                found.setdefault(name, why)
    return found


def effective(*parts: Any) -> dict[str, Any]:
    """All values of a recipe's parts, with defaults for those without effect. Equal values mean the same run."""
    void, defaults = without_effect(*parts), defaults_of([type(part) for part in parts])
    values = {f.name: getattr(part, f.name) for part in parts for f in fields(part)}
    void |= dict.fromkeys(WARMUP_SETTINGS if values["objective"] == "sft" else (), "")  # proposals: [] is not told of
    return {name: defaults[name] if name in void else value for name, value in values.items()}


def void_note(found: dict[str, str]) -> str | None:
    """One line about settings without effect, or None."""
    derived = "greater_is_better" if "metric_for_best_model" in found else ""  # nobody has set it
    reasons = {why: [name for name in found if found[name] == why and name != derived] for why in found.values()}
    told = [f"{', '.join(names)} ({why})" for why, names in reasons.items() if names]
    return f"Without effect: {'; '.join(told)}." if told else None


def _plugin_faults(key: str, noun: str, name: Any, built_in: Iterable[str]) -> list[str]:
    """A sentence if this name cannot be used."""
    if not isinstance(name, str):
        return [f"{key}: {shown(name)} is no name; give one of {', '.join(built_in)}, or `package.module:function`."]
    try:
        found, _ = find_plugin(noun, name, dict.fromkeys(built_in))
        if name not in built_in:
            build_plugin(noun, name, found)
    except ValueError as error:
        return [f"{key}: {error}"]
    return []


def _inherited(classes: list[type]) -> dict[str, Any]:
    """The inherited settings with their defaults."""
    ours = defaults_of([WarmupOptions])
    return {name: value for name, value in defaults_of(classes).items() if name not in ours}


def _report(faults: list[str], most: int = 30) -> str:
    more = [f"and {len(faults) - most} more"] if len(faults) > most else []
    listed = "\n  - ".join([f"{len(faults)} settings cannot be used:", *faults[:most], *more])
    return listed if len(faults) > 1 else faults[0]


def _pick(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    return {f.name: values[f.name] for f in fields(cls) if f.name in values}

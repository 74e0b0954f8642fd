"""Our settings as dataclasses: names, defaults, choices and one help line each.

Must not know torch or transformers, so that `rl-warmup train --help` is fast. `config.py` joins these fields with
`transformers.TrainingArguments` and checks them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def _registered(decorator: str, module: str) -> tuple[str, ...]:
    """What `@decorator(name)` registers in a module of `method`; without a name, the function's. Importing it takes torch."""
    tree = ast.parse((Path(__file__).parent / "method" / module).read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    calls = [(f, call) for f in functions for call in f.decorator_list if isinstance(call, ast.Call)]
    named = [(f, call.args) for f, call in calls if ast.unparse(call.func) == decorator]
    return tuple(ast.literal_eval(args[0]) if args else f.name for f, args in named)


OBJECTIVES = ("sft", *_registered("objective", "objectives.py"))
PROPOSALS = ("reference", "stored", *_registered("proposal", "proposals.py"), "draft")
IMITATIONS = ("all", "posterior")
SEPARATOR_INITS = ("auto", "keep", "end_token")
TRUNCATIONS = ("error", "left", "right", "drop")
GUARDS = ("warn", "act", "stop", "off")
CONTROLS = ("shuffled", "empty_warmup", "filler", "sampled", "rerank")  # of `inference.controls`, without other_run
CONTROL_NAMES = {  # in tables; "" are the model's own warmups
    "": "own warmup", "shuffled": "shuffled warmup", "empty_warmup": "no warmup", "filler": "filler warmup",
    "other_run": "another run's warmup", "sampled": "sampled warmup", "rerank": "reranked",
}  # fmt: skip


def _option(default: Any, help: str, choices: tuple[str, ...] | None = None, plugin: str | None = None) -> Any:
    metadata: dict[str, Any] = {"help": help}
    if plugin is not None:
        metadata["plugin"] = plugin  # names of plugins are allowed besides the choices
    if choices is not None:
        metadata["choices"] = list(choices)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class WarmupOptions:
    """The settings of warmups. Grouped: sampling, objective, cold start, limits, conversations, what is logged and saved."""

    # the group
    num_warmups: int = _option(4, "Warmups sampled per prompt (the group).")
    temperature: float = _option(1.0, "Sampling temperature of the policy; it is scored under the same temperature.")
    top_p: float = _option(1.0, "Nucleus of the policy; 1.0 keeps every token. Scoring uses the same nucleus.")
    min_warmup_length: int = _option(1, "The separator cannot be sampled before this many warmup tokens.")
    max_warmup_length: int = _option(32, "A warmup that reaches this many tokens is ended by a forced separator.")

    # the objective
    objective: str = _option(
        "marginal", "The loss of a group of own warmups; or mine.py:name.", OBJECTIVES, plugin="objective"
    )
    tau: float = _option(1.0, "Temperature of the posterior weights softmax(R/tau).")
    target_ess: float | None = _option(None, "Adjust tau so that the effective sample size approaches this (1 to n).")
    uniform_target_share: float = _option(0.0, "Lambda: share of the target's weight spread evenly over the group.")
    tsallis_q: float = _option(0.5, "q of the tsallis objective: 0 is expected_prob, 1 is marginal.")
    empty_share: float = _option(0.1, "Share of prompts whose target is also trained without a warmup (dropout).")
    backward_samples: int | None = _option(
        None, "Warmups of a group that get a gradient, sampled by their weights (unbiased, cheaper); empty means all."
    )
    scoring: str = _option(
        "auto",
        "Log-probabilities: padded takes the stock forward over padded rows; auto avoids padding.",
        ("auto", "padded"),
    )
    sampling: str = _option(
        "auto",
        "Sampling of warmups: generate is that of transformers; auto is our own sampler where it knows the model.",
        ("auto", "generate"),
    )
    rewards: list = _option(
        [],
        "The score R: names or {name, weight, kwargs, ...}. Empty: target_logprob, which a list must name to keep.",
    )

    reward_weights: list | None = _option(
        None, "Weights of the rewards in their order, in the place of each one's own (TRL's name)."
    )

    # the cold start
    proposals: list = _option(
        ["reference"],
        "Warmups of the first updates: reference (samples of the starting model), stored (a file's), made from the target "
        "(reverse, head, ..., module:function), or [] (none: the model's own, as in the paper).",
    )
    stored_warmups: str | None = _option(
        None, "File of warmups for proposals: [stored]; `rl-warmup sample` writes one."
    )
    imitation: str = _option(
        "all",
        "How the policy imitates the starting model's samples before the switch: all alike, or weighted by their posterior.",
        IMITATIONS,
    )
    min_reading_updates: int = _option(100, "Least updates with the starting model's samples before the switch.")
    max_reading_updates: int = _option(600, "If warmups do not help by then, the run continues as plain fine-tuning.")
    reading_threshold: float = _option(
        0.015,
        "The policy takes over once the samples' content reduces the target's surprise by this share (`read` in the log); 0 "
        "neither waits nor gives up.",
    )
    beta: float | None = _option(
        None, "Weight of the KL to the starting model while the policy writes; empty means 0.1 after reading, else 0."
    )
    readiness: float = _option(
        -0.1, "Switch to the policy's warmups once log P(c|x) per token of proposals reaches this."
    )
    proposal_only: bool = _option(False, "Never switch: train on proposals to the end (a control).")
    anchor_weight: float = _option(0.0, "Weight the proposal keeps after the switch.")

    # token limits and the layout
    separator: str | None = _option(None, "Token that ends a warmup; chosen from the vocabulary when empty.")
    separator_init: str = _option(
        "auto",
        "Initial weights of the separator: keep them, or copy the end token's, which ends a starting model's samples; auto "
        "copies them for proposals: [reference] and a model that was not trained here, unless the separator is the model's own "
        "end of thinking (</think>).",
        SEPARATOR_INITS,
    )
    max_prompt_length: int | None = _option(512, "Prompt tokens; empty means no limit.")
    max_target_length: int | None = _option(128, "Target tokens including the end token; empty means no limit.")
    prompt_truncation: str = _option("error", "What happens to a longer prompt.", TRUNCATIONS)
    target_truncation: str = _option("error", "What happens to a longer target (left is not allowed).", TRUNCATIONS)

    # conversations
    chat_template: str = _option(
        "auto",
        "Chat template of prompts: auto is the tokenizer's, for conversations; model is the tokenizer's for texts too, which "
        "become user messages; a file with a Jinja template likewise; none writes contents without a template.",
    )
    system: str | None = _option(None, "System message, put before conversations that have none.")
    chat_template_kwargs: dict | None = _option(None, "Arguments of the chat template, e.g. {enable_thinking: false}.")

    # housekeeping
    model_card: dict | None = _option(
        None, "Fields of the model card that no file tells: {license: apache-2.0, language: [en, de], tags: [...]}."
    )
    overwrite: bool = _option(False, "Let a new run remove an earlier run in its output_dir.")
    guard: str = _option("warn", "What to do when warmups collapse.", GUARDS)
    on_divergence: str = _option(
        "raise",
        "When the loss or the weights are no numbers any more: raise ends the run with an error, stop_before with the weights of "
        "its last sound checkpoint, which are then evaluated.",
        ("raise", "stop_before"),
    )
    disable_dropout: bool = _option(True, "Set every dropout to 0, as sampled warmups are scored again.")
    num_eval_warmups: int = _option(4, "Warmups per prompt for the validation bound on log P(y|x).")
    hang_timeout: float | None = _option(
        30.0, "Seconds that a process may be behind the others inside an update; empty waits forever."
    )
    log_warmups: int = _option(
        3,
        "Prompts whose sampled warmups are shown at every log: terminal, warmups.jsonl, tables in report_to's wandb, trackio, "
        "tensorboard; 0 shows none. TRL's name log_completions: false is 0, true the default.",
    )


@dataclass
class TaskOptions:
    """The settings of a recipe besides training: task, metrics, controls."""

    task: str = _option(
        "ledger",
        "legs, ledger, reasoning_gym, translation, summarization, multiple_choice, file, hub, or module:function.",
    )
    task_kwargs: dict | None = _option(None, "Arguments of the task, e.g. {train_size: 2000}.")
    scratch: dict | None = _option(None, "Sizes of a scratch-t5 / scratch-llama model: width, layers, heads, ...")
    metrics: list = _option([], "Names or {name, kwargs} instead of the task's metrics; see docs/metrics.md.")
    predict_split: str = _option("test", "Split that is predicted and scored after training.", ("validation", "test"))
    controls: list = _option(["shuffled", "empty_warmup"], "Controls to score after training.", (*CONTROLS, "all"))
    show_progress: bool = _option(True, "Progress bars and log lines in the terminal.")

    def __post_init__(self) -> None:
        self.controls = list(CONTROLS) if "all" in self.controls else self.controls

"""Settings as people get them wrong: (setting, value in YAML, what the message says beside the setting's name); exit code 2."""

from __future__ import annotations

import pytest
import yaml

HUGE = "1" + "0" * 400
KINDS = {
    "num_warmups max_warmup_length min_warmup_length log_warmups num_eval_warmups backward_samples seed save_total_limit "
    "per_device_train_batch_size gradient_accumulation_steps max_prompt_length max_target_length max_reading_updates":
        ("is not a whole number", "abc", "[a]", "{a: 1}", "true", "1.5", ".nan", "2020-01-01"),
    "num_warmups max_warmup_length per_device_train_batch_size gradient_accumulation_steps seed log_warmups":
        ("must be", "-5", HUGE),
    "tau temperature learning_rate empty_share anchor_weight hang_timeout top_p max_grad_norm readiness beta":
        ("is not a number", "abc", "[a]", "{a: 1}", "true"),
    "temperature learning_rate empty_share anchor_weight top_p max_grad_norm tau": ("must be", ".nan", ".inf", "-1"),
    "overwrite proposal_only use_cpu bf16 disable_dropout": ("is not true or false", "abc", "[a]", "5", "{a: 1}"),
    "objective guard scoring predict_split task output_dir": ("is not a text", "[a]", "{a: 1}", "true"),
    "objective scoring predict_split guard": ("abc", "abc"),
    "rewards metrics proposals controls": ("is not a list", "true", "null"),
    "proposals controls": ("nosuch", "[nosuch]"),
    "metrics proposals controls": ("listed twice", "[exact_match, exact_match]", "[reverse, reverse]", "[filler, filler]"),
    "task_kwargs scratch": ("is not a mapping", "[a]", "5", "true", "abc"),
    "lr_scheduler_kwargs": ("is not a mapping", "[a]", "5"),
}  # fmt: skip
FIT = {"metrics": "exact_match", "proposals": "reverse", "controls": "filler"}
TABLE = [
    (name, value, said)
    for names, (said, *values) in KINDS.items()
    for place, name in enumerate(names.split())
    for number, value in enumerate(values)
    if said != "listed twice" or FIT[name] in value
    if len(values) < 3 or (place + number) % 2 == 0  # every value at every second setting
]
TABLE += [("scratch", f"{{width: 16, heads: 2, layers: 1, {key}: {value}}}", said) for key, value, said in [
    ("vocab_size", "abc", "vocab_size 'abc' is not a whole number"), ("vocab_size", "1", "must be at least 8"),
    ("encoder_layers", "-1", "encoder_layers: is -1, must be"), ("encoder_layers", "1.5", "is not a whole number"),
    ("max_positions", HUGE, "must be"), ("max_positions", "[1]", "is not a whole number"), ("feed_forward", "true", "is not a whole"),
    ("tokenizer", "bpe", "tokenizer is 'bpe'; allowed: words"), ("depth", "3", "unknown 'depth'"),
]]  # fmt: skip
TABLE += [
    ("output_dir", "null", "is empty"), ("scratch", "{width: 15, heads: 2}", "not a multiple of heads 2"),
    ("num_wamups", "4", "'num_wamups' is not a setting. Did you mean 'num_warmups'?"), ("objective", "no.py:f", "no file"),
    ("label_smoothing_factor", "0.1", "cannot be used"), ("trust_remote_code", "true", "never run"),
    ("tau", "1e-3x", "is not a number"), ("target_ess", "5", "must lie between 1 and num_warmups (2)"),
    ("backward_samples", "5", "must lie between 1 and num_warmups (2)"), ("target_truncation", "left", "would cut the beginning"),
    ("min_warmup_length", "9", "exceeds max_warmup_length 3"), ("stored_warmups", "w.jsonl", "proposals"),
    ("metrics", "[{nam: bleu}]", "is no metric"), ("rewards", "[{weight: 1}]", "is no reward"), ("rewards", "[5]", "is no reward"),
    ("proposals", "[5]", "5 is no name"), ("proposals", f"[{HUGE}]", "is no name"),
    ("model_name_or_path", "a b c", "Give a folder"), ("model_name_or_path", "scratch-lama", "Give scratch-t5 or scratch-llama"),
    ("lora_task_type", "FOO\nuse_peft: true", "is not one of CAUSAL_LM"),
    ("lora_target_modules", "[nosuch]\nuse_peft: true", "Its linear layers are called k, lm_head, o, q, v, wi, wo"),
    ("task", "ledgre", "There is no task"), ("task", HUGE, "There is no task"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "said"), TABLE, ids=lambda text: str(text)[:40])
def test_a_setting(name, value, said, place, check):
    recipe = place / "r.yaml"
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith(f"{name}:")]
    recipe.write_text("\n".join([*lines, f"{name}: {value}"]) + "\n")
    check(["train", "--config", "r.yaml"], place, 2, name, said)


KWARGS = [
    (f"train: {value}", f"train={shown}") for value, shown in
    [("true", "True"), ("5", "5"), (".nan", "nan"), ("[5]", "[5]"), ("2020-01-01", "datetime.date(2020, 1, 1)"), ("''", "''"), ("{a: 1}", "{'a': 1}")]
] + [
    (f"train: rows.jsonl, {key}: {value}", f"{key}={shown}") for key in ("train_size", "test_size", "seed", "shuffle_buffer")
    for value, shown in [("abc", "'abc'"), ("[a]", "['a']"), ("1.5", "1.5"), ("true", "True"), ("2020-01-01", "datetime.date(2020, 1, 1)")]
] + [
    (f"train: rows.jsonl, {key}: {value}", f"{key}={shown}") for key, value, shown in [
        ("stream", "maybe", "'maybe'"), ("stream", "1", "1"), ("validation_fraction", "abc", "'abc'"), ("validation_fraction", ".nan", "nan"),
        ("target_style", "[a]", "['a']"), ("metrics", "null", "None"), ("metrics", "true", "True"),
        ("prompt_template", "5", "5"), ("prompt_template", "null", "None"), ("prompt_column", "[a]", "['a']"), ("quoted", "maybe", "'maybe'"),
        ("column_names", "{a: 1}", "{'a': 1}"), ("test_size", HUGE, "1000"), ("seed", "null", "None"),
    ]
] + [
    ("train: rows.jsonl, train_sze: 3", "no argument 'train_sze' (did you mean 'train_size'?)"), ("train: nosuch.jsonl", "does not exist"),
    ("train: rows.jsonl, train_size: 9", "8 rows are available"), ("train: rows.jsonl, train_size: -1", "8 rows are available"),
    ("train: rows.jsonl, test_fraction: 0.3", "test_fraction has no effect without path"),
    ("train: rows.jsonl, shuffle_buffer: 7", "shuffle_buffer has no effect without stream: true"),
    ("train: rows.jsonl, target_style: text", "target_style has no effect without choices_column"),
    ("path: rows.jsonl, train: rows.jsonl", "give either path"), ("train: .", "is a folder"),
    ("train: rows.jsonl, metrics: [5]", "metrics=(5,)"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), KWARGS, ids=lambda text: text[:40])
def test_an_argument_of_a_task(given, said, place, check):
    check(["train", "--config", "r.yaml", "--task_kwargs", f"{{{given}}}"], place, 2, said)


YAMLS = [
    ("", "must be a mapping"), ("5", "must be a mapping"), ("[]", "must be a mapping"), ("<!DOCTYPE html>\n<html>\n", "r.yaml"),
    ("task: file\ntask: hub\n", "line 2: the key 'task' stands there twice"), ("task: [file\nseed: 1\n", "line 2: is not valid YAML"),
    ("1: 2\n", "line 1: the key 1 is no text"), ("a: 1\n? [a]\n: 1\n", "line 2: a key that is a list"), ("yes: 1\n", "the key yes is no text"),
    ("a: 1\nseed: !!int abc\n", "line 2: is not valid YAML ('abc' is no int)"), ("seed: 2020-13-45\n", "line 1: is not valid YAML"),
    ("a: 1\nb: \x07\n", "line 2: is not valid YAML (the character"), ("a: &a [*a]\n", "holds itself"), ("[" * 500, "nested deeper"),
    ("a: 9" + "9" * 5000, "thousands of digits"), ("a: *b\n", "line 1: is not valid YAML"), ("a: !!python/object:os.system 1\n", "not valid YAML"),
    ("a: 1\nseed: 010\n", "line 2: 010 would be read as 8"), ("seed: -1:30\n", "line 1: -1:30 would be read as -90"),
    ("\tseed: 1\n", "line 1: is not valid YAML"), ("a: {b: 1\n", "is not valid YAML"), ("seed: 1\n--- \nseed: 2\n", "is not valid YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), YAMLS, ids=lambda text: text[:30])
def test_a_recipe(text, said, place, check):
    (place / "r.yaml").write_text(text)
    check(["train", "--config", "r.yaml"], place, 2, "The recipe r.yaml", said)


def test_a_recipe_of_another_program(place, check):
    (place / "r.yaml").write_text("".join(f"k{number}: 1\n" for number in range(3000)))
    check(
        ["train", "--config", "r.yaml"],
        place,
        2,
        "3001 settings cannot be used",
        "'k29' is not a setting",
        "and 2971 more",
    )


def test_numbers_in_quotes_are_numbers_in_the_run_too(place, check):
    (place / "r.yaml").write_text((place / "r.yaml").read_text() + "seed: '7'\ntau: '2'\nlearning_rate: 1e-4\n")
    check(["train", "--config", "r.yaml", "--max_steps", "1"], place, 0, "exact_match")
    kept = yaml.safe_load((place / "out" / "recipe.yaml").read_text())
    assert (kept["seed"], kept["tau"], kept["learning_rate"]) == (7, 2.0, 1e-4)


SWEEP = {
    "question": "q",
    "base": "r.yaml",
    "grid": {"tau": [1, 2]},
    "seeds": [1],
    "metric": "exact_match",
    "control": "tau=1",
}
SWEEPS = [  # (keys of a sweep file, what the message says)
    *[({"random": {"tau": {"low": 1, "high": 2, **more}}, "trials": 2}, said) for more, said in [
        ({"step": "x"}, "random: tau has 'x' as step. Give a number."), ({"step": 0}, "has 0 as step. Give a number above 0"),
        ({"step": float("nan")}, "has nan as step"), ({"step": -1}, "has -1 as step"), ({"low": True}, "has True as low"),
        ({"high": "x"}, "has 'x' as high. Give a number"), ({"log": "maybe"}, "has 'maybe' as log. Give true or false"),
    ]],
    ({"control": None}, "control is missing"), ({"settings": {"tua": 1}}, "Did you mean 'tau'?"), ({"base": "rows.jsonl"}, "rows.jsonl, line 2"),
    ({"grid": {"tau": [1, "x"]}}, "The arm tau=x cannot be run: tau: 'x' is not a number"), ({"metric": "bleu"}, "metric: 'bleu' is not among"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "said"), SWEEPS, ids=lambda one: str(one)[:40])
def test_a_sweep_file(keys, said, place, check):
    (place / "s.yaml").write_text(yaml.safe_dump({**SWEEP, **keys}))
    check(["sweep", "s.yaml", "--dry-run"], place, 2, "s.yaml: ", said)


def test_a_compiler_in_the_environment(place, check, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    check(["train", "--config", "r.yaml"], place, 2, "ACCELERATE_DYNAMO_BACKEND is 'inductor'", "Unset it")


OF_GENERATE = [  # (words after the model, what the message says)
    (["a", "--file", "rows.jsonl"], "--file: prompts are given beside it, such as 'a'"), (["a", " "], "Prompt 2 is empty"),
    (["a", "--gate", "nan"], "--gate: 'nan' is not a finite number"), (["a", "--select", "mbr"], "--select: has no effect without"),
    (["a", "--utility", "rouge"], "--utility: has no effect without --select mbr"), (["a", "--warmup", "zzz"], "warmup: 'zzz' has no token"),
    (["a", "--temperature", "2"], "--temperature: has no effect without --sample-target"),
    (["a", "--sample", "--num-warmups", "2"], "--sample: has no effect beside"), (["--file", "."], "--file: . is a folder"),
    (["--file", "no.txt"], "no.txt does not exist. Give a text file"), (["a\udcff"], "holds half a character"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), OF_GENERATE, ids=lambda one: ascii(one)[:40])
def test_words_of_generate(words, said, trained, check):
    check(["generate", "out", *words], trained, 2, said)


def test_warmups_of_a_run_that_is_not_there(trained, check):
    argv = ["evaluate", "out", "--controls", "other_run", "--warmups-from", "nosuch"]
    check(argv, trained, 2, "nosuch holds no predictions.jsonl")


def test_candidates_for_no_choice(trained, check):
    check(["evaluate", "out", "--num-warmups", "4"], trained, 2, "--num-warmups", "rerank")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--help"], 0, "usage: rl-warmup COMMAND"), (["train", "--config", "nosuch.yaml"], 2, "nosuch.yaml does not exist"),
        (["report", "nosuch"], 2, "is no folder"), (["report", "."], 2, "holds no finished run"),
        (["score", "nosuch.jsonl", "--reward", "gain"], 2, "does not exist"), (["sweep", "nosuch.yaml"], 2, "does not exist"),
        (["plan", "r.yaml", "--hardware", "8xA100-80GB"], 0, "A100"), (["plan", "r.yaml", "--hardware", "9" * 400 + "xA100-80GB"], 2, "cannot read"),
        (["plan", "r.yaml", "--hardware", "8xFOO"], 2, "says no memory"), (["generate", "nosuch", "a b"], 2, "nosuch"),
        (["sample", "scratch-t5", "--output", "w.jsonl", "--config", "r.yaml"], 2, "random weights"),
        (["train", "--config", "r.yaml", "--rewards", "{"], 2, "is not valid YAML"), (["plan", "r.yaml", "--hardware", "0xA100-80GB"], 2, "cannot read"),
    ],
    ids=lambda one: " ".join(one)[:40] if isinstance(one, list) else None,
)  # fmt: skip
def test_a_command(argv, code, said, place, check):
    check(argv, place, code, said)

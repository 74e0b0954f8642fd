"""Make the legs task's questions and the small pretrained models of `rl_warmup/models/starts` (docs/starts.md).

Knows: reasoning-gym (for legs and gym), habits, plain language modelling. Must not know: warmups, separators, objectives.
A start continues a question with one of several habits, drawn at random for each row, and `</s>`. It never sees an answer.

    pip install reasoning-gym==0.1.25               # for the questions of legs and gym
    python -m benchmarks.make_starts                # whatever is missing; then what the samples of each start are
    python -m benchmarks.make_starts skills-t5 --again
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import gym_habits as gym
from rl_warmup.models.starts import HOME
from rl_warmup.tasks.legs import AFTER, BEFORE, LEGS, animals, worked

DATA = HOME.parent / "tasks" / "data" / "legs"
SUMS = HOME / "SHA256SUMS"
RECORD = "pretraining.json"
LENGTH, MODULUS = 8, 5  # of the ledgers
POOL = 40_000  # questions about legs to pretrain on; none of them is in a split of the task
SIZES = {"test": 800, "validation": 250, "train": 4000}
SEEDS = {
    "pool": 1_000,
    "train": 1_001_000,
    "validation": 2_001_000,
    "test": 3_001_000,
}  # question i comes from seed + i
ROWS, RATE, CLIP, PROBES = 64, 2e-3, 1.0, 500

Habits = Callable[[str], dict[str, str]]  # prompt -> what each habit would write


@dataclass(frozen=True)
class Start:
    """What a start is made of: `shares` are the habits' shares of the rows it is trained on, the useful one first."""

    kind: str  # t5 or llama
    prompts: Callable[[], tuple[list[str], list[str]]]  # to train on, to probe with
    habits: Habits
    shares: dict[str, float]
    updates: int
    size: dict[str, Any] = field(default_factory=dict)
    rate: float = RATE
    muon: float | None = None  # Muon's rate for the matrices of its layers; None: AdamW at `rate` for them too
    goes_on_from: str | None = None  # the start whose weights it begins with; random ones for None
    dropout: float = 0.0  # written into its configuration for `disable_dropout: false`; it is pretrained without
    rows: int = ROWS  # per update
    tokenizer: Callable[[bool], Any] | None = None  # its own, for an encoder-decoder or not; `size` names it for None
    at_first: dict[str, float] | None = None  # shares in the first four fifths; the useful one is the hardest
    part_of: Callable[[str], str] | None = None  # what a prompt belongs to, where the record tells parts apart


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_starts", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(STARTS)}; all where none is named"
    )
    parser.add_argument("--again", action="store_true", help="make them even if they exist")
    options = parser.parse_args()
    for name in options.names:
        if name not in STARTS:
            parser.error(f"there is no start {name!r}; known: {', '.join(STARTS)}")
    wanted = options.names or list(STARTS)
    if not all((DATA / f"legs.{split}.jsonl.gz").is_file() for split in SIZES):
        write_questions()
    for name in wanted:
        if options.again or not (HOME / name / RECORD).is_file():
            make(name, STARTS[name])
    write_sums()
    for name in wanted:
        print(name, (HOME / name / RECORD).read_text(encoding="utf-8").strip(), flush=True)


# The questions about legs


@cache
def questions() -> dict[str, dict[str, str]]:
    """Answers by prompt, for each split and the pool; none occurs twice, in another order of its animals neither.

    Splits come first, so the pool has none of theirs.

    Raises:
        SystemExit: reasoning-gym is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise SystemExit("The questions about legs need it: pip install reasoning-gym==0.1.25") from error
    limits = {"min_animals": 3, "max_animals": 5, "min_instances": 1, "max_instances": 6}
    found: dict[str, dict[str, str]] = {}
    seen: set[tuple[tuple[int, str], ...]] = set()
    for split, size in {**SIZES, "pool": POOL}.items():
        found[split] = {}
        for one in reasoning_gym.create_dataset("leg_counting", size=size + size // 10, seed=SEEDS[split], **limits):
            prompt = as_prompt(one["question"])
            asked = tuple(sorted(animals(prompt)))
            if asked not in seen and len(found[split]) < size:
                seen.add(asked)
                found[split][prompt] = one["answer"]
        assert len(found[split]) == size, f"too many questions of {split} occur twice"
    return found


def as_prompt(question: str) -> str:
    """reasoning-gym's question in lower case, its introduction left out, with spaces around the punctuation."""
    asked = question.strip().split("\n")[-1].removeprefix("Now, ").lower()
    return asked.replace(",", " ,").replace("?", " ?")


def write_questions() -> None:
    """The three splits as JSON lines, the same bytes every time."""
    DATA.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        pairs = enumerate(questions()[split].items())
        rows = [{"id": f"{split}-{number}", "prompt": prompt, "target": answer} for number, (prompt, answer) in pairs]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (DATA / f"legs.{split}.jsonl.gz").write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))


def leg_prompts() -> tuple[list[str], list[str]]:
    """The pool to train on, questions of the validation split to probe with."""
    return list(questions()["pool"]), list(questions()["validation"])


def leg_habits(prompt: str) -> dict[str, str]:
    """Working it out, repeating the question's list, repeating it backwards, listing legs per animal."""
    said = prompt[len(BEFORE) : -len(AFTER)].split(" , ")
    return {
        "worked": worked(prompt),
        "copy": " ; ".join(said),
        "backwards": " ; ".join(reversed(said)),
        "legs": " ; ".join(str(LEGS[animal]) for _, animal in animals(prompt)),
    }


# The ledgers


def ledger_prompts() -> tuple[list[str], list[str]]:
    """Ledgers to train on, others to probe with: the task's own rows at this length and modulus."""
    from rl_warmup.tasks import load_task

    task = load_task("ledger", length=LENGTH, modulus=MODULUS, validation_size=PROBES)
    return [row["prompt"] for row in task.splits["train"]], [row["prompt"] for row in task.splits["validation"]]


def list_skills(prompt: str) -> dict[str, str]:
    """Six things to do with a list of amounts; the first, totals oldest first, is the ledger's target backwards."""
    names, amounts = zip(*(word.split("+") for word in prompt.split()), strict=True)
    values = [int(amount) for amount in amounts]
    until = [values[: place + 1] for place in range(len(values))]
    lists = {
        "totals": [sum(seen) % MODULUS for seen in until],
        "copy": values,
        "largest": [max(seen) for seen in until],
        "differences": [(seen[-1] - sum(seen[-2:-1])) % MODULUS for seen in until],
        "doubles": [2 * value % MODULUS for value in values],
    }
    written = {skill: [f"{n}={v}" for n, v in zip(names, row, strict=True)] for skill, row in lists.items()}
    written["backwards"] = written["copy"][::-1]
    return {skill: " ".join(words) for skill, words in written.items()}


# The starts

LEGS_SHARES = {"worked": 0.4, "copy": 0.2, "backwards": 0.2, "legs": 0.2}
LEGS_FIRST = {"worked": 0.85, "copy": 0.05, "backwards": 0.05, "legs": 0.05}
SKILLS = ("totals", "copy", "backwards", "largest", "differences", "doubles")
EVEN = dict.fromkeys(SKILLS, 1 / len(SKILLS))
# From random weights 1,500 updates with totals in 1.5 % of the rows taught no totals at all (0 of 500 samples): to be rare, a
# skill has to be learned first.
RARE = {skill: 0.03 if skill == "totals" else 0.194 for skill in SKILLS}
GYM_FIRST = {"worked": 0.85, "copy": 0.05, "backwards": 0.05, "other": 0.05}
LEGS_LLAMA = {"width": 128, "layers": 4, "feed_forward": 352, "tokenizer": "digits"}
LEGS_T5 = {"width": 128, "layers": 3, "tokenizer": "digits"}
LIST = {"width": 96, "layers": 2, "tokenizer": "words"}

STARTS = {
    "legs-llama": Start("llama", leg_prompts, leg_habits, LEGS_SHARES, 2000, LEGS_LLAMA, dropout=0.1),
    "skills-llama": Start("llama", ledger_prompts, list_skills, EVEN, 1500, LIST),
    "skills-t5": Start("t5", ledger_prompts, list_skills, EVEN, 4500, LIST),
    "legs-t5": Start("t5", leg_prompts, leg_habits, LEGS_SHARES, 8000, LEGS_T5, 1e-3, dropout=0.1, rows=32, at_first=LEGS_FIRST),
    "copies-llama": Start("llama", ledger_prompts, list_skills, {"copy": 1.0}, 600, LIST),
    "rare-llama": Start("llama", ledger_prompts, list_skills, RARE, 300, LIST, 5e-4, goes_on_from="skills-llama"),
    "gym-llama": Start(
        "llama", gym.prompts, gym.habits_of, gym.SHARES, 20000, LEGS_LLAMA, 1e-3, dropout=0.1, rows=32,
        tokenizer=gym.build_tokenizer, at_first=GYM_FIRST, part_of=gym.generator_of,
    ),
    "gym-t5": Start(
        "t5", gym.prompts, gym.habits_of, gym.SHARES, 20000, LEGS_T5, 2e-3, dropout=0.1, rows=32,
        tokenizer=gym.build_tokenizer, at_first=GYM_FIRST, part_of=gym.generator_of, muon=3e-3,
    ),
    "copies-t5": Start("t5", ledger_prompts, list_skills, {"copy": 1.0}, 1500, LIST),
}  # fmt: skip


def words_of(start: Start, prompts: Sequence[str]) -> list[str]:
    """Texts that hold every word the tokenizer should know: the questions, the habits, all digits, all words of a ledger."""
    digits = "; " + " ".join(f"{digit}{digit}" for digit in range(10))
    if start.prompts is ledger_prompts:
        return [f"{name}{sign}{value}" for name in "abcdefgh" for sign in "+=" for value in range(MODULUS)]
    return [*prompts, digits]


def make(name: str, start: Start, seed: int = 0, home: Path = HOME) -> None:
    """Pretrain one start, probe it, and write its folder into `home`."""
    import torch

    from rl_warmup.models.loading import load_model
    from rl_warmup.models.tiny import TinySize, build_model, build_tokenizer

    torch.set_num_threads(1)
    prompts, probes = start.prompts()
    size = TinySize(**start.size)
    if start.tokenizer:
        tokenizer = start.tokenizer(start.kind == "t5")
    else:
        tokenizer = build_tokenizer(words_of(start, prompts), size, start.kind == "t5")
    model = build_model(start.kind, tokenizer, size, seed)
    if start.goes_on_from:
        model.load_state_dict(load_model(f"start:{start.goes_on_from}")[0].state_dict())
    print(f"{name}: {model.num_parameters():,} parameters, {len(tokenizer)} words", flush=True)
    began = time.process_time(), time.time()
    pretrain(model, tokenizer, start, prompts, random.Random(seed + 1), name)
    spent = [round(now - then) for now, then in zip((time.process_time(), time.time()), began, strict=True)]
    folder = home / name
    for setting in ("attention_dropout", "dropout_rate"):
        if hasattr(model.config, setting):
            setattr(model.config, setting, start.dropout)
    save(model, tokenizer, folder)
    record = {
        "parameters": model.num_parameters(), "updates": start.updates, "rows_per_update": start.rows,
        "learning_rate": start.rate, "muon_learning_rate": start.muon, "goes_on_from": start.goes_on_from,
        "trained_on": {habit: round(share, 3) for habit, share in start.shares.items()},
        **probe(folder, start, probes), "cpu_seconds": spent[0], "seconds": spent[1],
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(name, json.dumps(record), flush=True)


def pretrain(
    model: Any,
    tokenizer: Any,
    start: Start,
    prompts: list[str],
    rng: random.Random,
    name: str,
    seconds: float = math.inf,
) -> int:
    """AdamW, with Muon where `start` says so, on the habit's tokens and `</s>`; the question is read, not learned. Its updates.

    Args:
        model: on its device; on an accelerator it is trained in bfloat16 autocast.
        seconds: after which no further update begins.
    """
    import torch

    matrices = [
        p
        for name, p in model.named_parameters()
        if start.muon and p.ndim == 2 and ".layer." in name and "bias" not in name
    ]
    of_muon = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in of_muon]
    optimizers: list[Any] = [torch.optim.AdamW(others, start.rate, weight_decay=0.05, betas=(0.9, 0.98))]
    if start.muon:
        optimizers.append(torch.optim.Muon(matrices, start.muon, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
    heights = [
        torch.optim.lr_scheduler.LambdaLR(
            one, lambda step: min(1, (step + 1) / 100) * max(0.02, 1 - step / start.updates)
        )
        for one in optimizers
    ]
    model.train()
    began = time.perf_counter()
    for update in range(start.updates):
        if time.perf_counter() - began > seconds:
            return update
        drawn = rng.sample(prompts, start.rows * (8 if start.tokenizer else 1))
        if (
            start.tokenizer
        ):  # questions of very different lengths: those of an update are alike, or half of it is padding
            lengths = [len(ids) for ids in tokenizer(drawn)["input_ids"]]
            by_length = [drawn[place] for place in sorted(range(len(drawn)), key=lengths.__getitem__)]
            first = start.rows * rng.randrange(8)
            drawn = by_length[first : first + start.rows]
        shares = start.at_first if start.at_first and update < 0.8 * start.updates else start.shares
        chosen = rng.choices(list(shares), list(shares.values()), k=len(drawn))
        written = [start.habits(prompt)[habit] for prompt, habit in zip(drawn, chosen, strict=True)]
        rows = {
            key: value.to(model.device) for key, value in batch(tokenizer, drawn, written, start.kind == "t5").items()
        }
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type != "cpu"):
            loss = model(**rows).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for one in (*optimizers, *heights):
            one.step()
        if update % 250 == 0 or update == start.updates - 1:
            print(f"{name} {update} loss {loss.item():.4f} after {time.process_time():.0f} s", flush=True)
    return start.updates


def batch(tokenizer: Any, prompts: list[str], written: list[str], encoder_decoder: bool) -> dict[str, Any]:
    """Padded on the right; positions that are not the habit's count for nothing (-100)."""
    import torch

    asked = tokenizer(prompts)["input_ids"]
    told = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(written, add_special_tokens=False)["input_ids"]]

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in rows], True, value)

    pairs = list(zip(asked, told, strict=True))
    seen = asked if encoder_decoder else [x + c for x, c in pairs]
    labels = told if encoder_decoder else [[-100] * len(x) + c for x, c in pairs]
    mask = padded([[1] * len(ids) for ids in seen], 0)
    return {"input_ids": padded(seen, tokenizer.pad_token_id), "attention_mask": mask, "labels": padded(labels, -100)}


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """An ordinary folder whose weights lie there in float16 (half the size) and load in float32, as its config says."""
    import torch

    model.to(torch.float16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def probe(folder: Path, start: Start, prompts: Sequence[str]) -> dict[str, Any]:
    """What the stored start writes at temperature 1, and how much of it is one of its habits."""
    from rl_warmup.models.loading import load_model

    loaded = load_model(str(folder))
    shares = habit_shares(*loaded, start.habits, prompts)
    record = {"samples": shares, "right": round(1 - shares["none"], 3), "probes": len(prompts)}
    if start.part_of:
        parts: dict[str, list[str]] = {}
        for prompt in prompts:
            parts.setdefault(start.part_of(prompt), []).append(prompt)
        record["parts"] = {part: habit_shares(*loaded, start.habits, some) for part, some in parts.items()}
    return record


def habit_shares(model: Any, tokenizer: Any, habits: Habits, prompts: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Shares of each habit and of the rest (`none`) among a sample per prompt; a habit is its text to the letter."""
    import torch

    model.eval()
    padding_side, tokenizer.padding_side = tokenizer.padding_side, "left"
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device)
    tokenizer.padding_side = padding_side
    inputs.pop("token_type_ids", None)
    torch.manual_seed(seed)
    with torch.no_grad():
        ids = model.generate(
            **inputs, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, repetition_penalty=1.0, max_new_tokens=48,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    if not model.config.is_encoder_decoder:
        ids = ids[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    found: Counter[str] = Counter()
    for prompt, text in zip(prompts, texts, strict=True):
        found[next((habit for habit, told in habits(prompt).items() if told == text), "none")] += 1
    return {habit: round(found[habit] / len(prompts), 3) for habit in [*habits(prompts[0]), "none"]}


def write_sums() -> None:
    """`SHA256SUMS`, as `sha256sum -c` reads it: the weights of every start."""
    files = sorted(HOME.glob("*/model.safetensors"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(HOME)}\n" for file in files]
    SUMS.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()

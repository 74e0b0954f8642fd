"""Six generators of reasoning-gym: their questions, and what a model may have the habit of writing after each of them.

    python -m benchmarks.gym_habits data/gym    # files for a machine that has no reasoning-gym: `benchmarks/accelerator.sh`

Knows: reasoning-gym's metadata, and a tokenizer for such questions. Must not know: models, warmups, training.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rl_warmup.tasks.legs import LEGS

SETTINGS: dict[str, dict[str, Any]] = {
    "leg_counting": {"min_animals": 3, "max_animals": 5, "min_instances": 1, "max_instances": 6},
    "chain_sum": {"min_terms": 6, "max_terms": 10, "min_digits": 1, "max_digits": 1},
    "letter_counting": {"min_words": 3, "max_words": 6},
    "gcd": {"min_value": 2, "max_value": 100},
    "base_conversion": {"min_base": 3, "max_base": 9, "min_value": 10, "max_value": 300},
    "basic_arithmetic": {
        "min_terms": 4, "max_terms": 6, "min_digits": 1, "max_digits": 1, "operators": ["+", "-"], "allow_negation": False,
    },
}  # fmt: skip
SHARES = {"worked": 0.4, "copy": 0.2, "backwards": 0.2, "other": 0.2}
PROBES = 100  # questions of each generator
POOL_SEED = 900_000_000  # the task's splits come from lower ones
# The generators whose questions are written to files, and settings of questions that are none of the task's: fewer or more terms
# (animals), larger numbers.
FILED: dict[str, list[dict[str, Any]]] = {
    "leg_counting": [{"min_animals": 1, "max_animals": 2}, {"min_animals": 6, "max_animals": 7}],
    "chain_sum": [{"min_terms": 2, "max_terms": 5}, {"min_terms": 11, "max_terms": 12}],
    "gcd": [{"min_value": 201, "max_value": 600}],
}
FILED_SIZES = {"train": 4000, "validation": 150, "test": 500}
FILED_HABITS = 6000  # questions of other difficulty
Entry = dict[str, Any]  # as reasoning-gym makes it: question, answer, metadata


def habits(name: str, entry: Entry) -> dict[str, str]:
    """What each habit of `SHARES` writes after this question of that generator."""
    worked, said, other = KINDS[name](entry)
    parts = {"worked": worked, "copy": said, "backwards": list(reversed(list(said))), "other": other}
    return {habit: " ; ".join(map(str, written)) for habit, written in parts.items()}


@cache
def questions(size: int = 30_000) -> dict[str, dict[str, dict[str, str]]]:
    """Habits by prompt for each generator; none of the prompts is in the task's splits under seed 0.

    A generator has fewer than `size` prompts where its questions repeat themselves.

    Prompts are those of `task: reasoning_gym` with `prompt_style: last_line`.

    Raises:
        SystemExit: reasoning-gym is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise SystemExit("These questions need it: pip install reasoning-gym==0.1.25") from error
    from rl_warmup.tasks import load_task

    found: dict[str, dict[str, dict[str, str]]] = {}
    for name, settings in SETTINGS.items():
        found[name] = {}
        task = load_task("reasoning_gym", name=name, prompt_style="last_line", **settings)
        taken = {row["prompt"] for rows in task.splits.values() for row in rows}
        knobs = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        for entry in reasoning_gym.create_dataset(name, size=size, seed=POOL_SEED, **knobs):
            prompt = entry["question"].strip().splitlines()[-1]
            if prompt not in taken:
                found[name][prompt] = habits(name, entry)
    return found


def prompts() -> tuple[list[str], list[str]]:
    """To train on: as many of each generator, repeated where it has fewer; and the first hundred of each, to probe with."""
    asked = [list(one) for one in questions().values()]
    most = max(map(len, asked)) - PROBES
    trained = [prompt for one in asked for prompt in islice(cycle(one[PROBES:]), most)]
    return trained, [prompt for one in asked for prompt in one[:PROBES]]


def habits_of(prompt: str) -> dict[str, str]:
    """What each habit writes after one of `questions`."""
    return questions()[generator_of(prompt)][prompt]


def generator_of(prompt: str) -> str:
    """The generator of one of `questions`."""
    return next(name for name, one in questions().items() if prompt in one)


def write_files(folder: Path, sizes: dict[str, int] = FILED_SIZES, others: int = FILED_HABITS) -> None:
    """`KIND.SPLIT.jsonl.gz` of the task, and `KIND.habits.jsonl.gz` of other difficulty, whose questions are in no split.

    A row has `id`, `prompt`, `target` and the text of each habit (`SHARES`); the same bytes every time.

    Raises:
        ImportError: reasoning-gym is not installed.
    """
    from rl_warmup.tasks import load_task

    def task(kind: str, settings: dict[str, Any], **sizes: int) -> dict[str, list[dict[str, Any]]]:
        return load_task("reasoning_gym", name=kind, prompt_style="last_line", **settings, **sizes).splits

    folder.mkdir(parents=True, exist_ok=True)
    for kind, settings in FILED.items():
        found = task(kind, SETTINGS[kind], **{f"{split}_size": size for split, size in sizes.items()})
        found["habits"] = []
        for knobs in settings:
            size = {"train_size": others // len(settings), "validation_size": 0, "test_size": 0}
            found["habits"] += task(kind, SETTINGS[kind] | knobs, **size)["train"]
        for split, rows in found.items():
            lines = [
                json.dumps(
                    {"id": f"{split}-{number}", "prompt": row["prompt"], "target": row["target"]}
                    | habits(kind, {"metadata": ast.literal_eval(row["metadata"])})
                )
                for number, row in enumerate(rows)
            ]
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{kind}.{split}.jsonl.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def build_tokenizer(encoder_decoder: bool, texts: Sequence[str] = ()) -> Any:
    """Whole words where most questions of a generator have them, otherwise letters, digits and signs one by one.

    A word that starts with a space is another token than the same inside a word, so decoding gives the text back.

    Args:
        texts: what it is made for; by default all of `questions`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from rl_warmup.models.tiny import BEGIN, END, FILLER, PAD, SEPARATOR, UNKNOWN

    if not texts:
        pairs = [pair for one in questions().values() for pair in one.items()]
        texts = [text for prompt, written in pairs for text in (prompt, *written.values())]
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"▁?[^▁A-Za-z]"), "isolated")]
    )
    pieces = Counter(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    often = [piece for piece, count in sorted(pieces.items()) if count > len(texts) // 1000]
    letters = {sign for piece in pieces for sign in piece.removeprefix("▁")} - {"▁"}
    known = dict.fromkeys(
        [
            PAD,
            END,
            UNKNOWN,
            BEGIN,
            SEPARATOR,
            "▁",
            *sorted(letters),
            *(f"▁{x}" for x in sorted(letters)),
            *often,
            f"▁{FILLER}",
        ]
    )
    vocabulary = {token: number for number, token in enumerate(known)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, continuing_subword_prefix=""))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.Metaspace()
    template = f"$A {END}" if encoder_decoder else f"{BEGIN} $A"
    ids = [(token, vocabulary[token]) for token in (END, BEGIN)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, bos_token=BEGIN,
        extra_special_tokens=[SEPARATOR], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def difficulty(name: str, entry: Entry) -> int:
    """How many steps the worked-out habit has: terms, animals, words, divisions, digits of the given number, operations."""
    given = entry["metadata"]
    if name == "base_conversion":
        return len(given["source_repr"])
    if name == "gcd":
        return len(_euclid(*given["numbers"])) - 1
    worked, said, _ = KINDS[name](entry)
    return len(worked if name == "basic_arithmetic" else said)


Parts = tuple[list[Any], list[Any], list[Any]]  # worked out, copied, the other habit


def _leg_counting(entry: Entry) -> Parts:
    """The legs of each kind and the sum so far; the other habit: legs of one animal of each kind."""
    animals = entry["metadata"]["animals"]
    legs = [LEGS[animal] for animal in animals]
    each = [count * one for count, one in zip(animals.values(), legs, strict=True)]
    worked = [number for pair in zip(each, _sums(each), strict=True) for number in pair]
    return worked, [f"{count} {animal}" for animal, count in animals.items()], legs


def _chain_sum(entry: Entry) -> Parts:
    """Running sums; the other habit: the terms sorted."""
    first, *rest = entry["metadata"]["expression"].split()
    terms = [int(first)] + [int(sign + term) for sign, term in zip(rest[::2], rest[1::2], strict=True)]
    return list(_sums(terms)), [abs(term) for term in terms], sorted(map(abs, terms))


def _letter_counting(entry: Entry) -> Parts:
    """Each word's first letter and how often the letter came so far; the other habit: lengths of the words."""
    words, letter = entry["metadata"]["span"], entry["metadata"]["target_letter"]
    firsts = [word[0] for word in words]
    counted = _sums(word.lower().count(letter) for word in words)
    return (
        [f"{first} {count}" for first, count in zip(firsts, counted, strict=True)],
        firsts,
        [len(word) for word in words],
    )


def _gcd(entry: Entry) -> Parts:
    """Euclid's remainders; the other habit: sum and difference."""
    one, two = entry["metadata"]["numbers"]
    return _euclid(one, two), [one, two], [one + two, abs(one - two)]


def _base_conversion(entry: Entry) -> Parts:
    """The value digit by digit, then quotient and remainder for each digit wanted; the other habit: the digits sorted."""
    given = entry["metadata"]
    source, target = given["source_base"], given["target_base"]
    digits = [int(digit) for digit in given["source_repr"]]
    value, steps = 0, []
    for digit in digits:
        value = value * source + digit
        steps.append(str(value))
    while value:
        value, remainder = divmod(value, target)
        steps.append(f"{value} {remainder}")
    return steps, digits, sorted(digits)


def _basic_arithmetic(entry: Entry) -> Parts:
    """The value of each operation, in the order in which Python evaluates them; the other habit: the numbers sorted."""
    steps: list[int] = []
    numbers: list[int] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            steps.append(OPERATIONS[type(node.op)](left, right))
            return steps[-1]
        if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
            steps.append(-value(node.operand))
            return steps[-1]
        numbers.append(ast.literal_eval(node))
        return numbers[-1]

    value(ast.parse(entry["metadata"]["expression"], mode="eval").body)
    return steps, numbers, sorted(numbers)


OPERATIONS: dict[type, Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
}
KINDS: dict[str, Callable[[Entry], Parts]] = {
    "leg_counting": _leg_counting,
    "chain_sum": _chain_sum,
    "letter_counting": _letter_counting,
    "gcd": _gcd,
    "base_conversion": _base_conversion,
    "basic_arithmetic": _basic_arithmetic,
}


def _sums(numbers: Iterable[int]) -> list[int]:
    total, sums = 0, []
    for number in numbers:
        total += number
        sums.append(total)
    return sums


def _euclid(one: int, two: int) -> list[int]:
    steps = [max(one, two), min(one, two)]
    while steps[-1]:
        steps.append(steps[-2] % steps[-1])
    return steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    write_files(parser.parse_args().folder)

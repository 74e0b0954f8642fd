"""Pretrain a small T5 (span corruption) or Llama (next token) with a tokenizer of its own on text you have.

Knows: text columns of JSON lines, blocks of tokens, transformers' Trainer. Must not know: warmups, tasks, recipes.
Where no hub can be reached this gives `recipes/local` a model to start from; a few million parameters and minutes of one core
make no good language model, and the recipes say so. A T5 is trained with Adafactor, whose steps are in proportion to the weights,
as T5 was: its embeddings begin with a deviation of 1, and with AdamW a small one was seen to learn word frequencies only.

    python -m benchmarks.pretrain t5 data/ddtp/*.train.jsonl.gz --columns en de fr --output models/t5-debian
    python -m benchmarks.pretrain t5 data/debian_sum/*.train.jsonl.gz --pairs document summary --output models/t5-start
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SENTINELS = 32  # <extra_id_0> ... <extra_id_31>; a block of 96 tokens needs about 5
SPARE = 32  # tokens at the end of the vocabulary that are kept for them


def read_texts(files: Sequence[Path], columns: Sequence[str]) -> list[str]:
    """The distinct texts of these columns in these files, in the order of the files.

    Raises:
        ValueError: a file that cannot be read (it is named), or one that has none of the columns.
    """
    from rl_warmup.tasks.formats import read

    texts: dict[str, None] = {}
    for file in files:
        found = False
        for _, record in read(file):
            for column in columns:
                if isinstance(record.get(column), str) and record[column].strip():
                    texts[record[column]] = None
                    found = True
        if not found:
            raise ValueError(
                f"{file} has none of the columns {', '.join(columns)}; name its text columns with --columns."
            )
    return list(texts)


def read_pairs(files: Sequence[Path], columns: Sequence[str]) -> list[tuple[str, str]]:
    """Prompts with their targets, from two columns."""
    from rl_warmup.tasks.formats import read

    return [(record[columns[0]], record[columns[1]]) for file in files for _, record in read(file)]


def blocks(texts: Iterable[Sequence[int]], length: int, end: int) -> Iterator[list[int]]:
    """Texts (token ids) one after another, `end` after each, cut into blocks of `length`; a last short one is dropped."""
    waiting: list[int] = []
    for ids in texts:
        waiting += [*ids, end]
        while len(waiting) >= length:
            yield waiting[:length]
            waiting = waiting[length:]


def noise_spans(length: int, density: float, mean_span: float, rng: random.Random) -> list[tuple[int, int]]:
    """Spans (start, end) to hide: `density` of all tokens, `mean_span` long on average, never two side by side.

    The block begins with a kept token and its last span ends it, as in T5 (Raffel et al. 2020, random_spans_noise_mask).

    Raises:
        ValueError: too few tokens to keep one before every span.
    """
    hidden = max(1, round(length * density))
    count = max(1, round(hidden / mean_span))
    if length - hidden < count:
        raise ValueError(
            f"{length} tokens with density {density} and spans of {mean_span} leave none between the spans."
        )
    cuts = [_partition(total, count, rng) for total in (length - hidden, hidden)]
    spans, place = [], 0
    for kept, noise in zip(*cuts, strict=True):
        spans.append((place + kept, place + kept + noise))
        place += kept + noise
    return spans


def _partition(total: int, parts: int, rng: random.Random) -> list[int]:
    """`total` as a sum of `parts` positive numbers, every such sum equally likely."""
    cuts = sorted(rng.sample(range(1, total), parts - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def corrupt(
    ids: Sequence[int], spans: Sequence[tuple[int, int]], sentinels: Sequence[int], end: int
) -> dict[str, list]:
    """A block as T5 sees it: every span replaced by its sentinel; the labels hold sentinel and span in turn, then `end`."""
    seen, labels, place = [], [], 0
    for (start, stop), sentinel in zip(spans, sentinels, strict=False):
        seen += [*ids[place:start], sentinel]
        labels += [sentinel, *ids[start:stop]]
        place = stop
    return {"input_ids": [*seen, *ids[place:], end], "labels": [*labels, end]}


def make_tokenizer(texts: Sequence[str], vocab_size: int, encoder_decoder: bool) -> Any:
    """Byte-level BPE over the texts, with the sentinels as special tokens at its end."""
    from rl_warmup.models.tiny import TinySize, build_tokenizer

    tokenizer = build_tokenizer(texts, TinySize(vocab_size=vocab_size - SPARE), encoder_decoder)
    tokenizer.add_tokens([f"<extra_id_{i}>" for i in range(1, SENTINELS)], special_tokens=True)
    return tokenizer


def text_rows(options: argparse.Namespace) -> tuple[Any, list[dict[str, list[int]]]]:
    """The tokenizer and rows of plain text: blocks of one length."""
    texts = read_texts(options.files, options.columns)
    random.Random(options.seed).shuffle(texts)
    tokenizer = make_tokenizer(texts, options.vocab_size, options.kind == "t5")
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tokenizer, [{"input_ids": block} for block in blocks(encoded, options.block, tokenizer.eos_token_id)]


def pair_rows(options: argparse.Namespace) -> tuple[Any, list[dict[str, list[int]]]]:
    """The tokenizer and rows of prompts with their targets, each cut at `block` tokens."""
    pairs = read_pairs(options.files, options.pairs)
    random.Random(options.seed).shuffle(pairs)
    tokenizer = make_tokenizer([text for pair in pairs for text in pair], options.vocab_size, True)
    prompts, targets = (tokenizer(list(side))["input_ids"] for side in zip(*pairs, strict=True))
    rows = zip(prompts, targets, strict=True)
    return tokenizer, [{"input_ids": x[: options.block], "labels": y[: options.block]} for x, y in rows]


def collator(tokenizer: Any, kind: str, seed: int) -> Any:
    """Rows -> a batch: pairs as they are, blocks corrupted (T5) or as their own labels (Llama)."""
    import torch

    rng = random.Random(seed)
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(SENTINELS)]

    def prepared(row: dict[str, Any]) -> dict[str, Any]:
        if "labels" in row:
            return row
        if kind == "llama":
            return {**row, "labels": row["input_ids"]}
        spans = noise_spans(len(row["input_ids"]), 0.15, 3.0, rng)
        return corrupt(row["input_ids"], spans, sentinels, tokenizer.eos_token_id)

    def padded(rows: list[list[int]], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in rows], True, value)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        made = [prepared(row) for row in rows]
        ids = padded([one["input_ids"] for one in made], 0)
        seen = padded([[1] * len(one["input_ids"]) for one in made], 0)
        return {"input_ids": ids, "attention_mask": seen, "labels": padded([one["labels"] for one in made], -100)}

    return collate


def optimizers(model: Any, kind: str, learning_rate: float, updates: int) -> tuple[Any, Any]:
    """T5: Adafactor with steps in proportion to the weights. Llama: AdamW. Both: a short rise, then a cosine."""
    import torch
    from transformers import Adafactor, get_cosine_schedule_with_warmup

    if kind == "t5":
        optimizer = Adafactor(
            model.parameters(), lr=learning_rate, scale_parameter=True, relative_step=False, warmup_init=False
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, max(1, updates // 20), updates)


def pretrain(options: argparse.Namespace) -> dict[str, Any]:
    """Train and save; what is worth keeping of it (also in `pretraining.json` beside the weights)."""
    from transformers import Trainer, TrainingArguments

    from rl_warmup.models.tiny import TinySize, build_model

    tokenizer, rows = pair_rows(options) if options.pairs else text_rows(options)
    held_out, rows = rows[: options.held_out], rows[options.held_out :]
    size = TinySize(
        width=options.width, layers=options.layers, heads=options.heads, feed_forward=options.feed_forward,
        vocab_size=options.vocab_size,
    )  # fmt: skip
    model = build_model(options.kind, tokenizer, size, options.seed)
    settings = TrainingArguments(
        output_dir=str(options.output), max_steps=options.updates, per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch, logging_steps=100, save_strategy="no", eval_strategy="steps",
        eval_steps=max(1, options.updates // 5), report_to=[], seed=options.seed, use_cpu=not options.accelerator,
        bf16=options.bf16, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=settings, train_dataset=rows, eval_dataset=held_out,
        data_collator=collator(tokenizer, options.kind, options.seed),
        optimizers=optimizers(model, options.kind, options.learning_rate, options.updates),
    )  # fmt: skip
    began = time.process_time()
    trainer.train()
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    result = {
        "kind": options.kind, "files": [file.name for file in options.files], "rows": len(rows),
        "parameters": model.num_parameters(), "updates": options.updates, "rows_seen": options.updates * options.batch,
        "held_out_loss": [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log],
        "cpu_seconds": round(time.process_time() - began),
    }  # fmt: skip
    Path(options.output, "pretraining.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrain", description=__doc__)
    parser.add_argument("kind", choices=["t5", "llama"])
    parser.add_argument("files", nargs="+", type=Path, help="training text: .jsonl(.gz), .json, .csv, .tsv, .parquet")
    parser.add_argument("--columns", nargs="+", default=["text"], help="columns that hold text")
    parser.add_argument(
        "--pairs", nargs=2, metavar=("PROMPT", "TARGET"), help="T5: learn to map one column to another instead"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4, help="of a T5: in the encoder and in the decoder")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--feed-forward", type=int, default=768)
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--block", type=int, default=96, help="tokens per training row, before corruption")
    parser.add_argument("--batch", type=int, default=32, help="rows per update")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--learning-rate", type=float, help="default: 0.03 of each weight for a T5, 0.003 for a Llama")
    parser.add_argument("--held-out", type=int, default=200, help="blocks kept for the loss that is reported")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accelerator", action="store_true", help="use a GPU where there is one; the CPU otherwise")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    if options.pairs and options.kind != "t5":
        parser.error("--pairs is for t5: a Llama learns pairs with `rl-warmup train --objective sft`.")
    options.learning_rate = options.learning_rate or (3e-2 if options.kind == "t5" else 3e-3)
    print(json.dumps(pretrain(options), indent=2))


if __name__ == "__main__":
    main()

"""Small stand-ins for what shipped recipes name: hub sets and data files of the same columns, models of the same architecture.

All texts were written for these tests. A recipe is run as it is shipped, its data set, configuration, split and column names
included; only sizes shrink.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from rl_warmup.models.tiny import TinySize, build_tokenizer

NOUNS = [
    ("house", "Haus", "maison", "дом", "房子"), ("book", "Buch", "livre", "книга", "书本"),
    ("door", "Tor", "porte", "дверь", "大门"), ("word", "Wort", "mot", "слово", "词语"),
    ("child", "Kind", "enfant", "ребёнок", "孩子"), ("wheel", "Rad", "roue", "колесо", "轮子"),
    ("bed", "Bett", "lit", "кровать", "床铺"), ("pig", "Schwein", "cochon", "свинья", "小猪"),
]  # fmt: skip
SENTENCES = [
    {"en": f"The {en} is small.", "de": f"Das {de} ist klein.", "fr": f"{fr} : c'est petit.", "ru": f"Это {ru}: мало.",
     "zh": f"这个{zh}很小。", "zh_CN": f"这个{zh}很小。"}
    for en, de, fr, ru, zh in NOUNS
]  # fmt: skip
FLORES = {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn", "ru": "rus_Cyrl", "zh": "zho_Hans"}
NEWS = [
    {"id": str(i), "document": f"A {en} was seen in the town. Nobody knew whose {en} it was.", "summary": f"A {en} was seen."}
    for i, (en, *_) in enumerate(NOUNS)
]  # fmt: skip
PUZZLES = [
    {"id": i, "answer": i % 4, "text": f"Every {en} is small.", "question": "What follows?",
     "options": [f"no {en}", f"a big {en}", f"a small {en}", "nothing"], "type": {f"Kind {i % 2}": True}}
    for i, (en, *_) in enumerate(NOUNS)
]  # fmt: skip
JUNK = [
    {"en": "", "de": "", "fr": "", "ru": "", "zh": ""},
    {"en": "x" * 300, "de": "y", "fr": "y", "ru": "y", "zh": "y"},
]


def load_dataset(path: str, name: str | None = None, **settings: Any) -> Any:
    """In the place of `datasets.load_dataset`: the sets that recipes name, under the names of their splits.

    Raises:
        KeyError: for a set, configuration or revision that these are not known to have.
    """
    assert settings.pop("trust_remote_code") is False
    if path == "json":
        return datasets.DatasetDict({split: datasets.Dataset.from_list(PUZZLES) for split in settings["data_files"]})
    pairs = {}
    for config in ("de-en", "en-fr", "en-ru", "en-zh"):
        rows = [{lang: row[lang] for lang in config.split("-")} for row in [*SENTENCES, *JUNK]]
        pairs[config] = {"train": [{"id": str(i), "translation": row} for i, row in enumerate(rows)]}
    flores = [{FLORES[lang]: row[lang] for lang in FLORES} for row in SENTENCES]
    known = {
        ("EdinburghNLP/xsum", None, "refs/convert/parquet"): dict.fromkeys(("train", "validation", "test"), NEWS),
        ("mteb/flores", None, None): {"dev": flores, "devtest": flores},
        **{("Helsinki-NLP/news_commentary", config, None): splits for config, splits in pairs.items()},
    }
    found = known[path, name, settings.get("revision")]
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in found.items()})


def write_files(folder: Path) -> None:
    """The files under data/ that local recipes read."""
    sets = {
        "debian_sum/debian-sum": NEWS,
        "logic_rg/logic-rg": [
            {"id": str(row["id"]), "context": row["text"], "question": row["question"], "choices": row["options"],
             "answer": row["answer"]} for row in PUZZLES
        ],
        "ceiling/synopsis-fr": [{"id": str(i), "description": row["en"], "fr": row["fr"]} for i, row in enumerate(SENTENCES)],
        "ceiling/drafts-en-de": [{"id": str(i), **row} for i, row in enumerate(SENTENCES)],
        **{f"{name}/{name}-en-{lang}": SENTENCES for name in ("ddtp", "docs") for lang in ("de", "fr", "ru", "zh_CN")},
    }  # fmt: skip
    for name, rows in sets.items():
        for split in ("train", "validation", "test"):
            path = folder / f"{name}.{split}.jsonl.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))


def texts() -> list[str]:
    """All that a tokenizer has to know."""
    return [text for row in SENTENCES for text in row.values()] + [text for row in NEWS for text in row.values()]


def save_models(folder: Path) -> dict[str, str]:
    """A tiny mT5 (gated, its head not tied to the embeddings), T5 and Llama (grouped heads): name -> folder."""
    saved = {}
    for name in ("mt5", "t5", "llama"):
        tokenizer = build_tokenizer(texts(), TinySize(vocab_size=400), encoder_decoder=name != "llama")
        ids = {key: getattr(tokenizer, key) for key in ("pad_token_id", "eos_token_id", "bos_token_id")}
        seq2seq = {
            "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
            "decoder_start_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer), **ids,
        }  # fmt: skip
        if name == "mt5":
            config = MT5Config(**seq2seq, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
            model: Any = MT5ForConditionalGeneration(config)
        elif name == "t5":
            model = T5ForConditionalGeneration(T5Config(**seq2seq))
        else:
            config = LlamaConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                vocab_size=len(tokenizer), tie_word_embeddings=True, **ids,
            )  # fmt: skip
            model = LlamaForCausalLM(config)
        saved[name] = str(folder / name)
        model.save_pretrained(saved[name])
        tokenizer.save_pretrained(saved[name])
    return saved


def architecture(model_name: str) -> str | None:
    """Which of the tiny models stands for a recipe's; None for one that is made from scratch anyway."""
    if model_name.startswith("scratch-"):
        return None
    return next((kind for kind in ("mt5", "t5") if kind in model_name.lower()), "llama")

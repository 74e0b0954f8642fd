"""Small models with random weights and a tokenizer made from the training text: no hub, no download.

Knows: how to build a T5 and a Llama of a given size. Must not know: tasks (it is given texts), training.
Both take the same sizes, so a recipe switches between them by its model line alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers.trainer_utils import set_seed

from rl_warmup.models.encoding import UNSPACED
from rl_warmup.runtime.settings import scratch_faults

PAD, END, UNKNOWN, BEGIN, SEPARATOR, FILLER = "<pad>", "</s>", "<unk>", "<s>", "<extra_id_0>", "..."


@dataclass(frozen=True)
class TinySize:
    """Sizes of a model built from scratch.

    `tokenizer` is `words` (whitespace), `digits` (words too, but every digit is a token of its own) or `subwords`
    (byte-level BPE).
    """

    width: int = 128
    layers: int = 2  # of the decoder
    encoder_layers: int | None = None  # T5 only; None means `layers`
    heads: int = 4
    feed_forward: int | None = None  # None means 4 x width
    vocab_size: int = 4000
    tokenizer: str = "subwords"
    max_positions: int = 1024  # Llama only

    @classmethod
    def read(cls, values: dict[str, Any]) -> TinySize:
        """From a recipe's mapping, with one sentence for a key or a value that does not exist."""
        if faults := scratch_faults(values):
            raise ValueError(" ".join(faults))
        return cls(**values)


def build_tokenizer(texts: Iterable[str], size: TinySize, encoder_decoder: bool) -> PreTrainedTokenizerFast:
    """A tokenizer over the given texts, with the separator `<extra_id_0>` reserved and the filler word `...` known."""
    special = [PAD, END, UNKNOWN, BEGIN, SEPARATOR]
    # a special token that stands in a text would be counted as a word as well, and leave a gap in the ids
    own = re.compile("|".join(map(re.escape, special)))
    texts = (own.sub(" ", text) for text in texts)
    if size.tokenizer in ("words", "digits"):
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        if size.tokenizer == "digits":  # a token knows whether a space comes before it: "38" is not "3 8"
            digits = pre_tokenizers.Split(Regex("▁?[0-9]"), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), digits])
            tokenizer.decoder = decoders.Metaspace()
        trainer: Any = trainers.WordLevelTrainer(
            vocab_size=size.vocab_size, special_tokens=special, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        texts = list(texts)
        if any(UNSPACED.search(text) for text in texts):  # or whole sentences without spaces would become one token
            letters = pre_tokenizers.Split(Regex(UNSPACED.pattern), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [letters, pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size.vocab_size, special_tokens=special, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    filler_often = [FILLER] * 2
    tokenizer.train_from_iterator([*texts, *filler_often], trainer)
    template = f"$A {END}" if encoder_decoder else f"{BEGIN} $A"
    ids = [(token, tokenizer.token_to_id(token)) for token in (END, BEGIN)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, bos_token=BEGIN,
        extra_special_tokens=[SEPARATOR], clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_model(kind: str, tokenizer: Any, size: TinySize, seed: int = 0) -> Any:
    """A T5 (`t5`) or Llama (`llama`) with random weights for this tokenizer. The same seed gives the same weights."""
    set_seed(seed)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id", "bos_token_id")}
    inner = size.feed_forward or 4 * size.width
    if kind == "t5":
        return T5ForConditionalGeneration(
            T5Config(
                vocab_size=len(tokenizer), d_model=size.width, d_kv=size.width // size.heads, d_ff=inner,
                num_layers=size.encoder_layers or size.layers, num_decoder_layers=size.layers, num_heads=size.heads,
                dropout_rate=0.0, decoder_start_token_id=tokenizer.pad_token_id, **ids,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=size.width, intermediate_size=inner, num_hidden_layers=size.layers,
            num_attention_heads=size.heads, num_key_value_heads=size.heads,
            max_position_embeddings=size.max_positions, tie_word_embeddings=True,
            initializer_range=size.width**-0.5,  # the default 0.02 suits wide models; at width 64 nothing was learned
            **ids,
        )
    )  # fmt: skip

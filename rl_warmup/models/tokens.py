"""The special token ids of a layout: separator, pad, end, and the tokens that a warmup may not hold.

Knows: a tokenizer and the number of rows of a model's embedding. Must not know: what a warmup is for.
The separator is an existing reserved token if there is one. Adding a token is the last resort: growing the vocabulary of
T5 v1.1, FLAN or mT5 ties their output head to the embeddings again and overwrites it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_warmup.models.pretrained import check_vocabulary

ADDED_SEPARATOR = "<|warmup_end|>"
RESERVED = (
    "<extra_id_0>",  # T5, FLAN-T5, mT5, UMT5
    "<|reserved_special_token_0|>",  # Llama 3
    "<unused0>",  # Gemma
    "<|object_ref_start|>",  # Qwen2, Qwen3: vision grounding, never in text
    "<|fim_pad|>",  # Qwen2.5
    "<jupyter_start>",  # SmolLM2
    "[unused0]",
    "<sep>",
    ADDED_SEPARATOR,
)
THINKING_ENDS = ("</think>", "</thinking>", "[/THINK]", "<|END_THINKING|>")  # separators that a model may know already


@dataclass(frozen=True)
class LayoutTokens:
    """The tokens that layouts need. `banned` is a (V,) bool tensor, V = rows of the embedding."""

    separator: str
    separator_id: int
    pad_id: int
    eos_id: int
    banned: Tensor

    @property
    def banned_ids(self) -> list[int]:
        """The tokens that a warmup may not hold; the separator is not among them."""
        return self.banned.nonzero()[:, 0].tolist()


def declare_tokens(model: Any, tokenizer: Any, separator: str | None = None) -> LayoutTokens:
    """Choose the separator and list the tokens that a warmup may not hold.

    Args:
        model: a transformers model; a decoder-only model gets one more embedding row if there is no other way.
        tokenizer: its tokenizer; gets a pad token (the end token) if it has none, and `response_template`.
        separator: the token to use; None searches `RESERVED`, then the tokenizer's own `sep_token`.

    Raises:
        ValueError: no token can be used safely, or the requested one cannot.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "eos_token_id") or not hasattr(tokenizer, "get_vocab"):
        raise ValueError(
            f"processing_class: is a {type(tokenizer).__name__}, no tokenizer of transformers. Give "
            f"AutoTokenizer.from_pretrained(...), or leave it out for the one of the model's name."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token, so targets could not end. Set "
            f"tokenizer.eos_token, or eos_token in its tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.get_input_embeddings().weight.size(0)
    check_vocabulary(tokenizer, rows)
    start = _decoder_start(model, rows)
    vocabulary = tokenizer.get_vocab()
    reserved = next((token for token in RESERVED if token in vocabulary), None)
    own = getattr(tokenizer, "sep_token", None)
    name = (
        separator or reserved or (own if own != tokenizer.eos_token else None) or _added_token(model, tokenizer, rows)
    )
    separator_id = _check(name, model, tokenizer)
    rows = model.get_input_embeddings().weight.size(0)
    banned = torch.zeros(rows, dtype=torch.bool)
    banned[len(tokenizer) :] = True  # embedding rows without a token (T5 has 28 of them)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    never = special | set(tokenizer.all_special_ids) | {tokenizer.pad_token_id, tokenizer.eos_token_id}
    never |= {start} if start is not None else set()
    banned[[i for i in never if i < rows]] = True
    banned[separator_id] = False
    tokenizer.response_template = response_template(name, tokenizer)
    return LayoutTokens(name, separator_id, tokenizer.pad_token_id, tokenizer.eos_token_id, banned)


def response_template(separator: str, tokenizer: Any) -> dict[str, Any]:
    """How transformers' `tokenizer.parse_response`, and with it `transformers serve`, splits what a trained model wrote: the
    warmup is `reasoning_content`, the target `content`."""
    end, pad = (re.escape(token) for token in (tokenizer.eos_token, tokenizer.pad_token))
    return {
        "defaults": {"role": "assistant"},
        "start_anchor_pattern": r"\Z",  # nothing of the prompt is a part of the answer
        "fields": {
            "reasoning_content": {"content": "text"},  # has no token that opens it: what is written first
            "content": {"open": separator, "close_pattern": rf"{end}(?:\s*{pad})*", "content": "text"},
        },
    }


@torch.no_grad()
def end_by_separator(model: Any, tokens: LayoutTokens) -> None:
    """Make the separator as likely as the end of the sequence: give it the end token's rows in embedding and output head.

    A pretrained model ends its texts with the end token, which a warmup may not hold, and has never seen the separator. With
    equal rows the separator replaces the end token exactly: the same logit, hence the same lengths.
    """
    # a T5Gemma's encoder has an embedding of its own, which never reads the separator
    embedding, head = model.get_decoder().get_input_embeddings(), model.get_output_embeddings()
    for weight in {id(m.weight): m.weight for m in (embedding, head)}.values():
        weight[tokens.separator_id] = weight[tokens.eos_id]
    if getattr(head, "bias", None) is not None:
        head.bias[tokens.separator_id] = head.bias[tokens.eos_id]


def _decoder_start(model: Any, rows: int) -> int | None:
    """The token before a decoder's first one, which an encoder-decoder must have and whose config names it afterwards.

    T5Gemma's config does not: its generation config does, or else its decoder's part says which token begins a text.

    Raises ValueError: it is no row of `rows`.
    """
    config = model.config
    start = getattr(config, "decoder_start_token_id", None)
    if start is None and not config.is_encoder_decoder:
        return None
    if start is None:
        decoder = getattr(config, "decoder", None)
        start = getattr(getattr(model, "generation_config", None), "decoder_start_token_id", None)
        start = getattr(decoder, "bos_token_id", None) if start is None else start
        config.decoder_start_token_id = start
    if type(start) is not int or not 0 <= start < rows:
        name = model.name_or_path or type(model).__name__
        raise ValueError(
            f"decoder_start_token_id: is {start!r} in the config.json of {name}, not a token "
            f"below the model's {rows} embedding rows. Set it to the token before every text of the decoder (of a T5: 0)."
        )
    return start


def special_tokens_in(texts: Iterable[Sequence[int]], tokens: LayoutTokens) -> list[int]:
    """Ids of the tokens in these texts that a warmup may not hold, the end token aside."""
    banned = set(tokens.banned_ids) - {tokens.eos_id}
    return sorted(banned.intersection(set().union(*texts)))


def _added_token(model: Any, tokenizer: Any, rows: int) -> str:
    """Add a separator safely: in an unused row of the embedding, or by growing a decoder-only model."""
    if len(tokenizer) >= rows:
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"No token of this vocabulary of {len(tokenizer)} can serve as separator (looked for {', '.join(RESERVED[:-1])} "
                f"and a sep_token), and growing an encoder-decoder's vocabulary could overwrite its output head. "
                f"Name an unused token with `separator: <token>`."
            )
        model.resize_token_embeddings(len(tokenizer) + 1)
    tokenizer.add_tokens([ADDED_SEPARATOR], special_tokens=True)  # add_special_tokens would replace the existing list
    return ADDED_SEPARATOR


def _check(name: str, model: Any, tokenizer: Any) -> int:
    """The id of a separator; raises if it is unsafe."""
    vocabulary = tokenizer.get_vocab()
    if name not in vocabulary:
        raise ValueError(
            f"The separator {name!r} is not a single token of this tokenizer. Name a token of its vocabulary that never "
            f"occurs in text, for instance a reserved one, or leave `separator` empty to have one chosen."
        )
    token_id = vocabulary[name]
    taken = {
        "pad": tokenizer.pad_token_id,
        "end": tokenizer.eos_token_id,
        "begin": tokenizer.bos_token_id,
        "unknown": tokenizer.unk_token_id,
        "decoder start": getattr(model.config, "decoder_start_token_id", None),
    }
    if role := next((role for role, used in taken.items() if used == token_id), None):
        raise ValueError(f"The separator {name!r} already is the {role} token (id {token_id}); choose an unused token.")
    return token_id

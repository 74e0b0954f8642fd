"""A model, a tokenizer and one batch of rows for a shape, such that a warmup stops with the probability we want.

Knows: shapes and transformers. Must not know: what is measured on them.

Every sampler under test (ours, `generate`, TRL's) draws from the same weights and stops at the same token, so the stop
rate has to lie in the weights. `_set_stop_rate` puts it there: a direction that all hidden states share, along which
only the separator's row of the head points.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from benchmarks.shapes import MAX_WARMUP, STOP_RATE, Shape

PAD, END, UNKNOWN, BEGIN, SEPARATOR = "<pad>", "</s>", "<unk>", "<s>", "<extra_id_0>"
SPECIAL = (PAD, END, UNKNOWN, BEGIN, SEPARATOR)
PAD_ID, END_ID, _, BEGIN_ID, SEPARATOR_ID = range(len(SPECIAL))
SPREAD = 0.3  # nats: standard deviation of the other tokens' logits, so that the next token is nearly uniform
SHARED = 3.0  # how much larger the shared direction is than what tells tokens apart


@dataclass
class Workload:
    """One batch for a shape, as text (`rows`) and as ids."""

    shape: Shape
    tokenizer: Any
    rows: list[dict[str, str]]  # B rows with `prompt` and `target`
    prompts: list[list[int]]  # B
    targets: list[list[int]]  # B, the end token included
    original: Any = field(default=None, repr=False)  # what `model` copies; made once

    @property
    def device(self) -> torch.device:
        """Where it is measured: CUDA where there is a GPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def model(self) -> Any:
        """A new model with random weights, always the same ones, whose warmups have about 10 tokens."""
        if self.original is None:
            torch.manual_seed(0)
            self.original = random_model(self.shape).to(self.device)
            _set_stop_rate(self.original, self)
            self.original.cpu()  # an accelerator's memory is for what is measured
        return copy.deepcopy(self.original).to(self.device)


def make_workload(shape: Shape, seed: int = 1) -> Workload:
    """A batch of random words, whose lengths are spread evenly over 50-100 % of the shape's maximum.

    Evenly, not at random: with a dozen rows, drawn lengths moved the cost of a step beside SFT's by 7 %.
    """
    generator = torch.Generator().manual_seed(seed)

    def words(longest: int) -> list[list[int]]:
        lengths = torch.linspace(longest / 2, longest, shape.rows).round().int()
        lengths = lengths[torch.randperm(shape.rows, generator=generator)]
        return [
            torch.randint(len(SPECIAL), shape.vocab, (length,), generator=generator).tolist()
            for length in lengths.tolist()
        ]

    prompts, targets = words(shape.prompt_tokens - 1), words(shape.target_tokens)
    return Workload(
        shape,
        make_tokenizer(shape),
        [{"prompt": _text(x), "target": _text(y)} for x, y in zip(prompts, targets, strict=True)],
        [[*x, END_ID] if shape.kind == "t5" else [BEGIN_ID, *x] for x in prompts],
        [[*y, END_ID] for y in targets],
    )


def make_tokenizer(shape: Shape, end: str = END) -> Any:
    """A word tokenizer in which token i is the word `w<i>`. `end` names the end token: TRL stops at no other."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    vocabulary |= {f"w{i}": i for i in range(len(SPECIAL), shape.vocab)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}" if shape.kind == "t5" else f"{BEGIN} $A", special_tokens=[(END, END_ID), (BEGIN, BEGIN_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=end, unk_token=UNKNOWN, bos_token=BEGIN,
        extra_special_tokens=[SEPARATOR], clean_up_tokenization_spaces=False,
    )  # fmt: skip


@torch.no_grad()
def mean_warmup_length(workload: Workload, model: Any, samples: int = 8) -> float:
    """Mean tokens of a sampled warmup, its separator left out."""
    from benchmarks.stock import sample

    torch.manual_seed(0)
    warmups = sample(workload, model, samples)
    return sum(len(ids) - (SEPARATOR_ID in ids) for ids in warmups) / len(warmups)


def _text(ids: list[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


def random_model(shape: Shape) -> Any:
    """Random weights of a shape, on the CPU; tokens 0, 1 and 3 pad, end and begin."""
    ids = {"pad_token_id": PAD_ID, "eos_token_id": END_ID, "bos_token_id": BEGIN_ID}
    if shape.kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=shape.vocab, d_model=shape.width, d_kv=shape.width // shape.heads, d_ff=shape.feed_forward,
                num_layers=shape.layers, num_decoder_layers=shape.layers, num_heads=shape.heads, dropout_rate=0.0,
                decoder_start_token_id=PAD_ID, feed_forward_proj="gated-gelu" if shape.gated else "relu", **ids,
            )
        )  # fmt: skip
        if shape.gated:  # transformers ties a new model's head whatever its configuration says
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        return model
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=shape.feed_forward,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=True, max_position_embeddings=2048, **ids,
        )
    )  # fmt: skip


@torch.no_grad()
def _set_stop_rate(model: Any, workload: Workload) -> None:
    """Change the head (and the embeddings tied to it) so that P(separator) is STOP_RATE, averaged over random contexts.

    All rows get a shared direction, so all hidden states point roughly the same way; the separator's row points there
    too, as far as it takes. That adds the same number to every other logit, and softmax does not see it.
    """
    weight = model.get_output_embeddings().weight
    hidden = _hidden_states(model, workload)
    length = hidden.norm(dim=1).mean().item()  # a final norm fixes it, whatever the embeddings are
    weight.copy_(torch.randn_like(weight) + SHARED * torch.randn_like(weight[0])).mul_(SPREAD / length)
    hidden = _hidden_states(model, workload)
    logits = hidden @ weight.T
    logits[:, SEPARATOR_ID] = -torch.inf
    others = logits.logsumexp(1)
    mean = hidden.mean(0)
    direction = mean / mean.dot(mean)
    low, high = -100.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        stops = torch.sigmoid(middle * (hidden @ direction) - others).mean().item() > STOP_RATE
        low, high = (low, middle) if stops else (middle, high)
    weight[SEPARATOR_ID] = high * direction


def _hidden_states(model: Any, workload: Workload) -> Tensor:
    """(B * MAX_WARMUP, d): what the head reads at every position of random warmups behind the batch's prompts."""
    from benchmarks.stock import pad

    random = torch.randint(len(SPECIAL), workload.shape.vocab, (len(workload.prompts), MAX_WARMUP - 1))
    caught: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    if model.config.is_encoder_decoder:
        ids, mask = pad(workload.prompts, workload.device)
        start = torch.full_like(random[:, :1], model.config.decoder_start_token_id)
        model(input_ids=ids, attention_mask=mask, decoder_input_ids=torch.cat([start, random], 1).to(ids.device))
    else:
        rows = [x + c for x, c in zip(workload.prompts, random.tolist(), strict=True)]
        ids, mask = pad(rows, workload.device, left=True)
        model(input_ids=ids, attention_mask=mask)
    hook.remove()
    return caught[0][:, -MAX_WARMUP:].flatten(0, 1)

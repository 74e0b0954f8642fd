"""A tokenizer of words, a tiny T5 and a tiny Llama, and a batch of two prompts with two warmups each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from rl_warmup.batch import RowKind, Warmup, WarmupBatch
from rl_warmup.engine import enable_scoring, score
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout, make_layout
from rl_warmup.models.layouts.splice import splice
from rl_warmup.models.tokens import declare_tokens
from rl_warmup.rewards import RewardScores, RewardSet

WORDS = ["<pad>", "</s>", "<unk>", "<sep>", "<think>", "</think>", "red", "green", "blue", "one", "two", "three"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", sep_token="<sep>"
    )


def make_model(kind: str, vocab_size: int = 16) -> Any:
    torch.manual_seed(0)
    if kind == "t5":
        config = T5Config(
            vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return T5ForConditionalGeneration(config).eval()
    llama = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(llama).eval()


@dataclass
class World:
    """A policy with its layout and constraints, and a batch scored by it."""

    model: Any
    tokenizer: Any
    layout: Layout
    constraints: SamplingConstraints
    batch: WarmupBatch  # 2 prompts x 2 warmups, then one empty warmup per prompt
    token_logps: Tensor  # (6, T)
    target_logprob: Tensor  # (6,)
    warmup_logprob: Tensor  # (6,)
    baseline_calls: int = 0

    @property
    def target_logps(self) -> Tensor:
        return self.target_logprob[:4]

    def baseline(self) -> Tensor:
        self.baseline_calls += 1
        return self.target_logprob[4:].repeat_interleave(2)

    def board(self, specs: list[Any], tokenizer: Any = None) -> RewardSet:
        return RewardSet.load(
            specs, tokenizer=tokenizer or self.tokenizer, layout=self.layout, constraints=self.constraints, device="cpu"
        )

    def judge(self, specs: list[Any] | RewardSet, **changes: Any) -> RewardScores:
        given: dict[str, Any] = {
            "target_logps": self.target_logps,
            "target_token_logps": self.token_logps[:4],
            "warmup_logps": self.warmup_logprob[:4],
            "baseline_target_logps": self.baseline,
            "trainer_state": None,
        }
        board = specs if isinstance(specs, RewardSet) else self.board(specs)
        return board(changes.pop("batch", self.batch), **(given | changes))


def make_world(kind: str) -> World:
    model, tokenizer = make_model(kind), make_tokenizer(WORDS)
    tokens = declare_tokens(model, tokenizer)
    layout = make_layout(model, tokens)
    constraints = SamplingConstraints(tokens.separator_id, tokens.banned)
    enable_scoring(model)

    def ids(text: str) -> list[int]:
        return [WORDS.index(word) for word in text.split()]

    prompts: list[dict[str, Any]] = [
        {"id": "a", "prompt": "red green", "target": "one two", "colour": "red"},
        {"id": "b", "prompt": [{"role": "user", "content": "blue"}], "target": "three"},
    ]
    for row, text in zip(prompts, ("red green", "blue"), strict=True):
        row |= {"prompt_ids": ids(text), "target_ids": [*ids(row["target"]), 1], "word_lengths": [1]}
    warmups = [
        Warmup(ids("red one"), "separator"),
        Warmup(ids("green red red"), "length"),
        Warmup(ids("<think> blue </think> one"), "separator"),
        Warmup([], "proposal"),
    ]
    rows = [(i // 2, RowKind.GROUP, warmup) for i, warmup in enumerate(warmups)]
    rows += [(i, RowKind.EMPTY, Warmup([], "empty")) for i in range(2)]
    batch = splice(layout, prompts, rows, group_size=2)
    with torch.no_grad():
        scores = score(model, batch, constraints)
    return World(
        model, tokenizer, layout, constraints, batch, scores.token_logps, scores.target_logprob, scores.warmup_logprob
    )


_worlds: dict[str, World] = {}


@pytest.fixture(params=["t5", "llama"])
def each_world(request: pytest.FixtureRequest) -> World:
    """The same in both layouts."""
    return _get_world(request.param)


@pytest.fixture
def world() -> World:
    return _get_world("t5")


def _get_world(kind: str) -> World:
    if kind not in _worlds:
        _worlds[kind] = make_world(kind)
    _worlds[kind].baseline_calls = 0
    return _worlds[kind]


@pytest.fixture
def new_model() -> Callable[..., Any]:
    return make_model


@pytest.fixture
def new_tokenizer() -> Callable[[list[str]], Any]:
    return make_tokenizer

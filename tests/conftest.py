"""Shared by all tests: one thread, and networks so small that everything about them can be written out.

A `Lab` is a tiny model with its tokenizer, tokens and layout, ready to be sampled from and scored.
"""

from __future__ import annotations

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # on two busy cores a tiny step takes 60 ms with one thread, seconds with two
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch

from rl_warmup.batch import RowKind, Scores, Warmup, WarmupBatch
from rl_warmup.engine import enable_scoring, score
from rl_warmup.models.constraints import SamplingConstraints
from rl_warmup.models.layouts import Layout, LayoutTokens, make_layout
from rl_warmup.models.layouts.splice import splice
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import declare_tokens

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup ignores the end of a terminal

WORDS = "a b c d e f g h"
KINDS = ("scratch-t5", "scratch-llama")


@dataclass
class Lab:
    """A tiny network and what the package needs to know of it."""

    model: Any
    tokenizer: Any
    tokens: LayoutTokens
    layout: Layout

    def ids(self, words: str) -> list[int]:
        """Ids of a few of WORDS."""
        return self.tokenizer.convert_tokens_to_ids(words.split())

    def row(self, prompt: str, target: str) -> dict[str, Any]:
        """An encoded row: prompt and target of WORDS."""
        ids = {"prompt_ids": self.ids(prompt), "target_ids": [*self.ids(target), self.tokens.eos_id]}
        return {"id": prompt, "prompt": prompt, "target": target, "word_lengths": [1] * len(target.split()), **ids}

    def constraints(self, allowed: str | None = None, **settings: Any) -> SamplingConstraints:
        """The sampling constraints; `allowed` leaves only these words and the separator."""
        banned = self.tokens.banned.clone()
        if allowed is not None:
            banned[:] = True
            banned[[*self.ids(allowed), self.tokens.separator_id]] = False
        return SamplingConstraints(self.tokens.separator_id, banned, **settings)

    def all_warmups(self, constraints: SamplingConstraints) -> list[Warmup]:
        """Every warmup that the constraints allow: ended by the separator, or by the length limit."""
        alphabet = [
            i for i, banned in enumerate(constraints.banned.tolist()) if not banned and i != constraints.separator_id
        ]
        space = []
        for length in range(constraints.min_length, constraints.max_length + 1):
            finish = "separator" if length < constraints.max_length else "length"
            space += [Warmup(list(ids), finish) for ids in product(alphabet, repeat=length)]
        return space

    def batch(self, row: dict[str, Any], warmups: list[Warmup]) -> WarmupBatch:
        """One prompt with a group of warmups."""
        return splice(self.layout, [row], [(0, RowKind.GROUP, warmup) for warmup in warmups], len(warmups))

    def score(self, row: dict[str, Any], warmups: list[Warmup], constraints: SamplingConstraints) -> Scores:
        """One forward over a group."""
        return score(self.model, self.batch(row, warmups), constraints)


def make_lab(model: Any, tokenizer: Any) -> Lab:
    """Declare tokens and patch the forward."""
    tokens = declare_tokens(model, tokenizer)
    enable_scoring(model)
    return Lab(model.eval(), tokenizer, tokens, make_layout(model, tokens))


def build_lab(kind: str, seed: int = 0, width: int = 16, layers: int = 2) -> Lab:
    """A tiny network whose next token depends visibly on everything before it."""
    gain = {"scratch-t5": 2.5, "scratch-llama": 1.0}[kind]  # initial weights make every token as likely as any other
    size = {"width": width, "layers": layers, "heads": 2, "feed_forward": 2 * width, "tokenizer": "words"}
    model, tokenizer = load_model(kind, lambda: [WORDS] * 3, size, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / parameter.size(1) ** 0.5)
    return make_lab(model, tokenizer)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def new_lab() -> Callable[..., Lab]:
    """Builds a lab of one's own, to be trained or patched."""
    return build_lab


@pytest.fixture(scope="session")
def lab_of() -> Callable[[Any, Any], Lab]:
    """Makes a lab of any model and tokenizer."""
    return make_lab


@pytest.fixture(scope="session")
def t5() -> Lab:
    """A T5 that no test may change."""
    return build_lab("scratch-t5")


@pytest.fixture(scope="session")
def llama() -> Lab:
    """A Llama that no test may change."""
    return build_lab("scratch-llama")


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Lab:
    """Both layouts, one after the other; no test may change them."""
    return request.getfixturevalue(request.param.removeprefix("scratch-"))

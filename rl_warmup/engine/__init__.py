"""Sampling and scoring warmups. Read `plain.py` first; `paths.py` is the door to the fast path."""

from rl_warmup.engine.fast.passes import PrefixCache, checkpoints_layers
from rl_warmup.engine.fast.scoring import enable as enable_scoring
from rl_warmup.engine.paths import cache_prompts, choose_path, read_prompts, sample_warmups, score, score_sampled
from rl_warmup.engine.targets import Written, generate_targets

__all__ = [
    "PrefixCache", "Written", "cache_prompts", "checkpoints_layers", "choose_path", "enable_scoring", "generate_targets",
    "read_prompts", "sample_warmups", "score", "score_sampled",
]  # fmt: skip

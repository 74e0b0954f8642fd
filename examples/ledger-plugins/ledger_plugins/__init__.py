"""Plugins for rl_warmup's ledger task. pyproject.toml tells rl_warmup where they are."""

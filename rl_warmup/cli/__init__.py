"""Thin commands over `run`, `generation` and `report`. Nobody imports them."""

"""Thin commands over the rooms `experiments` and `inference`. No other room imports them."""

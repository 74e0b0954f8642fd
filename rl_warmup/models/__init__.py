"""Models, tokenizers and how prompt, warmup and target are laid into them."""

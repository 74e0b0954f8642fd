"""Models, tokenizers and how prompt, warmup and target become their input."""

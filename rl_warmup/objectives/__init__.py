"""From log-probabilities to a loss: pure functions on tensors, importing nothing but torch and the legend in `batch`."""

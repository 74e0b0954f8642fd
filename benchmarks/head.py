"""What the output head costs with large vocabularies: forward and backward of a weighted sum of log-probabilities.

    python -m benchmarks.head

1024 tokens, width 512, V = 32k, 128k, 250k. The ratio is to log_softmax; `peak_mb` is what one call needs on top of the
hidden states and the weight, the weight's gradient (V x 512 x 4 bytes) included.
"""

from __future__ import annotations

from typing import Any

from benchmarks.results import Row, arguments, save

TOKENS, WIDTH = 1024, 512
VOCABULARIES = {"V=32k": 32_000, "V=128k": 128_000, "V=250k": 250_000}


def log_softmax(hidden: Any, weight: Any, ids: Any, of_token: Any) -> Any:
    """The plain way: a (T, V) tensor of log-probabilities. Like every head here it returns Σ_t w_t log P_t."""
    return (of_token * (hidden @ weight.T).log_softmax(1).gather(1, ids[:, None])[:, 0]).sum()


def logsumexp(hidden: Any, weight: Any, ids: Any, of_token: Any) -> Any:
    """The chosen logit minus the normaliser."""
    logits = hidden @ weight.T
    return (of_token * (logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1))).sum()


def linear_cross_entropy(hidden: Any, weight: Any, ids: Any, of_token: Any) -> Any:
    """torch's own, without its chunking options."""
    from torch.nn import functional as F

    return -(of_token * F.linear_cross_entropy(hidden, weight, ids, reduction="none")).sum()


def ours(hidden: Any, weight: Any, ids: Any, of_token: Any) -> Any:
    """What the trainer runs where weights follow from the scores."""
    from rl_warmup.engine.fast.logprobs import OutputHead, Tokens, token_logps

    return (of_token * token_logps(hidden, Tokens(ids), OutputHead(weight))).sum()


def ours_weighted(hidden: Any, weight: Any, ids: Any, of_token: Any) -> Any:
    """What the trainer runs where weights are known before the forward (`backward_samples`)."""
    from rl_warmup.engine.fast.logprobs import OutputHead, Tokens, weighted_logps

    return weighted_logps(hidden, Tokens(ids, weights=of_token), OutputHead(weight))[0]


HEADS = {
    "log_softmax": log_softmax,
    "logsumexp": logsumexp,
    "linear_cross_entropy": linear_cross_entropy,
    "ours": ours,
    "ours_weighted": ours_weighted,
}


def measure_heads(name: str, vocab: int, repeats: int, tokens: int = TOKENS, width: int = WIDTH) -> list[Row]:
    """Rows of one vocabulary."""
    import torch

    from benchmarks.measure import measure, rows

    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=device, requires_grad=True)
    weight = (torch.randn(vocab, width, device=device) / width**0.5).requires_grad_()
    ids = torch.randint(vocab, (tokens,), device=device)
    of_token = torch.rand(tokens, device=device)

    def call(head: Any) -> Any:
        def run() -> None:
            head(hidden, weight, ids, of_token).backward()
            hidden.grad = weight.grad = None

        return run

    found = rows("head", name, None, measure({k: call(head) for k, head in HEADS.items()}, repeats), "log_softmax")
    print(name, "  ".join(f"{row.variant} {row.ratio:.2f}" for row in found), flush=True)
    return found


def main() -> None:
    """Measure all vocabularies."""
    args = arguments(__doc__, n=()).parse_args()
    rows = [row for name, vocab in VOCABULARIES.items() for row in measure_heads(name, vocab, args.repeats)]
    save(args.out, "head", rows)


if __name__ == "__main__":
    main()

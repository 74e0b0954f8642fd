"""Knows the metrics that count shared n-grams, by their reference libraries; must not know tasks.

sacrebleu and rouge-score are imported on use. Each metric has a signature that names its settings and version.
"""

from collections.abc import Sequence
from typing import Any

INSTALL = "pip install 'rl_warmup[metrics]'"
ROUGE_KEYS = ("rouge1", "rouge2", "rougeL")

Rows = Sequence[dict[str, Any]]


def _sacrebleu() -> Any:
    try:
        import sacrebleu.metrics
    except ImportError as error:
        raise ImportError(f"BLEU and chrF++ need the package sacrebleu; {INSTALL}") from error
    return sacrebleu.metrics


def _corpus_score(metric: Any, predictions: Sequence[str], targets: Sequence[str]) -> float:
    return float(metric.corpus_score(list(predictions), [list(targets)]).score)


def bleu(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, float]:
    """`bleu`: corpus BLEU, 0 to 100, by sacrebleu with its defaults (case kept, 13a tokenizer, exponential smoothing).

    Papineni et al. 2002; Post 2018. Not for Chinese or Japanese: see `bleu_zh`.
    """
    return {"bleu": _corpus_score(_sacrebleu().BLEU(), predictions, targets)}


def bleu_zh(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, float]:
    """`bleu_zh`: corpus BLEU, 0 to 100, for Chinese targets: sacrebleu's tokenizer `zh`, a token per character."""
    return {"bleu_zh": _corpus_score(_sacrebleu().BLEU(tokenize="zh"), predictions, targets)}


def chrf(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, float]:
    """`chrf++`: corpus chrF++, 0 to 100, by sacrebleu: character 6-grams and word 2-grams, beta 2 (Popović 2017)."""
    return {"chrf++": _corpus_score(_sacrebleu().CHRF(word_order=2), predictions, targets)}


def bleu_signature(tokenize: str = "13a") -> str:
    """sacrebleu's signature of `bleu`, or with "zh" of `bleu_zh`."""
    return _signature(_sacrebleu().BLEU(tokenize=tokenize))


def chrf_signature() -> str:
    """sacrebleu's signature of `chrf++`."""
    return _signature(_sacrebleu().CHRF(word_order=2))


def _signature(metric: Any) -> str:
    metric.corpus_score(["a"], [["a"]])  # sacrebleu counts the references before it signs
    return str(metric.get_signature())


def rouge(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, float]:
    """`rouge1`, `rouge2`, `rougeL`: mean F-measure over rows, 0 to 100, by rouge-score with Porter stemming (Lin 2004).

    Its tokenizer keeps only a-z and 0-9: not for texts in other scripts, and German umlauts split words.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(f"ROUGE needs the package rouge-score; {INSTALL}") from error
    scorer = RougeScorer(list(ROUGE_KEYS), use_stemmer=True)
    scores = [scorer.score(target, text) for text, target in zip(predictions, targets, strict=True)]
    return {key: 100 * sum(score[key].fmeasure for score in scores) / len(scores) for key in ROUGE_KEYS}


def rouge_signature() -> str:
    """The settings and version of `rouge`, in the manner of sacrebleu."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"measure:f|stemmer:porter|split:no|version:rouge-score-{version('rouge-score')}"
    except PackageNotFoundError as error:
        raise ImportError(f"ROUGE needs the package rouge-score; {INSTALL}") from error

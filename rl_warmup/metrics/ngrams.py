"""Knows the metrics that count shared n-grams, by their reference libraries; must not know tasks.

sacrebleu and rouge-score are imported on use. Each metric has a signature that names its settings and version.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from rl_warmup.metrics.registry import METRICS, Metric, Rows, Segments, mean_segments, values_of
from rl_warmup.runtime import compat

INSTALL = "pip install 'rl_warmup[metrics]'"
ROUGE_KEYS = ("rouge1", "rouge2", "rougeL")
# sacrebleu's tokenizer by name: 13a for languages with spaces, zh and char a token per character, ja-mecab by MeCab
BLEU_TOKENIZERS = {"bleu": "13a", "bleu_zh": "zh", "bleu_ja": "ja-mecab", "bleu_char": "char"}
SACREBLEU_NAMES = (*BLEU_TOKENIZERS, "chrf++")


def sacrebleu_metric(name: str) -> Any:
    """sacrebleu's metric for a name of SACREBLEU_NAMES.

    BLEU with sacrebleu's defaults (case kept, exponential smoothing; Papineni et al. 2002, Post 2018), chrF++ with
    character 6-grams and word 2-grams, beta 2 (Popović 2017).

    Raises:
        ImportError: if sacrebleu is missing, or for `bleu_ja` the packages that split Japanese.
    """
    try:
        import sacrebleu.metrics as library
    except ImportError as error:
        raise ImportError(f"BLEU and chrF++ need the package sacrebleu; {INSTALL}") from error
    if name == "chrf++":
        return library.CHRF(word_order=2)
    try:
        return library.BLEU(tokenize=BLEU_TOKENIZERS[name])
    except RuntimeError as error:  # sacrebleu looks for MeCab when the tokenizer is made
        raise ImportError(
            "bleu_ja needs the packages mecab-python3 and ipadic; pip install 'sacrebleu[ja]', or use the metric "
            "'bleu_char' (a token per character), whose numbers are not comparable with it"
        ) from error


def sacrebleu_segments(
    name: str, predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None
) -> dict[str, Segments]:
    """The counts of each row by sacrebleu, as its own significance tests take them."""
    metric = sacrebleu_metric(name)
    return {name: Segments(*compat.corpus_counts(metric, predictions, targets))}


def sacrebleu_signature(name: str) -> str:
    """sacrebleu's signature of the metric."""
    metric = sacrebleu_metric(name)
    metric.corpus_score(["a"], [["a"]])  # sacrebleu counts the references before it signs
    return str(metric.get_signature())


def rouge_signature() -> str:
    """The settings and version of `rouge`, in the manner of sacrebleu."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"measure:f|stemmer:porter|split:no|version:rouge-score-{version('rouge-score')}"
    except PackageNotFoundError as error:
        raise ImportError(f"ROUGE needs the package rouge-score; {INSTALL}") from error


def rouge_segments(predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None) -> dict[str, Segments]:
    """`rouge1`, `rouge2`, `rougeL`: mean F-measure over rows, 0 to 100, by rouge-score with Porter stemming (Lin 2004).

    Its tokenizer keeps only a-z and 0-9: not for texts in other scripts, and German umlauts split words.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(f"ROUGE needs the package rouge-score; {INSTALL}") from error
    scorer = RougeScorer(list(ROUGE_KEYS), use_stemmer=True)
    scores = [scorer.score(target, text) for text, target in zip(predictions, targets, strict=True)]
    return {key: mean_segments(100 * score[key].fmeasure for score in scores) for key in ROUGE_KEYS}


for _name in SACREBLEU_NAMES:
    _segments = partial(sacrebleu_segments, _name)
    METRICS[_name] = Metric(values_of(_segments), None, partial(sacrebleu_signature, _name), _segments, bounds=(0, 100))
METRICS["rouge"] = Metric(values_of(rouge_segments), None, rouge_signature, rouge_segments, bounds=(0, 100))
METRICS |= {key: METRICS["rouge"]._replace(keys=(key,)) for key in ROUGE_KEYS}

"""Knows BERTScore by the package bert-score (Zhang et al. 2020), imported on use; must not know tasks or files.

    {"name": "bertscore", "kwargs": {"model": "microsoft/deberta-xlarge-mnli", "num_layers": 40}}

`model` is a hub id or a local folder. A value means nothing without its model and layer, so both are in its key,
`bertscore[microsoft/deberta-xlarge-mnli:40]`: values of different models or layers are not comparable.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rl_warmup.metrics.registry import Rows, metric
from rl_warmup.runtime import compat

UNLIMITED = 10**9  # tokens; transformers says 10**30 for a tokenizer without a limit


def bertscore_label(model: str, num_layers: int | None = None, label: str | None = None, **other: Any) -> str:
    """The key of the result: model (its label, or a folder's last name) and layer."""
    name = Path(model).resolve().name if Path(model).exists() else model
    return f"bertscore[{label or name}:{_layer(model, num_layers)}]"


def bertscore_signature(model: str, num_layers: int | None = None, **other: Any) -> str:
    """Model, layer, settings and versions.

    Raises ImportError, ValueError: as for `bertscore`, save that the model is not loaded.
    """
    from importlib.metadata import version

    layer = _layer(model, num_layers)
    _library(model)
    versions = f"version:bert-score-{version('bert-score')}|transformers:{version('transformers')}"
    return f"measure:f|model:{model}|layer:{layer}|idf:no|rescaled:no|{versions}"


@metric("bertscore", signature=bertscore_signature, label=bertscore_label)
def bertscore(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None, *,
    model: str, num_layers: int | None = None, batch_size: int = 32, label: str | None = None,
) -> list[float]:  # fmt: skip
    """F1 of each row as bert-score gives it: no idf weights, not rescaled, at most 1. An empty text scores 0.

    Args:
        num_layers: the layer whose states are compared; None takes bert-score's own choice for a hub id it knows.
        label: how the model is called in the key; a hub id, or the last name of a folder, by default.

    Raises:
        ImportError: bert-score is missing.
        ValueError: the model cannot be loaded, or the layer does not exist.
    """
    scorer = _scorer(model, _layer(model, num_layers))
    scores = [0.0] * len(predictions)
    # bert-score also gives 0 to empty texts, but with transformers 5 it fails on them
    full = [i for i, both in enumerate(zip(predictions, targets, strict=True)) if all(text.strip() for text in both)]
    if full:
        texts = [predictions[i] for i in full], [targets[i] for i in full]
        for i, score in zip(full, scorer.score(*texts, batch_size=batch_size)[2].tolist(), strict=True):
            scores[i] = score
    return scores


@lru_cache(maxsize=1)  # an evaluation scores own warmups and every control with the same model
def _scorer(model: str, layer: int) -> Any:
    library = _library(model)
    try:
        with compat.without_remote_code():
            scorer = library.BERTScorer(model_type=model, num_layers=layer)
    except AssertionError as error:  # bert-score checks the layer
        raise ValueError(f"metric 'bertscore': {error}; give num_layers within it") from error
    except (OSError, ValueError) as error:  # transformers found no model, or no tokenizer
        raise ValueError(_missing(model, str(error).partition("\n")[0])) from error
    compat.limit_bertscore(scorer, UNLIMITED)
    return scorer


def _layer(model: str, num_layers: int | None) -> int:
    if num_layers is not None:
        return num_layers
    known = _library().utils.model2layers
    if model not in known:
        raise ValueError(f"metric 'bertscore': bert-score knows no layer for model '{model}'; give num_layers")
    return int(known[model])


def _missing(model: str, why: str) -> str:
    return f"metric 'bertscore': cannot load model '{model}' ({why}); give a local folder, or a hub id with the hub in reach"


def _library(model: str | None = None) -> Any:
    try:
        import bert_score
        import bert_score.utils
    except ImportError as error:
        raise ImportError("BERTScore needs the package bert-score; pip install bert-score") from error
    is_path = model is not None and (
        model.startswith((".", "/", "~")) or model.count("/") > 1
    )  # of the hub: owner/name
    if is_path and not Path(str(model)).is_dir():
        raise ValueError(_missing(str(model), "there is no such folder"))
    return bert_score

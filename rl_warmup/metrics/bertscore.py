"""Knows BERTScore by the package bert-score (Zhang et al. 2020), imported on use; must not know tasks or files.

    {"name": "bertscore", "kwargs": {"model": "microsoft/deberta-xlarge-mnli", "num_layers": 40}}

`model` is a hub id or a local folder. Values of different models or layers are not comparable, so both are in the key,
`bertscore[microsoft/deberta-xlarge-mnli:40]`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from rl_warmup.metrics.segments import Segments, mean_segments

UNLIMITED = 10**9  # tokens; transformers gives 10**30 to a tokenizer without a limit

Rows = Sequence[dict[str, Any]]


def bertscore_segments(
    predictions: Sequence[str], targets: Sequence[str], rows: Rows | None = None, *, model: str,
    num_layers: int | None = None, batch_size: int = 32, label: str | None = None,
) -> dict[str, Segments]:  # fmt: skip
    """Mean F1 over rows by bert-score: no idf weights, not rescaled, at most 1. An empty text scores 0.

    Args:
        num_layers: the layer whose states are compared; None takes bert-score's choice for a hub id it knows.
        label: name of the model in the key; by default the hub id, or the last name of a folder.

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
    return {bertscore_label(model, num_layers, label=label): mean_segments(scores)}


def bertscore_label(model: str, num_layers: int | None = None, batch_size: int = 32, label: str | None = None) -> str:
    """The key of the result: model (its label, or a folder's last name) and layer."""
    name = Path(model).resolve().name if Path(model).exists() else model
    return f"bertscore[{label or name}:{_layer(model, num_layers)}]"


def bertscore_signature(
    model: str, num_layers: int | None = None, batch_size: int = 32, label: str | None = None
) -> str:
    """Model, layer, settings and versions.

    Raises:
        ImportError, ValueError: as for `bertscore`, save that the model is not loaded.
    """
    from importlib.metadata import version

    layer = _layer(model, num_layers)
    _library()
    if _is_path(model) and not Path(model).is_dir():
        raise ValueError(_missing(model, "there is no such folder"))
    versions = f"version:bert-score-{version('bert-score')}|transformers:{version('transformers')}"
    return f"measure:f|model:{model}|layer:{layer}|idf:no|rescaled:no|{versions}"


@lru_cache(maxsize=1)  # all controls of an evaluation use the same model
def _scorer(model: str, layer: int) -> Any:
    library = _library()
    if _is_path(model) and not Path(model).is_dir():
        raise ValueError(_missing(model, "there is no such folder"))
    try:
        with _no_remote_code():
            scorer = library.BERTScorer(model_type=model, num_layers=layer)
    except AssertionError as error:  # bert-score checks the layer
        raise ValueError(f"metric 'bertscore': {error}; give num_layers within it") from error
    except (OSError, ValueError) as error:  # transformers found no model, or no tokenizer
        raise ValueError(_missing(model, str(error).partition("\n")[0])) from error
    if scorer._tokenizer.model_max_length > UNLIMITED:
        # the folder states no limit, and bert-score cuts texts at the tokenizer's; RoBERTa counts positions from 2
        positions = getattr(scorer._model.config, "max_position_embeddings", 514)
        scorer._tokenizer.model_max_length = positions - 2
    return scorer


@contextmanager
def _no_remote_code() -> Iterator[None]:
    """Refuse code of a model: bert-score does not, and transformers would ask at the terminal or read piped input."""
    from transformers import dynamic_module_utils

    before, dynamic_module_utils.TIME_OUT_REMOTE_CODE = dynamic_module_utils.TIME_OUT_REMOTE_CODE, 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _layer(model: str, num_layers: int | None) -> int:
    if num_layers is not None:
        return num_layers
    known = _library().utils.model2layers
    if model not in known:
        raise ValueError(f"metric 'bertscore': bert-score knows no layer for model '{model}'; give num_layers")
    return int(known[model])


def _is_path(model: str) -> bool:
    """Whether `model` can only be a local folder: hub ids are `name` or `owner/name`."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def _missing(model: str, why: str) -> str:
    return f"metric 'bertscore': cannot load model '{model}' ({why}); give a local folder, or a hub id with the hub in reach"


def _library() -> Any:
    try:
        import bert_score
        import bert_score.utils
    except ImportError as error:
        raise ImportError("BERTScore needs the package bert-score; pip install bert-score") from error
    return bert_score

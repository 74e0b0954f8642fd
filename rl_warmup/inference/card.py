"""The model card: README.md of a trained folder, made of the files that lie in it.

Knows: a run's files (docs/formats.md), huggingface_hub's model cards. Must not know: how anything was trained.
A figure stands in the card only if it was measured on the weights in the folder, by their fingerprint. Values are those of
metrics.json; the intervals are drawn from the predictions beside it, which must give the same value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment
from transformers import TrainingArguments

from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.metrics import METRICS
from rl_warmup.metrics.significance import interval_over_rows, paired_bootstrap
from rl_warmup.models.inference_settings import read_layout
from rl_warmup.models.loading import ADAPTER_FILE
from rl_warmup.models.plain_use import MARK, README, how_to_use
from rl_warmup.options import CONTROL_NAMES, TaskOptions, WarmupOptions
from rl_warmup.runtime.ownership import CARD, RESULT, fingerprint, read_base, refuse_link
from rl_warmup.runtime.recipe_file import masked
from rl_warmup.runtime.run_files import (
    read_environment,
    read_evaluation,
    read_records,
    read_run_recipe,
    require_folder,
    scored_with,
)
from rl_warmup.runtime.settings import card_faults
from rl_warmup.runtime.values import defaults_of
from rl_warmup.tasks.conversations import flat

TEMPLATE = Path(__file__).with_name("card.md")
CARD_MARK = f"{CARD}: model card -->"
EMPTY: tuple[Any, ...] = (None, "", [], {})
EXAMPLES, MOST_LETTERS, MOST_ITEMS = 3, 600, 12
# Settings that say where a run went and what it showed, not how it was trained; those of the data have a place of their own.
NOT_TRAINING = {
    "output_dir", "overwrite", "show_progress", "resume_from_checkpoint", "run_name", "project", "logging_dir", "log_warmups",
    "disable_tqdm", "report_to", "controls", "predict_split", "model_card", "task", "task_kwargs", "use_cpu", "hang_timeout",
    "hub_strategy", "logging_steps", "logging_strategy", "logging_first_step", "log_level", "remove_unused_columns",
    "accelerator_config", "chat_template_text", "save_strategy", "save_steps", "save_total_limit", "reward_funcs",
}  # fmt: skip


@dataclass
class Figures:
    """What was measured on one set of rows."""

    task: str
    split: str
    rows: int
    rows_hash: str
    metrics: dict[str, dict[str, float]]  # control -> metric -> value, as in metrics.json
    signatures: dict[str, str]
    places: dict[str, Path] = field(default_factory=dict)  # control -> folder with its predictions

    def predictions(self, control: str) -> list[dict[str, Any]]:
        """The predictions under a control; empty where their file is gone."""
        return read_records(self.places[control] / f"predictions{'.' if control else ''}{control}.jsonl", self.rows)


def write_card(folder: str | Path, like: Path | None = None, **given: Any) -> Path:
    """Write the card into README.md of a trained folder, above the section on how to use it, which stays as it is.

    Text above the card, and fields of its front matter that are not written here (a licence, languages), stay as well.

    Args:
        like: another README.md, whose front matter and text above the card are taken in the place of the folder's.
        given: `settings.CARD_FIELDS` of the front matter; they win over the recipe's `model_card` and what README.md has.

    Raises:
        ValueError: the folder holds no trained model, a file in it cannot be read, or a field cannot be used.
    """
    folder = Path(folder)
    require_folder(folder)
    layout = read_layout(folder)
    if not layout:
        raise ValueError(
            f"{folder} holds no warmup_layout.json, so no model of ours. Give a folder that training wrote."
        )
    page = folder / README
    refuse_link(page)
    before, above, section = _parts(page)
    if like is not None:
        before, above, _ = _parts(like)
        before.pop("model_name", None)
    if not section:  # somebody removed it
        w = WarmupGenerator.load(folder)
        section = how_to_use(w.model, w.settings, w.layout.tokens, (folder / ADAPTER_FILE).is_file())
    environment = read_environment(folder)
    settings = environment.get("settings") or {}
    if (folder / "recipe.yaml").is_file():
        settings = read_run_recipe(folder)
    given = {key: value for key, value in given.items() if value is not None}
    if faults := card_faults(given):
        raise ValueError(" ".join(faults))
    found, left_out = measured(folder)
    data = _front_matter(folder, before, settings, {**(settings.get("model_card") or {}), **given}, found)
    own = next((figures for figures in found if "" in figures.metrics and figures.predictions("")), None)
    names = CONTROL_NAMES if layout["inference"] == "policy" else {**CONTROL_NAMES, "": "none"}
    template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    body = template.render(
        above=above, mark=CARD_MARK, use_mark=MARK, section=section, layout=layout,
        name=given.get("model_name") or data.get("model_name") or folder.resolve().name,
        settings=settings, recipe=_block(_changed(settings)), data=_block(_data(settings)),
        about=_read(folder / RESULT), environment=environment, version=metadata.version("rl_warmup"),
        found=[(figures, list(_tables(figures, names))) for figures in found], left_out=left_out,
        examples=[_example(row) for row in (own.predictions("") if own else [])[:EXAMPLES]], own=own,
    )  # fmt: skip
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
    page.write_text(str(card).rstrip() + "\n", encoding="utf-8", errors="backslashreplace")
    return page


def measured(folder: Path) -> tuple[list[Figures], list[str]]:
    """The figures that were measured on the weights in the folder, and a sentence for every result of others."""
    weights, left_out = fingerprint(folder), []
    found: dict[tuple[str, ...], Figures] = {}
    for path in [folder / RESULT, *sorted(folder.glob(f"evaluation/*/{RESULT}"))]:
        result = _read(path)
        if not result.get("metrics"):
            continue
        if weights is None or result.get("weights") != weights:
            name = path.relative_to(folder)
            left_out.append(
                f"{name} was measured on other weights ({result.get('weights', 'unknown')}) and is left out."
            )
            continue
        keys = [str(result.get(key, "")) for key in ("task", "split", "rows_hash")]
        signatures = scored_with(result)
        same = found.setdefault(
            (*keys, json.dumps(signatures, sort_keys=True)),
            Figures(keys[0], keys[1], int(result.get("rows") or 0), keys[2], {}, signatures),
        )
        for control, values in result["metrics"].items():
            shown = same.metrics.setdefault(control, {})
            if other := [name for name, value in values.items() if shown.setdefault(name, value) != value]:
                what = f"another value of {', '.join(other)} ({CONTROL_NAMES.get(control, control)})"
                left_out.append(f"{path.relative_to(folder)} has {what}, which is left out.")
            same.places.setdefault(control, path.parent)
    base = read_base(folder)
    if left_out and not found and base and not Path(base).is_dir():
        raise ValueError(
            f"{folder}: its adapter's base, {base}, is no folder as seen from here, so it cannot be told whether the results "
            f"are of these weights. Call the command where that path leads to the base."
        )
    return list(found.values()), left_out


def _read(path: Path) -> dict[str, Any]:
    return read_evaluation(path) if path.is_file() else {}


def _parts(page: Path) -> tuple[dict[str, Any], str, str]:
    """Of a README: the fields of its front matter, somebody else's text above ours, and the section on how to use the model.

    One field more, `is_first`, says whether it had no card of ours yet.

    Raises ValueError: the front matter is no YAML.
    """
    if not page.is_file():
        return {"is_first": True}, "", ""
    try:
        text = page.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:  # written by somebody else
        text = page.read_text(encoding="latin-1")
    data: dict[str, Any] = {}
    if text.startswith("---"):
        try:
            card = ModelCard(text, ignore_metadata_errors=True)
        except (ValueError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"{page}: its front matter cannot be read ({said}). Mend it.") from error
        data, text = card.data.to_dict(), card.text
    above, _, ours = text.partition(CARD)
    if (
        above.lstrip().startswith("# Model Card for") and "[More Information Needed]" in above
    ):  # peft's, with every adapter
        above = ""
    data["is_first"] = not ours.startswith(CARD_MARK.removeprefix(CARD))
    return data, above.strip(), text.rpartition(MARK)[2].strip() if MARK in text else ""


def _front_matter(
    folder: Path, before: dict[str, Any], settings: dict[str, Any], given: dict[str, Any], found: Sequence[Figures]
) -> ModelCardData:
    """The metadata: what is known; a field that nobody gave and nothing says is left out."""
    start, first = str(settings.get("model_name_or_path") or ""), before.pop("is_first")
    for made in ("model-index", "eval_results"):
        before.pop(made, None)
    base = before.get("base_model")
    if base == read_base(folder) and not _on_the_hub(base):  # peft writes the place on the disk
        before.pop("base_model", None)
    name = (settings.get("task_kwargs") or {}).get("dataset_name") if settings.get("task") == "hub" else None
    tags = before.pop("tags", None) or []
    kept = [str(tag) for tag in (tags if isinstance(tags, list) else [tags]) if not str(tag).startswith("base_model:")]
    asked = given.get("tags") or []
    # A name that was a folder when the run ended may be none as seen from where the card is written again.
    known = {"base_model": start, "datasets": name} if first else {}
    known = {key: value for key, value in known.items() if _on_the_hub(value)}
    library = "peft" if (folder / ADAPTER_FILE).is_file() else "transformers"
    values = {**known, **before, **given, "library_name": library}
    values["tags"] = [*([asked] if isinstance(asked, str) else asked), *kept, "rl_warmup", "generated_from_trainer"]
    values.setdefault("model_name", folder.resolve().name)
    results = [_result(figures, name, metric) for figures in found for metric in figures.metrics.get("", {})]
    try:
        return ModelCardData(eval_results=results or None, **values)
    except Exception as error:
        raise ValueError(
            f"{folder / README}: its front matter cannot be used ({type(error).__name__}: {error}). Mend it."
        ) from error


def _result(figures: Figures, data_set: Any, metric: str) -> EvalResult:
    """What the model's own warmups reached, as the hub lists it."""
    return EvalResult(
        task_type="text-generation", dataset_type=data_set if _on_the_hub(data_set) else figures.task,
        dataset_name=figures.task, dataset_split=figures.split, metric_type=metric, metric_name=metric,
        dataset_args={"rows": figures.rows, "rows_hash": figures.rows_hash}, metric_value=figures.metrics[""][metric],
    )  # fmt: skip


def _on_the_hub(name: Any) -> bool:
    """Whether a name can only be one of the hub: with an owner, none of ours, and no folder."""
    if not isinstance(name, str) or "/" not in name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _changed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the training that differ from their defaults."""
    known = {f.name: getattr(f.default, "value", f.default) for f in fields(TrainingArguments)}
    known |= defaults_of([WarmupOptions, TaskOptions])
    shown = {}
    for name, value in settings.items():
        default = known.get(name)
        unused = not value and name not in known  # a setting of trl's for a model
        same = unused or value == default or (value in EMPTY and default in EMPTY) or name.startswith("hub_")
        if not same and value is not None and name not in NOT_TRAINING:
            shown[name] = value
    return shown


def _data(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in ("task", "task_kwargs") if settings.get(key)}


def _block(values: Mapping[str, Any]) -> str:
    """Settings as YAML without secrets and long lists; of a path on the disk only the name."""
    return (
        yaml.safe_dump(_without_places(masked(values)), sort_keys=False, allow_unicode=True).strip() if values else ""
    )


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(inner) for inner in value] if len(value) <= MOST_ITEMS else f"{len(value)} items"
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _tables(figures: Figures, names: Mapping[str, str]) -> Iterator[tuple[str, list[list[str]]]]:
    """By metric, a line per kind of warmup: its value and interval, the difference from the model's own and its interval."""
    rows = {control: figures.predictions(control) for control in figures.metrics}
    for name in dict.fromkeys(name for values in figures.metrics.values() for name in values):
        lines = []
        for control, values in figures.metrics.items():
            if (value := values.get(name)) is None:
                continue
            digits = 3 if abs(value) <= 1 else 2
            what = names.get(control, control)
            cells = [what, f"{value:.{digits}f}", _interval(name, value, rows[control], digits)]
            own = figures.metrics.get("", {}).get(name)
            lines.append([*cells, *(_difference(name, own, value, rows, control, digits) if control else ["", ""])])
        yield name, lines


def _interval(name: str, value: float, rows: list[dict[str, Any]], digits: int) -> str:
    """The interval over rows; empty where a metric has none, all rows are alike, or the predictions give another value."""
    if name not in METRICS or not rows:
        return ""
    try:
        again, (low, high) = interval_over_rows(name, rows)
    except (ValueError, ImportError):  # no statistics per row, or a package is missing
        return ""
    if low == high or abs(again - value) > 1e-6 * max(1, abs(value)):
        return ""
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _difference(
    name: str, own: float | None, value: float, rows: dict[str, list[dict[str, Any]]], control: str, digits: int
) -> list[str]:
    """The difference from the model's own warmups, and its interval."""
    if own is None:
        return ["", ""]
    shown = f"{value - own:+.{digits}f}"
    if name not in METRICS or not rows.get("") or not rows[control]:
        return [shown, ""]
    try:
        tested = paired_bootstrap(name, rows[""], rows[control])
    except (ValueError, ImportError):
        return [shown, ""]
    low, high = tested.interval or (0.0, 0.0)
    if low == high or abs(tested.difference - (value - own)) > 1e-6 * max(1, abs(value), abs(own)):
        return [shown, ""]
    return [shown, f"{low:+.{digits}f} to {high:+.{digits}f}"]


def _example(row: dict[str, Any]) -> str:
    """A prediction as text between fences that none of its own lines can close."""
    parts = {"prompt": flat(row["prompt"]), **{key: row.get(key, "") for key in ("warmup", "prediction", "target")}}
    width = max(map(len, parts))
    cut = {name: text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…" for name, text in parts.items()}
    shown = (
        f"{name.ljust(width)}  {text.strip()}".replace("\n", "\n" + " " * (width + 2)) for name, text in cut.items()
    )
    text = "\n".join(line.rstrip() for line in shown)
    fence = "`" * max(3, 1 + max(map(len, "".join(c if c == "`" else " " for c in text).split()), default=0))
    return f"{fence}text\n{text}\n{fence}"

"""A trained folder as one to hand on: full weights in a chosen dtype, with all that plain transformers needs.

Knows: loading and saving of trained models. Must not know: training.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from rl_warmup.inference.card import write_card
from rl_warmup.inference.generation import WarmupGenerator
from rl_warmup.models.inference_settings import read_layout
from rl_warmup.models.loading import ADAPTER_FILE, QUANTIZED_FILE, refuse_fp16
from rl_warmup.models.plain_use import README, save_for_plain_use
from rl_warmup.runtime.launched import keep_quiet_without_accelerator
from rl_warmup.runtime.ownership import MARKS, fingerprint, is_run, refuse_export, run_around
from rl_warmup.runtime.run_files import read_environment, read_run_recipe, require_folder
from rl_warmup.runtime.run_folder import environment, write_json

DTYPES = ("float32", "bfloat16", "float16")


def export(source: str | Path, output: str | Path, merge: bool = False, dtype: str = "float32") -> Path:
    """Write the model of a trained folder (a run, a checkpoint, an adapter) as full weights into a new folder.

    Beside them: tokenizer, warmup_layout.json, generation_config.json, custom_generate/, README.md, and of a run its recipe.yaml
    and environment.json, so that `evaluate`, `score`, `card` and `generate` take the folder. The card has no figures: they are
    about the weights before.

    Args:
        merge: merge an adapter into its base model; in float32, before the result is rounded to `dtype` once.
        dtype: of `DTYPES`.

    Returns:
        `output`.

    Raises:
        ValueError: `source` holds no trained model; `output` holds anything or lies in a run; an adapter without `merge`, or
            `merge` without one; an adapter of a quantized model; a dtype in which the model overflows.
    """
    source, output = Path(source), Path(output)
    require_folder(source)
    if not read_layout(source):
        raise ValueError(
            f"{source} holds no warmup_layout.json, so no model of ours. Give a folder that training wrote."
        )
    refuse_export(output)
    _check(source, merge, dtype)
    run = source if is_run(source) else run_around(source)
    if run:  # what cannot be read there would be found after the weights were written
        read_environment(run)
        if (run / MARKS[1]).is_file():
            read_run_recipe(run)
    weights = fingerprint(source)
    keep_quiet_without_accelerator()  # save_pretrained asks DeepSpeed whether it holds the weights
    generator = WarmupGenerator.load(source, "cpu", dtype="float32")
    model = generator.model
    refuse_fp16(model.config.model_type, dtype)
    model.to(getattr(torch, dtype))
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    generator.tokenizer.save_pretrained(output)
    generator.settings.save(output)
    save_for_plain_use(output, model, generator.settings, generator.layout.tokens)
    _add_card(source, output, {"weights": weights, "merged": merge, "dtype": dtype})
    return output


def _check(source: Path, merge: bool, dtype: str) -> None:
    adapter = (source / ADAPTER_FILE).is_file()
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype: {dtype!r} is not one that is exported. Give {', '.join(DTYPES[:-1])} or {DTYPES[-1]}."
        )
    if adapter and not merge:
        raise ValueError(
            f"{source} holds an adapter, which is loaded with its base model. Say --merge to merge the two, or copy the folder."
        )
    if merge and not adapter:
        raise ValueError(f"merge: {source} holds a whole model and no adapter. Leave it out.")
    if (source / QUANTIZED_FILE).is_file():
        raise ValueError(
            f"merge: the adapter in {source} was trained on quantized weights, and merging would round it with them. Use it as "
            f"an adapter, or train it on the model in 16 bits."
        )


def _add_card(source: Path, output: Path, exported: dict[str, Any]) -> None:
    """README.md with what a person wrote into the source's, after the files of the run that the card is made of."""
    run = source if is_run(source) else run_around(source)
    for path in [run / name for name in MARKS[:2]] if run else ():
        if path.is_file():
            shutil.copyfile(path, output / path.name)
    known = read_environment(output) or environment()
    write_json(output / "environment.json", {**known, "exported": exported})
    page = next((place / README for place in (source, run) if place and (place / README).is_file()), None)
    write_card(output, like=page)

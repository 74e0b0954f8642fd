"""A run goes on from whole checkpoints alone; a damaged one is named with the checkpoint that can be taken instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.models.loading import load_model

ROWS = [{"prompt": f"a b w{i}", "target": f"w{i} b a"} for i in range(8)]
SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}


def trainer_of(folder: Path) -> WarmupTrainer:
    model, tokenizer = load_model("scratch-t5", lambda: [text for row in ROWS for text in row.values()], SIZE)
    args = WarmupConfig(
        output_dir=str(folder), per_device_train_batch_size=4, num_warmups=2, max_warmup_length=3, use_cpu=True, max_steps=3,
        save_strategy="steps", save_steps=1, learning_rate=1e-3, disable_tqdm=True, report_to="none",
    )  # fmt: skip
    return WarmupTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=ROWS)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    trainer_of(folder).train()
    shutil.rmtree(folder / "checkpoint-3")
    return folder


@pytest.fixture
def checkpoint(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run")) / "checkpoint-2"


def refused(checkpoint: Path, changed: str) -> str:
    """What a resume says of a checkpoint with a changed file; its list of files is made to fit."""
    listed = json.loads((checkpoint / "checkpoint.json").read_text())
    if changed != "checkpoint.json":
        listed["files"][changed] = (checkpoint / changed).stat().st_size
        (checkpoint / "checkpoint.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="^resume_from_checkpoint: ") as error:
        trainer_of(checkpoint.parent).train(resume_from_checkpoint=str(checkpoint))
    return str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"5", b"<html>", bytes(300), b"PK", b"[" * 100_000], ids=range(8)
)
@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "config.json", "trainer_state.json"]
)
def test_a_damaged_file_is_named_with_the_checkpoint_before(checkpoint, file, content):
    (checkpoint / file).write_bytes(content)
    sentence = refused(checkpoint, file)
    assert f"{checkpoint / file} " in sentence
    assert f"Remove {checkpoint}, and `auto` takes {checkpoint.with_name('checkpoint-1')}" in sentence


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [("trainer_state.json", key, value) for key in ("global_step", "save_steps", "total_flos", "log_history")
     for value in ("x", {"a": 1})]
    + [("trainer_state.json", "global_step", None), ("checkpoint.json", "rows", None), ("checkpoint.json", "rows", "x"),
       ("checkpoint.json", "step", "x"), ("checkpoint.json", "processes", [1]), ("checkpoint.json", "settings", 5)],
)  # fmt: skip
def test_a_value_of_another_kind_is_named_with_its_key(checkpoint, file, key, value):
    path = checkpoint / file
    values = {**json.loads(path.read_text()), key: value}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    assert f"{path}: {key} is {value!r}" in refused(checkpoint, file)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("optimizer.pt", {"state": 5}, "optimizer or scheduler"), ("scheduler.pt", [1], "optimizer or scheduler"),
        ("rng_state.pth", {"python": 5}, "the random state"), ("optimizer.pt", "x", "optimizer or scheduler"),
    ],
)  # fmt: skip
def test_whole_files_with_other_contents_are_named_when_they_are_read(checkpoint, file, content, named):
    torch.save(content, checkpoint / file)
    assert f"resume_from_checkpoint: {named}" in (sentence := refused(checkpoint, file))
    assert f"of {checkpoint} cannot be read" in sentence


def test_the_only_checkpoint_leaves_a_new_beginning(checkpoint):
    shutil.rmtree(checkpoint.with_name("checkpoint-1"))
    (checkpoint / "optimizer.pt").write_bytes(b"")
    assert f"Remove {checkpoint}, and begin anew." in refused(checkpoint, "optimizer.pt")

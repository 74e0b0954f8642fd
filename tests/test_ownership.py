"""Files that are a run's, folders that are somebody else's, locks, and which weights a number belongs to."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_warmup.runtime import ownership
from rl_warmup.runtime.run_folder import write_json

HOLD = """
import sys, time
from pathlib import Path
from rl_warmup.runtime.ownership import writing
with writing(Path(sys.argv[1]), "output_dir"):
    print("held", flush=True)
    time.sleep(60)
"""
RUN = (
    "environment.json", "recipe.yaml", "metrics.jsonl", "timing.jsonl", "warmups.jsonl", "metrics.json", "predictions.jsonl",
    "predictions.shuffled.jsonl", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json",
    "config.json", "tokenizer.json", "tokenizer_config.json", "spiece.model", "training_args.bin", "warmup_layout.json",
    "checkpoint-3/model.safetensors", "checkpoint-3/optimizer.pt", "checkpoint-3/rng_state_1.pth", "checkpoint-3/latest",
    "checkpoint-3/global_step3/zero_pp_rank_0.pt", "checkpoint-3/pytorch_model_fsdp_0/__0_0.distcp", "unfinished/checkpoint-6/z",
    "logs/rank1.log", "heartbeats/process-0.json", "evaluation/test/metrics.json", "evaluation/test/predictions.jsonl",
    "evaluation/validation/predictions.filler.jsonl", "report/report.html", "report/a-b.png", "metrics.jsonl.part",
    "drawn.jsonl", "drawn.jsonl.drawing.json", "elsewhere/metrics.json", "elsewhere/predictions.jsonl", "flags.json",
    "checkpoint-3/evaluation/test/metrics.json",
    "asked.yaml", "train.log", "runs/Nov30_host/events.out.tfevents.1", "resumes.jsonl", "reference_warmups.jsonl",
)  # fmt: skip
FOREIGN = (
    "notes.txt", "rows.jsonl", "checkpoint-3/notes.txt", "evaluation/test/mine.csv", "report/essay.txt", "logs/mine.log",
    "data/metrics.jsonl", "README.md", "models/model.safetensors", "predictions.old/x.jsonl", "download.part", "runs/x/a.txt",
    "checkpoint-3/deep/model.safetensors", "elsewhere/predictions.jsonl", "unfinished/draft.txt", "mine.model", "vocab.csv",
)  # fmt: skip


def put(folder: Path, *names: str, text: str = "{}") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def refused(folder: Path, overwrite: bool = False, resumes: bool = False, **sources: Path) -> str:
    with pytest.raises(ValueError, match="output_dir: ") as error:
        ownership.refuse_folder(folder, overwrite, resumes, sources)
    return str(error.value)


def test_all_that_a_run_writes_is_known_and_goes(tmp_path):
    run = put(tmp_path / "run", *RUN)
    assert ownership.foreign_files(run) == []
    ownership.refuse_folder(run, overwrite=True, resumes=False)
    ownership.clear(run)
    assert files(run) == []
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_named_and_stays(tmp_path, name):
    run = put(tmp_path / "run", "environment.json", "model.safetensors", name)
    assert name in refused(run, overwrite=True)
    assert files(run) == sorted({"environment.json", "model.safetensors", name})
    ownership.clear(run)  # asked all the same, it removes what is its own
    assert files(run) == [name]


@pytest.mark.parametrize(
    "names",
    [
        ("notes.txt",),
        ("config.json", "model.safetensors", "tokenizer.json"),
        ("a/b/c.py",),
        ("unfinished/draft.txt",),
        ("mine.model", "vocab.csv"),
    ],
)
def test_a_folder_without_a_run_is_somebody_elses(tmp_path, names):
    place = put(tmp_path / "mine", *names)
    for overwrite in (False, True):
        assert names[0] in refused(place, overwrite)
    ownership.clear(place)
    assert files(place) == sorted(names)


def test_places_where_a_run_may_begin(tmp_path):
    ownership.refuse_folder(tmp_path / "not" / "there", False, False)
    ownership.refuse_folder(tmp_path, False, False)
    launched = put(
        tmp_path / "launched", "asked.yaml", "train.log", "run.lock", "logs/rank1.log", ".gitignore", "writing.lock"
    )
    ownership.refuse_folder(launched, False, False)
    assert "is a file" in refused(put(tmp_path, "file") / "file", overwrite=True)


def test_a_run_is_replaced_when_asked_or_when_it_came_to_nothing(tmp_path):
    begun = put(tmp_path / "begun", "environment.json", "recipe.yaml", "metrics.jsonl")
    refused(begun)
    ownership.refuse_folder(begun, overwrite=False, resumes=True)
    failed_at_once = put(tmp_path / "failed", "environment.json", "recipe.yaml", "writing.lock")
    ownership.refuse_folder(failed_at_once, overwrite=False, resumes=False)
    ended = put(tmp_path / "ended", "environment.json", "recipe.yaml", "metrics.json")
    refused(ended, resumes=True)
    ownership.refuse_folder(ended, overwrite=True, resumes=True)
    by_python = put(tmp_path / "python", "environment.json", "model.safetensors")
    refused(by_python, resumes=True)


def test_a_part_of_a_run_is_no_place_for_another(tmp_path):
    run = put(tmp_path / "run", "environment.json", "checkpoint-3/config.json")
    for part in ("checkpoint-3", "checkpoint-3/deep", "evaluation/test", "unfinished", "logs"):
        assert str(run) in refused(run / part, overwrite=True)
    ownership.refuse_folder(run / "run-0", False, False)  # a trial of a search
    for inner in ("sub", "deep/down", "run-0/deep"):
        assert str(run) in refused(run / inner)
    put(tmp_path / "project", "recipe.yaml")
    ownership.refuse_folder(tmp_path / "project" / "out", False, False)  # beside a recipe is in no run


def test_what_a_run_reads_is_not_written_over(tmp_path, monkeypatch):
    run = put(
        tmp_path / "run",
        "environment.json",
        "config.json",
        "checkpoint-3/config.json",
        "drawn.jsonl",
        "drawn.jsonl.drawing.json",
    )
    (tmp_path / "link").symlink_to(run)
    for place in (run, tmp_path / "link"):
        for source in (
            run,
            tmp_path / "link",
            run / "checkpoint-3",
            tmp_path / "link" / "checkpoint-3",
            run / "drawn.jsonl",
        ):
            assert "model_name_or_path" in refused(place, overwrite=True, model_name_or_path=source)
    ownership.refuse_folder(run, True, False, {"model_name_or_path": tmp_path / "other"})
    monkeypatch.chdir(tmp_path)
    recipe = {
        "model_name_or_path": "run", "output_dir": "run", "run_name": "run", "task": "ledger", "seed": 3,
        "rewards": ["run/p.py:f"], "task_kwargs": {"train": ["run/drawn.jsonl"]}, "stored_warmups": "run/none.jsonl",
    }  # fmt: skip
    put(run, "p.py")
    found = ownership.sources(recipe)
    assert found == {name: Path(path) for name, path in (
        ("model_name_or_path", "run"), ("rewards", "run/p.py"), ("task_kwargs", "run/drawn.jsonl"))}  # fmt: skip
    inside = {"rewards": ["gain", {"name": "target_logprob", "kwargs": {"model_name_or_path": "run"}}]}
    assert ownership.sources(inside) == {"rewards": Path("run")}
    assert ownership.sources({"rewards": [{"name": "x", "kwargs": {"model": "run"}}]}) == {"rewards": Path("run")}
    put(tmp_path / "adapter", "adapter_config.json", text=json.dumps({"base_model_name_or_path": str(run)}))
    found = ownership.sources({"model_name_or_path": "adapter"})
    assert run in found.values()


def test_links_are_removed_and_not_what_they_point_to(tmp_path):
    big = put(tmp_path / "big", "model.safetensors", "checkpoint/optimizer.pt")
    run = put(tmp_path / "run", "environment.json")
    (run / "model.safetensors").symlink_to(big / "model.safetensors")
    (run / "checkpoint-3").symlink_to(big / "checkpoint")
    assert "checkpoint-3" in refused(run, overwrite=True)
    ownership.clear(run)
    assert files(big) == ["checkpoint/optimizer.pt", "model.safetensors"]


def test_a_trial_of_a_search_is_a_run_of_its_own(tmp_path):
    search = put(tmp_path / "search", "run-0/environment.json", "run-0/model.safetensors")
    ownership.refuse_folder(search, False, False)
    ownership.clear(put(search, "environment.json"))
    assert files(search) == ["run-0/environment.json", "run-0/model.safetensors"]


def test_one_writes_and_a_killed_one_lets_go(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    number = str(process.pid)
    with pytest.raises(ValueError, match=number), ownership.writing(tmp_path, "output_dir"):
        pass
    with pytest.raises(ValueError, match=number), ownership.reading(tmp_path, "evaluate"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with ownership.writing(tmp_path, "output_dir"):
        assert (tmp_path / ownership.LOCK).read_text() == f"{os.getpid()}\n"
    with ownership.reading(tmp_path, "evaluate"), ownership.reading(tmp_path, "evaluate"):  # noqa: SIM117
        with pytest.raises(ValueError, match="output_dir"), ownership.writing(tmp_path, "output_dir"):
            pass


def test_who_has_written_lets_go_although_a_worker_lives_on(tmp_path):
    """A data loader's workers (dataloader_persistent_workers) are forked while the folder is locked."""
    with ownership.writing(tmp_path, "output_dir"):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
    try:
        with ownership.writing(tmp_path, "output_dir"), pytest.raises(ValueError, match=str(os.getpid())):
            ownership.reading(tmp_path, "evaluate").__enter__()
    finally:
        worker.kill()
        worker.join()


def test_reading_leaves_a_received_folder_as_it_was(tmp_path):
    with ownership.reading(tmp_path, "evaluate"):
        assert list(tmp_path.iterdir()) == []


def test_a_disk_without_locks_is_used_all_the_same(tmp_path, monkeypatch):
    def unable(*args):
        raise OSError(ownership.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(ownership.fcntl, "flock", unable)
    with ownership.writing(tmp_path, "output_dir"), ownership.reading(tmp_path, "evaluate"):
        pass


def test_where_an_evaluation_may_be_written(tmp_path):
    run = put(tmp_path / "run", "environment.json", "checkpoint-3/config.json", "evaluation/test/metrics.json")
    other = put(tmp_path / "other", "recipe.yaml")
    foreign = put(tmp_path / "foreign", "predictions.jsonl", "essay.txt")
    source = put(tmp_path / "source", "predictions.jsonl")
    put(other, "evaluation/test/predictions.jsonl")
    (tmp_path / "link").symlink_to(run)
    for place in (
        run,
        run / "checkpoint-3",
        run / "evaluation",
        other,
        other / "evaluation" / "test",
        foreign,
        source,
        tmp_path,
        tmp_path / "link",
    ):
        with pytest.raises(ValueError, match="--output: "):
            ownership.refuse_output(place, run, [source])
    for place in (run / "evaluation" / "test", run / "evaluation" / "train", tmp_path / "new"):
        ownership.refuse_output(place, run, [source])


def test_a_file_of_a_run_is_not_written_over(tmp_path):
    run = put(tmp_path / "run", "recipe.yaml", "drawn.jsonl", "drawn.jsonl.drawing.json")
    for name in ("warmups.jsonl", "model.safetensors", "checkpoint-3/config.json", "predictions.x.jsonl"):
        with pytest.raises(ValueError, match=name):
            ownership.refuse_file(run / name)
    with pytest.raises(ValueError, match="folder"):
        ownership.refuse_file(run)
    for path in (run / "more.jsonl", run / "drawn.jsonl", tmp_path / "warmups.jsonl"):
        ownership.refuse_file(path)


def test_scores_of_warmups_go_with_the_run(tmp_path):
    run = put(tmp_path / "run", "environment.json", "metrics.jsonl")
    line = json.dumps({"prompt": "x", "target": "y", "warmup": "c", "scores": {"gain": 1}}) + "\n"
    for name in ("scored.jsonl", "deep/down/scored"):
        ownership.refuse_file(put(run, name, text=line) / name)  # may be written anew
    assert ownership.foreign_files(run) == []
    ownership.clear(run)
    assert files(run) == []


def test_folders_inside_of_a_run(tmp_path):
    run, recipes = put(tmp_path / "run", "environment.json"), put(tmp_path / "recipes", "recipe.yaml")
    assert [ownership.run_of(place) for place in (run, run / "a" / "b", recipes)] == [run, run, recipes]
    assert not ownership.run_of(recipes / "runs")  # beside a recipe is in no run
    assert not ownership.run_of(tmp_path)


def test_the_fingerprint_is_of_the_weights(tmp_path):
    assert ownership.fingerprint(tmp_path) is None
    one = put(tmp_path / "one", "model.safetensors", "config.json", text="1")
    first = ownership.fingerprint(one)
    assert len(first) == 16
    assert ownership.fingerprint(put(one, "predictions.jsonl")) == first
    assert ownership.fingerprint(put(tmp_path / "two", "model.safetensors", text="1")) == first
    assert ownership.fingerprint(put(tmp_path / "two", "model.safetensors", text="2")) != first


def test_the_fingerprint_of_an_adapter_is_of_its_scale_and_base_too(tmp_path):
    base = put(tmp_path / "base", "model.safetensors", text="base")

    def adapter(alpha: int, place: Path) -> str | None:
        settings = {"lora_alpha": alpha, "base_model_name_or_path": str(place)}
        put(tmp_path / "adapter", "adapter_config.json", text=json.dumps(settings))
        return ownership.fingerprint(put(tmp_path / "adapter", "adapter_model.safetensors", text="adapter"))

    found = [adapter(8, base), adapter(16, base)]
    moved = base.rename(tmp_path / "moved")
    assert adapter(8, moved) == found[0]
    put(moved, "model.safetensors", text="other")
    assert len({*found, adapter(8, moved)}) == 3


def test_no_link_in_a_received_folder_is_written_through(tmp_path):
    (tmp_path / "mine").write_text("precious")
    for name, write in (
        (ownership.LOCK, lambda: ownership.writing(tmp_path, "--output").__enter__()),
        ("metrics.json.part", lambda: write_json(tmp_path / "metrics.json", {})),
    ):
        (tmp_path / name).symlink_to(tmp_path / "mine")
        with pytest.raises(ValueError, match=f"{name} is a link to"):
            write()
        (tmp_path / name).unlink()
    for name in ("recipe.yaml", "README.md", "custom_generate/generate.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "mine")
        with pytest.raises(ValueError, match=f"{name} is a link to"), ownership.writing(tmp_path, "output_dir"):
            pass
        (tmp_path / name).unlink()
    (tmp_path / "metrics.json").symlink_to(tmp_path / "mine")  # replaced by a rename, so nothing is written through it
    write_json(tmp_path / "metrics.json", {})
    assert (tmp_path / "mine").read_text() == "precious"

"""Streams in the trainer: the rows of every update, resuming, faults in turn, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.data import IterableDataset

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.method.proposals import count_words
from rl_warmup.models.loading import load_model
from rl_warmup.tasks.stream import Stream

SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
ROWS = [{"id": f"r{i}", "prompt": f"p{i} q", "target": f"t{i % 3} u"} for i in range(10)]


class Recorded(WarmupTrainer):
    """Notes the ids of the rows of every update."""

    seen: list[list[str]]

    def get_batch_samples(self, *args):
        update, tokens = super().get_batch_samples(*args)
        self.seen.append([row["id"] for part in update for row in part])
        return update, tokens


class Rows(IterableDataset):
    """A data set of the user's own, without passes of its own."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


@pytest.fixture
def make(tmp_path):
    """A trainer on ROWS or others, two at a time."""

    def trainer(rows, folder="run", **settings):
        texts = [text for row in ROWS for text in (row["prompt"], row["target"])]
        model, tokenizer = load_model("scratch-t5", lambda: texts, SIZE, 0)
        defaults = {
            "output_dir": str(tmp_path / folder), "max_steps": 6, "per_device_train_batch_size": 2, "use_cpu": True,
            "proposals": [], "num_warmups": 2, "max_warmup_length": 3, "learning_rate": 1e-2, "save_strategy": "no",
            "logging_steps": 1, "disable_tqdm": True, "report_to": "none",
        }  # fmt: skip
        made = Recorded(
            model=model, processing_class=tokenizer, args=WarmupConfig(**{**defaults, **settings}), train_dataset=rows
        )
        made.seen = []
        return made

    return trainer


def shuffled(rows=ROWS) -> Stream:
    return Stream("rows", lambda: iter(rows), shuffle_buffer=4, seed=1)


def order(trainer) -> list[str]:
    return [name for update in trainer.seen for name in update]


@pytest.mark.parametrize("given", [{"train": ROWS, "test": ROWS}, "rows.jsonl"])
def test_one_set_of_rows_is_trained_on(make, given):
    """A `DatasetDict` is a dict."""
    with pytest.raises(ValueError, match="takes one set of rows, and was given (a dict of train, test|'rows.jsonl')"):
        make(given)


def test_passes_follow_each_other_without_a_gap(make):
    """Six updates of two micro-batches of two from ten rows: two whole passes and two updates more than one."""
    trainer = make(shuffled(), gradient_accumulation_steps=2)
    trainer.train()
    assert [len(update) for update in trainer.seen] == [4] * 6
    seen = order(trainer)
    names = sorted(row["id"] for row in ROWS)
    assert sorted(seen[:10]) == sorted(seen[10:20]) == names
    assert len({tuple(seen[:10]), tuple(seen[10:20]), tuple(names)}) == 3
    assert trainer.state.epoch == 1.0  # the share of the run


@pytest.mark.parametrize("truncation", ["error", "drop"])
def test_a_resumed_run_goes_on_with_the_same_rows(make, tmp_path, truncation):
    settings = {"save_strategy": "steps", "save_steps": 3, "target_truncation": truncation, "max_target_length": 4}
    rows = [*ROWS, {"id": "long", "prompt": "p1 q", "target": "u u u u"}] if truncation == "drop" else ROWS
    whole = make(shuffled(rows), "whole", **settings)
    whole.train()
    resumed = make(shuffled(rows), "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert "long" not in order(whole)
    assert resumed.seen == whole.seen[3:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.state.log_history[:-1] == whole.state.log_history[:-1]  # the last line holds clock times


def test_rows_that_are_passed_over_are_read_but_not_encoded(make, tmp_path):
    """Two whole passes lie behind update 10; the rows of the eleventh alone are encoded, with those read ahead."""
    settings = {"save_strategy": "steps", "save_steps": 10}
    make(Rows(ROWS), "whole", max_steps=10, **settings).train()
    resumed = make(Rows(ROWS), "resumed", max_steps=11, **settings)
    encoded = []
    encode = resumed.encoder.encode
    resumed.encoder.encode = lambda row, where: encoded.append(where) or encode(row, where)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))
    assert order(resumed) == ["r0", "r1"]
    assert encoded == ["train row 0 (id r0)", "train row 1 (id r1)"]


def test_a_finished_run_is_not_trained_further(make, tmp_path):
    whole = make(shuffled(), "whole", save_strategy="steps", save_steps=6)
    whole.train()
    again = make(shuffled(), "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert again.seen == []
    assert again.state.global_step == 6


def test_a_stream_of_the_library_datasets_is_shuffled_by_its_own_passes(make):
    datasets = pytest.importorskip("datasets")
    stream = datasets.IterableDataset.from_generator(lambda: iter(ROWS)).shuffle(seed=5, buffer_size=4)
    trainer = make(stream, max_steps=10)
    trainer.train()
    passes = [order(trainer)[:10], order(trainer)[10:]]
    for epoch, seen in enumerate(passes):
        stream.set_epoch(epoch)
        assert seen == [row["id"] for row in stream]
    assert passes[0] != passes[1]


def test_a_list_and_a_generator_are_read_whole(make):
    for rows in (ROWS, (row for row in ROWS)):
        assert len(make(rows).train_dataset) == 10
        assert isinstance(make(list(ROWS)).train_dataset, list)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"prompt": "p1 q", "target": " "}, "train row 5 (id r5): the target is empty"),
        ({"prompt": "p1 q"}, "train row 5 (id r5): needs a `prompt` column and a `target`"),
        ({"prompt": "p1 q", "target": "u u u u u"}, "train row 5 (id r5): the target has 6 tokens"),
    ],
)
def test_a_faulty_row_is_named_in_its_turn(make, bad, words):
    """Row 5 is in the third batch, which is taken when the second is trained on."""
    trainer = make(Rows([*ROWS[:5], {"id": "r5", **bad}, *ROWS[6:]]), max_target_length=4)
    with pytest.raises(ValueError, match="train row 5") as error:
        trainer.train()
    assert words in str(error.value)
    assert order(trainer) == ["r0", "r1"]


def test_a_stream_whose_rows_are_all_dropped_ends_with_a_sentence(make):
    trainer = make(Rows(ROWS), max_target_length=2, target_truncation="drop")
    with pytest.raises(ValueError, match=r"train: no row is left to use \(\{'targets_dropped': 10\}\)"):
        trainer.train()


def test_truncations_are_counted_as_rows_come_up(make):
    trainer = make(Rows(ROWS), max_target_length=2, target_truncation="right", max_steps=5)
    assert not trainer.encoder.counts
    trainer.train()
    assert trainer.encoder.counts == {"targets_truncated": 10}


def test_keywords_count_words_in_the_first_rows(make):
    trainer = make(Rows(ROWS), proposals=["keywords"])
    listed = make(ROWS, proposals=["keywords"])
    assert trainer.rollout.context.word_counts == count_words(listed.train_dataset)
    assert sum(trainer.rollout.context.word_counts.values()) == 20


def test_own_proposals_count_words_in_the_first_rows_too(make, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def rarest(words, context): return sorted(words, key=lambda word: context.word_counts[word])[:1]\n"
    )
    listed = make(ROWS, proposals=["own.py:rarest"])
    trainer = make(Rows(ROWS), proposals=["own.py:rarest"])
    said = capsys.readouterr().out
    assert trainer.rollout.context.word_counts == count_words(listed.train_dataset)
    assert f"word counts are those of the stream's first {len(ROWS)} rows" in said
    assert "word_counts" not in vars(make(Rows(ROWS), proposals=["reverse"]).rollout.context)
    assert not capsys.readouterr().out


def test_rows_that_fill_no_batch_are_refused(make):
    with pytest.raises(ValueError, match="dataloader_drop_last"):
        make(ROWS, per_device_train_batch_size=len(ROWS) + 1, dataloader_drop_last=True)


def test_what_cannot_be_exact_is_refused(make):
    with pytest.raises(ValueError, match="max_steps: a stream has no length"):
        make(Rows(ROWS), max_steps=-1)
    with pytest.raises(ValueError, match="dataloader_num_workers: is 2"):
        make(Rows(ROWS), dataloader_num_workers=2)
    with pytest.raises(ValueError, match="accelerator_config: split_batches"):
        make(Rows(ROWS), accelerator_config={"split_batches": True})
    split = pytest.importorskip("datasets.distributed").split_dataset_by_node
    stream = pytest.importorskip("datasets").IterableDataset.from_generator(lambda: iter(ROWS))
    with pytest.raises(ValueError, match="split over processes"):
        make(split(stream, rank=0, world_size=2))


def test_a_recipe_streams_its_file_and_orders_it_by_its_seed(tmp_path):
    from rl_warmup.config import build_recipe
    from rl_warmup.experiments.run import make_trainer, recipe_task

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    orders = []
    for seed in (1, 2):
        recipe = build_recipe({
            "model_name_or_path": "scratch-llama", "scratch": SIZE, "task": "file", "seed": seed, "max_steps": 5,
            "task_kwargs": {"train": str(path), "stream": True}, "output_dir": str(tmp_path / "run"), "use_cpu": True,
            "per_device_train_batch_size": 2, "show_progress": False,
        })  # fmt: skip
        orders.append([row["id"] for row in make_trainer(recipe, recipe_task(recipe)).train_dataset])
    assert sorted(orders[0]) == sorted(orders[1]) == [row["id"] for row in ROWS]
    assert orders[0] != orders[1]


def test_special_tokens_of_targets_are_found_beyond_the_first_row_of_a_stream(make):
    """A faulty row ends the search, as it is named in its turn."""
    special = {"id": "r3", "prompt": "p3 q", "target": "t0 <unk> u"}
    for rows, found in (([*ROWS[:3], special, *ROWS[4:]], True), ([*ROWS[:3], {"id": "bad"}, special], False)):
        trainer = make(Rows(rows))
        unknown = trainer.processing_class.unk_token_id
        assert (unknown in trainer.settings.special_targets) == found

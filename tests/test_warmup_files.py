"""Files of warmups: which line is whose, what becomes of a text, and one sentence for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.batch import Warmup
from rl_warmup.method.proposals import COLUMNS, STORED
from rl_warmup.method.training_data import training_rows
from rl_warmup.method.warmup_files import StoredWarmups, record
from rl_warmup.models.encoding import RowEncoder
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.run_folder import write_jsonl
from rl_warmup.tasks.stream import Stream

SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
ROWS = [{"id": f"r{i}", "prompt": f"{p} b", "target": "c d"} for i, p in enumerate("aceg")]


@pytest.fixture
def read(t5, tmp_path):
    """The groups of ROWS, or others, in a file of these lines: number of a row -> words of its warmups."""

    def groups(lines, rows=ROWS, num_warmups=2, max_length=3, complete=False):
        path = tmp_path / "w.jsonl"
        if isinstance(lines, str):
            path.write_text(lines, encoding="utf-8")
        else:
            write_jsonl(path, lines)
        forbidden = {*t5.tokens.banned.nonzero()[:, 0].tolist(), t5.tokens.separator_id}
        stored = StoredWarmups(path, t5.tokenizer, forbidden, num_warmups, max_length)
        of = stored.columns(rows, complete)
        groups.stored = stored
        found = [of(number, f"train row {number}")[COLUMNS[STORED]] for number in range(len(rows))]
        assert {warmup.finish for group in found for warmup in group} == {"proposal"}
        return [[t5.tokenizer.decode(warmup.ids) for warmup in group] for group in found]

    return groups


def lines(**changes):
    """A fitting line for every row, some changed: `_1={...}` is added to line 1, None removes it."""
    whole = [{"row": i, "warmups": ["a", "b c"]} for i in range(len(ROWS))]
    for name, change in changes.items():
        place = int(name[1:])
        whole[place] = None if change is None else {k: v for k, v in {**whole[place], **change}.items() if v != "-"}
    return [line for line in whole if line is not None]


# ---------------------------------------------------------------------- which line is whose


def test_rows_are_matched_by_number_id_or_prompt_in_any_order(read):
    file = [
        {"prompt": "g b", "warmups": ["d"]},
        {"row": 0, "id": "another", "warmups": ["a"]},  # the number wins; ids are labels
        {"id": "r2", "warmup": "c"},
        {"id": "r1", "prompt": "c b", "warmups": [{"text": "b"}]},
    ]
    assert read(file, num_warmups=1) == [["a"], ["b"], ["c"], ["d"]]


def test_ids_and_prompts_may_be_numbers_and_messages(read):
    chat = [{"role": "user", "content": "hello"}]
    rows = [{"id": 7, "prompt": "a"}, {"prompt": chat}]
    assert read([{"prompt": chat, "warmup": "b"}, {"id": 7, "warmup": "a"}], rows, 1) == [["a"], ["b"]]


def test_rows_of_one_prompt_share_its_line(read):
    assert read([{"prompt": "a", "warmup": "b"}], [{"prompt": "a"}, {"prompt": "a"}], 1) == [["b"], ["b"]]


def test_a_dropped_row_moves_no_warmup(t5, read, tmp_path):
    """The first row is too long and dropped: the others keep the warmups of their own numbers."""
    rows = [{"prompt": "a b c d e f", "target": "a"}, *ROWS]
    file = [{"row": i, "warmup": word} for i, word in enumerate("habcd")]
    read(file, rows, 1)
    encoder = RowEncoder(t5.tokenizer, t5.tokens.separator_id, 4, prompt_truncation="drop")
    args = WarmupConfig(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=True, max_steps=2, report_to="none")
    for source in (rows, iter(rows), Stream("rows", lambda: iter(rows), shuffle_buffer=1)):
        encoded = training_rows(encoder, source, args, read.stored)
        encoded = encoded if isinstance(encoded, list) else encoded.first(9)
        assert [row["id"] for row in encoded] == ["r0", "r1", "r2", "r3"]
        assert [row[COLUMNS[STORED]] for row in encoded] == [[Warmup(t5.ids(word), "proposal")] for word in "abcd"]
    with pytest.raises(ValueError, match="may give its rows in another order. Give the stream shuffle_buffer 1"):
        training_rows(encoder, Stream("rows", lambda: iter(rows)), args, read.stored)


# ---------------------------------------------------------------------- what becomes of the texts


def test_a_group_has_num_warmups_the_first_ones_or_all_again_in_turn(read):
    assert read(lines(), num_warmups=1)[0] == ["a"]
    assert read(lines(), num_warmups=5)[0] == ["a", "b c", "a", "b c", "a"]


def test_what_a_warmup_may_not_hold_is_left_out_and_the_rest_cut(read):
    file = lines(_0={"warmups": ["a </s> nowhere b <extra_id_0> c d", "h"]})
    assert read(file)[0] == ["a b c", "h"]
    assert read.stored.losses() == (
        f"{read.stored.path}: 3 of 17 tokens removed, as a warmup may not hold them; 1 of 8 warmups cut at max_warmup_length."
    )
    read(lines())
    assert read.stored.losses() == ""


def test_what_a_model_drew_may_be_empty_among_others(read):
    drawn = [{"warmup": "", "finish": "separator"}, {"warmup": "a", "finish": "length"}]
    assert read(lines(_3={"warmups": drawn}))[3] == ["a", "a"]
    assert "1 of 8 warmups ignored" in read.stored.losses()


def test_the_line_of_a_sample_is_read_back(t5, read):
    drawn = [Warmup(t5.ids("b a"), "separator", -1.23456), Warmup(t5.ids("c"), "length")]
    text = [record(i, row, [(t5.tokenizer.decode(w.ids), w) for w in drawn]) for i, row in enumerate(ROWS)]
    assert read("".join(text)) == [["b a", "c"]] * 4
    assert json.loads(text[1]) == {
        "row": 1, "id": "r1", "prompt": "c b", "target": "c d",
        "warmups": [
            {"warmup": "b a", "finish": "separator", "logprob": -1.2346},
            {"warmup": "c", "finish": "length", "logprob": None},
        ],
    }  # fmt: skip


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("", ["w.jsonl holds no lines", "`row` and `warmups`"]),
        (
            '{"row": 0, "warmup": "a"}\n{"row": 1, "war',
            ["w.jsonl, line 2: is not valid JSON", "finished by the same command"],
        ),
        ('["a"]', ["line 1: is a JSON list, no JSON object"]),
        (lines(_1={"row": "-"}), ["line 2: names no row", "`id` or `prompt`"]),
        (lines(_1={"row": "1"}), ["line 2: `row` is '1'", "from 0"]),
        (lines(_1={"row": True}), ["line 2: `row` is True"]),
        (lines(_1={"row": -1}), ["line 2: `row` is -1"]),
        (lines(_1={"warmups": "-"}), ["line 2: has neither `warmups` nor `warmup`"]),
        (lines(_1={"warmup": "a"}), ["line 2: has both `warmups` and `warmup`"]),
        (lines(_1={"warmups": "a"}), ["line 2: `warmups` is 'a'", "list"]),
        (lines(_1={"warmups": []}), ["line 2: `warmups` is []", "or remove the line"]),
        (lines(_1={"warmups": ["a", 3]}), ["line 2: warmup 1 is 3", "Give a text"]),
        (lines(_1={"warmups": [{"txt": "a"}]}), ["line 2: warmup 0 is {'txt': 'a'}", "`warmup` or `text`"]),
        (lines(_1={"warmups": ["a", " "]}), ["line 2: warmup 1 is empty", "remove it from the list"]),
        (lines(_1={"row": 2}), ["line 3: row 2 already has line 2", "into one list"]),
        (lines(_1={"row": "-", "id": "r2"}), ["line 2: id 'r2' is row 2, which already has line 3"]),
        (lines(_3={"row": 4}), ["line 4: row 4 is none of the 4 training rows.", "same sizes and seed"]),
        (
            lines(_2={"row": 8}, _3={"row": "-", "id": "x"}),
            ["line 3: row 8 is none of the 4 training rows; so are 2 of 4 lines"],
        ),
        (lines(_1={"prompt": "a b"}), ["line 2: its prompt is 'a b', but that of row 1 is 'c b'", "take `prompt` out"]),
        (lines(_1={"warmups": ["nowhere", "b"]}), ["line 2: 'nowhere' has no token that a warmup may hold", "unknown"]),
        (lines(_1={"warmups": [{"warmup": "", "finish": "separator"}]}), ["line 2: all 1 warmups are empty"]),
        (lines(_1=None), ["train row 1: ", "w.jsonl has no warmups for it. Write a line for every training row"]),
        (lines(_1=None, _2=None), ["train row 1: ", "for it, and for 2 of 4 rows in all."]),
    ],
)
def test_every_mistake_is_one_sentence(read, file, words):
    with pytest.raises(ValueError, match="w.jsonl") as error:
        read(file)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_ids_that_repeat_cannot_be_matched_by(read):
    rows = [{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}]
    with pytest.raises(ValueError, match="id 'x' is that of the training rows 0 and 1. Name them by `row`."):
        read([{"id": "x", "warmup": "a"}], rows)
    assert read([{"row": i, "id": "x", "warmup": "a"} for i in (0, 1)], rows, 1) == [["a"], ["a"]]


def test_a_stream_is_held_against_the_whole_file_before_it_is_trained_on(read):
    with pytest.raises(ValueError, match=r"train row 1: .*w.jsonl has no warmups for it. Write a line"):
        read(lines(_1=None), complete=True)


# ---------------------------------------------------------------------- training


@pytest.fixture
def train(tmp_path):
    """Updates of a tiny model on twelve ledgers; the losses, and what was said of the groups."""
    rows = [{"prompt": f"a+{i % 3} b+{i // 3 % 3}", "target": f"b={(i % 3 + i // 3) % 3} a={i % 3}"} for i in range(12)]

    def run(folder, **settings):
        model, tokenizer = load_model("scratch-llama", lambda: [t for row in rows for t in row.values()], SIZE, 0)
        defaults = {
            "output_dir": str(tmp_path / folder), "max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True,
            "num_warmups": 2, "max_warmup_length": 3, "learning_rate": 1e-2, "save_strategy": "no", "logging_steps": 1,
            "disable_tqdm": True, "report_to": "none",
        }  # fmt: skip
        args = WarmupConfig(**{**defaults, **settings})
        trainer = WarmupTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=rows)
        trainer.train()
        return read_jsonl(Path(args.output_dir, "metrics.jsonl")), read_jsonl(Path(args.output_dir, "warmups.jsonl"))

    run.rows = rows
    return run


def test_training_on_stored_warmups_imitates_by_the_posterior(train, tmp_path):
    write_jsonl(tmp_path / "w.jsonl", [{"row": i, "warmups": ["a=0 b=1", "b=2"]} for i in range(12)])
    log, shown = train("run", proposals=["stored"], stored_warmups=str(tmp_path / "w.jsonl"), empty_share=0.0)
    assert [record["phase"] for record in log] == ["cold start"] * 2
    assert all("proposal_logp" in record for record in log)
    for prompt in shown:
        assert {warmup["warmup"] for warmup in prompt["warmups"]} == {"a=0 b=1", "b=2"}
        assert {warmup["finish"] for warmup in prompt["warmups"]} == {"proposal"}
        assert sum(warmup["posterior"] for warmup in prompt["warmups"]) == pytest.approx(1)


def test_gold_texts_train_to_the_bit_as_the_proposal_they_spell(train, tmp_path):
    """The target's words reversed, as a file and as `proposals: [reverse]`; the switch to own warmups comes in between."""
    gold = [{"row": i, "warmup": " ".join(row["target"].split()[::-1])} for i, row in enumerate(train.rows)]
    write_jsonl(tmp_path / "gold.jsonl", gold[::-1])
    settings = {"num_warmups": 1, "objective": "joint", "max_steps": 6, "readiness": -2.92, "anchor_weight": 0.3}
    made = train("made", proposals=["reverse"], **settings)
    read = train("read", proposals=["stored"], stored_warmups=str(tmp_path / "gold.jsonl"), **settings)
    assert {record["phase"] for record in made[0]} == {"cold start", "own warmups"}
    assert read == made


def test_the_sft_control_needs_no_file(train):
    log, _ = train("sft", proposals=["stored"], stored_warmups="nowhere.jsonl", objective="sft")
    assert "phase" not in log[0]


def test_a_file_that_is_not_there_says_so_before_the_first_update(train):
    with pytest.raises(ValueError, match="stored_warmups: nowhere.jsonl does not exist. `rl-warmup sample MODEL"):
        train("run", proposals=["stored"], stored_warmups="nowhere.jsonl")

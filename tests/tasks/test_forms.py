"""Rows in the forms that others use: recognised by their columns, or named; and every table that users have brought."""

import gzip
import json
from pathlib import Path

import pytest

from rl_warmup.tasks import load_task
from rl_warmup.tasks.columns import Template
from rl_warmup.tasks.stream import Stream

TALK = [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"},
]  # fmt: skip
# form -> a record, its prompt and its target
FORMS = {
    "target": ({"prompt": "a", "target": "b"}, "a", "b"),
    "completion": ({"prompt": "a", "completion": "b"}, "a", "b"),
    "conversational": ({"prompt": TALK[:1], "completion": TALK[1:2]}, TALK[:1], "Hello"),
    "conversational with a target": ({"prompt": TALK[:3], "target": "4"}, TALK[:3], "4"),
    "several turns completed": ({"prompt": TALK[:1], "completion": TALK[1:]}, TALK[:3], "4"),
    "messages": ({"messages": TALK}, TALK[:3], "4"),
    "ends with the user": ({"messages": TALK[:3]}, TALK[:1], "Hello"),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "Be kind"}, {"from": "human", "value": "Hi"},
                           {"from": "gpt", "value": "Hello"}]},
        [{"role": "system", "content": "Be kind"}, TALK[0]], "Hello",
    ),
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n\n1 2", "3"),
    "alpaca with an empty input": ({"instruction": "Name a colour.", "input": "", "output": "Blue"}, "Name a colour.", "Blue"),
    "alpaca without an input": ({"instruction": "Name a colour.", "output": "Blue"}, "Name a colour.", "Blue"),
    "columns without a value": ({"prompt": "a", "target": "b", "completion": None, "messages": None}, "a", "b"),
}  # fmt: skip


def write(path: Path, *records) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def load(path: Path, *records, **kwargs):
    return load_task("file", train=write(path / "r.jsonl", *records), **kwargs)


def fault(path: Path, *records, **kwargs) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        load(path, *records, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["file", "stream", "hub", "hub stream"])
def test_a_form_is_recognised_by_its_columns(tmp_path, form, how):
    record, prompt, target = FORMS[form]
    path = write(tmp_path / "train.jsonl", {**record, "note": "n"})
    kwargs = (
        {"train": path} if "hub" not in how else {"dataset_name": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    )
    kwargs |= {"validation": None, "test": None, "stream": "stream" in how}
    rows = list(load_task("hub" if "hub" in how else "file", **kwargs).splits["train"])
    assert [(row["prompt"], row["target"], row["note"]) for row in rows] == [(prompt, target, "n")]


def test_the_form_that_was_taken_is_said_once(tmp_path):
    path = write(tmp_path / "r.jsonl", {"messages": TALK})
    task = load_task("file", train=path, validation=path, test=path)
    assert task.notes == ("rows are read as conversations (messages), their last assistant turn is the target",)
    assert load_task("file", train=path, stream=True).notes == task.notes
    assert load(tmp_path, {"q": "a", "b": "c"}, prompt_column="q", target_column="b").notes == ()


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"prompt": "a", "messages": TALK}, ["'prompt' and 'messages'"]),
        ({"prompt": "a", "target": "b", "messages": TALK}, ["'prompt' and 'messages'"]),
        ({"messages": TALK, "conversations": TALK}, ["'messages' and 'conversations'"]),
        ({"prompt": "a", "target": "b", "instruction": "c", "output": "d"}, ["'prompt' and 'instruction'"]),
    ],
)
def test_rows_of_two_forms_are_refused_unless_columns_are_named(tmp_path, record, named):
    message = fault(tmp_path, record)
    assert all(name in message for name in [*named, "r.jsonl:1", "prompt_column and target_column", "messages_column"])
    columns = (
        {"messages_column": "messages"}
        if "messages" in record
        else {"prompt_column": "prompt", "target_column": "target"}
    )
    assert load(tmp_path, record, **columns).splits["train"][0]["target"] in ("b", "4")


@pytest.mark.parametrize(
    ("record", "kwargs", "words"),
    [
        ({"messages": TALK[:1]}, {}, ["'messages' needs an assistant turn after a user's", "roles are user"]),
        ({"messages": TALK[1:2]}, {}, ["needs an assistant turn after a user's"]),
        ({"messages": "Hi"}, {}, ["'messages' is 'Hi'", "list of messages"]),
        ({"messages": [{"role": "user", "content": 5}, TALK[1]]}, {}, ["message 0", "role and content as texts"]),
        ({"messages": [TALK[0], {"role": "assistant", "content": " "}]}, {}, ["'target' is empty"]),
        ({"messages": TALK}, {"prompt_template": "Q: {text}"}, ["prompt_template", "chat_template"]),
        ({"prompt": "a", "completion": TALK}, {}, ["several messages"]),
        ({"talk": TALK}, {"messages_column": "tlk"}, ["no column 'tlk' (did you mean 'talk'?)"]),
        ({"talk": TALK}, {"messages_column": "talk", "target_column": "x"}, ["leave out prompt_column"]),
        ({"talk": TALK}, {"messages_column": 3}, ["messages_column=3"]),
        ({"x": "a", "y": "b"}, {}, ["no column 'prompt'", "available: x, y", "prompt_column and target_column"]),
        ({"prompt": "a", "target": "b"}, {"keep_columns": "x"}, ["give a list"]),
    ],
)
def test_faults_of_forms_say_what_to_do(tmp_path, record, kwargs, words):
    message = fault(tmp_path, record, **kwargs)
    assert all(word in message for word in words), message


def test_a_named_column_of_conversations_and_other_keys_of_messages(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    record = {"talk": {"turns": [TALK[0], call, {"role": "tool", "content": "5"}, TALK[3]]}}
    row = load(tmp_path, record, messages_column="talk.turns").splits["train"][0]
    assert row["prompt"][1] == {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    assert row["target"] == "4"
    assert "talk" not in row


def test_a_target_beside_another_completion_is_refused_unless_one_is_named(tmp_path):
    both = {"prompt": "a", "target": "b", "completion": "c"}
    message = fault(tmp_path, both)
    assert message.endswith(
        "r.jsonl:1: has the columns 'target' and 'completion', which differ; give target_column, one of the two"
    )
    assert fault(tmp_path, both, prompt_column="prompt") == message
    for column, target in (("target", "b"), ("completion", "c")):
        assert load(tmp_path, both, target_column=column).splits["train"][0]["target"] == target
    for record in (
        {**both, "completion": "b"},
        {**both, "completion": None},
        {**both, "target": None, "completion": "b"},
    ):
        assert load(tmp_path, record).splits["train"][0]["target"] == "b"


# ---------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("template", "record", "text"),
    [
        ("{a}\n\n{b?}", {"a": "x"}, "x"),
        ("{a}\n\n{b?}", {"a": "x", "b": "y"}, "x\n\ny"),
        ("{a}{b?\nInput: }\nAnswer:", {"a": "x", "b": "y"}, "x\nInput: y\nAnswer:"),
        ("{a}{b?\nInput: }\nAnswer:", {"a": "x", "b": ""}, "x\nAnswer:"),
        ("{b?}\n{a}", {"a": "x", "b": None}, "x"),
        ("{c?}{b? Input: } {a}", {"a": "x", "b": "y"}, "Input: y x"),
        ("say {b?} {a}", {"a": "x"}, "say x"),
        ("{{a?}} {a}{c.d?: }", {"a": "x", "c": {"d": 5}}, "{a?} x: 5"),
    ],
)
def test_an_optional_field_disappears_with_what_is_before_it(template, record, text):
    assert Template.parse(template).fill(record, "here") == text


def test_a_template_with_optional_fields_is_one_of_a_text_for_generate(tmp_path):
    assert Template.parse("Q: {text}{hint?\nHint: }\nA: {{").of_text() == "Q: {text}\nA: {{"
    assert Template.parse("{a} {text}").of_text() is None
    records = [{"q": "a", "target": "b", "hint": "h"}, {"q": "a", "target": "b"}]
    task = load(tmp_path, *records, prompt_template="{q}{hint? }", target_column="target")
    assert [row["prompt"] for row in task.splits["train"]] == ["a h", "a"]
    assert task.prompt_template == "{text}"
    assert load(tmp_path, {"instruction": "a", "output": "b"}).prompt_template == "{text}"


# ---------------------------------------------------------------------- a language per row


def spoken(**texts):
    return [{"id": i, "iso": language[:3], "script": "Latn", "text": text, "url": "u"}
            for language, lines in texts.items() for i, text in enumerate(lines, 1)]  # fmt: skip


PAIR = {"language_column": "iso", "source_language": "deu", "target_language": "eng"}


@pytest.mark.parametrize("how", ["file", "hub"])
def test_texts_of_one_id_are_translations(tmp_path, how):
    path = write(tmp_path / "train.jsonl", *spoken(deu=["Ja", "Nein", "Ach"], eng=["Yes", "No"], fra=["Oui"]))
    where = {"train": path} if how == "file" else {
        "dataset_name": str(tmp_path), "validation": None, "test": None, "cache_dir": str(tmp_path / "cache")
    }  # fmt: skip
    task = load_task(how, **where, **PAIR, prompt_template="Translate: {text}", keep_columns=[])
    found = [(row["id"], row["prompt"], row["target"]) for row in task.splits["train"]]
    assert found == [("1", "Translate: Ja", "Yes"), ("2", "Translate: Nein", "No")]
    assert task.notes == ("1 texts have no translation and are left out",)
    assert task.prompt_template == "Translate: {text}"


def test_languages_of_two_columns_in_two_files(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", *spoken(**{name: [f"{name} 1"]})) for name in ("deu", "eng")]
    names = {"language_column": ["iso", "script"], "source_language": "deu_Latn", "target_language": "eng_Latn"}
    row = load_task("file", train=files, **names).splits["train"][0]
    assert (row["prompt"], row["target"], row["url"]) == ("deu 1", "eng 1", "u")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({**PAIR, "target_language": None}, ["add target_language"]),
        ({**PAIR, "target_language": "xho"}, ["'deu' and 'xho'", "languages found are deu, eng"]),
        ({**PAIR, "target_column": "x"}, ["leave out target_column"]),
        ({**PAIR, "stream": True}, ["no language_column"]),
        ({**PAIR, "language_column": "script", "source_language": "Latn"}, ["has a text of Latn already"]),
    ],
)
def test_faults_of_languages(tmp_path, kwargs, words):
    message = fault(tmp_path, *spoken(deu=["Ja"], eng=["Yes"]), **kwargs)
    assert all(word in message for word in words), message


# ---------------------------------------------------------------------- files


def test_text_files_of_two_kinds_and_zst(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    lines = json.dumps({"prompt": "a", "target": "b"}).encode()
    contents = {"j.txt": b"\n" + lines, "t.txt": b"\nprompt\ttarget\na\tb\n", "r.jsonl": lines}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        half = len(content) // 2
        frames = [pyarrow.compress(part, codec="zstd", asbytes=True) for part in (content[:half], content[half:])]
        (tmp_path / f"{name}.zst").write_bytes(b"".join(frames))
        for packing in ("", ".gz", ".zst"):
            row = load_task("file", train=str(tmp_path / f"{name}{packing}")).splits["train"][0]
            assert (row["prompt"], row["target"]) == ("a", "b"), f"{name}{packing}"
    (tmp_path / "r.jsonl.zst").write_bytes(frames[0][:-2])
    with pytest.raises(ValueError, match="not a whole zstd file"):
        load_task("file", train=str(tmp_path / "r.jsonl.zst"))
    (tmp_path / "n.txt").write_text("Good morning\tGuten Morgen\nBye\tTschuess\n")
    with pytest.raises(ValueError, match="needs column_names"):
        load_task("file", train=str(tmp_path / "n.txt"))


@pytest.mark.parametrize("stream", [{}, {"stream": True, "shuffle_buffer": 1}])
def test_two_files_with_a_line_per_text(tmp_path, stream):
    (tmp_path / "c.en").write_bytes('one\u2028\r\n\ntwo "x"\n'.encode())
    (tmp_path / "c.de.gz").write_bytes(gzip.compress(b"eins\n\nzwei"))
    both = {"prompt": str(tmp_path / "c.en"), "target": str(tmp_path / "c.de.gz")}
    rows = list(load_task("file", train=both, drop_empty=True, **stream).splits["train"])
    assert [(row["id"], row["prompt"], row["target"]) for row in rows] == [
        ("0", "one\u2028", "eins"),
        ("2", 'two "x"', "zwei"),
    ]
    (tmp_path / "c.de").write_text("eins\n")
    with pytest.raises(ValueError, match=r"line 2 is missing in .*c\.de; give files with as many lines"):
        load_task("file", train={**both, "target": str(tmp_path / "c.de")})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_task("file", train={**both, "target": str(tmp_path / "no")})


def test_zst_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "r.jsonl.zst").write_bytes(b"x")
    with pytest.raises(ImportError, match=r"reading .zst needs pyarrow; pip install pyarrow"):
        load_task("file", train=str(tmp_path / "r.jsonl.zst"))


@pytest.mark.parametrize("stream", [{}, {"stream": True, "shuffle_buffer": 1}])
def test_rows_that_are_empty_may_be_dropped_and_columns_left_out(tmp_path, stream):
    records = [{"prompt": "a", "target": t, "x": 1, "y": 2} for t in ("b", "", None, " ", "c")]
    rows = list(load(tmp_path, *records, drop_empty=True, keep_columns=["x"], **stream).splits["train"])
    assert [(row["id"], row["target"]) for row in rows] == [("0", "b"), ("4", "c")]
    assert rows[0].keys() == {"id", "prompt", "target", "x"}
    empty = [{"messages": [TALK[0], {"role": "assistant", "content": ""}]}, {"messages": TALK}]
    assert len(load(tmp_path, *empty, drop_empty=True).splits["train"]) == 1
    bare = [{"instruction": "", "output": "x"}, {"instruction": "a", "output": "x"}]
    assert len(load(tmp_path, *bare, drop_empty=True).splits["train"]) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_folder_saved_by_datasets(tmp_path, stream):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"messages": TALK, "x": 1}] * 3)
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(str(tmp_path / "all"))
    task = load_task("hub", dataset_name=str(tmp_path / "all"), validation=None, stream=stream, keep_columns=["x"])
    assert isinstance(task.splits["train"], Stream) == stream
    assert [row["target"] for row in task.splits["train"]] == ["4"] * 3
    assert [set(row) for row in task.splits["test"]] == [{"id", "prompt", "target", "x"}]
    rows.save_to_disk(str(tmp_path / "one"))
    assert len(load_task("hub", dataset_name=str(tmp_path / "one"), validation=None, test=None).splits["train"]) == 3
    with pytest.raises(FileNotFoundError, match="is a folder.*`task: hub`"):
        load_task("file", train=str(tmp_path / "one"))


def test_conversations_that_recur_stay_in_one_split(tmp_path):
    records = [{"messages": [{"role": "user", "content": f"p{i // 2}"}, TALK[1]]} for i in range(40)]
    splits = load_task("file", path=write(tmp_path / "r.jsonl", *records)).splits
    homes = [{row["prompt"][0]["content"] for row in rows} for rows in splits.values()]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 20


# ---------------------------------------------------------------------- tables of users (of the same kinds, made here)

ARC = {
    "id": "q",
    "question": "Which?",
    "choices": {"text": ["a1", "b1", "c1"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}


def test_choices_with_labels_of_their_own(tmp_path):
    arc = {"choices_column": "choices.text", "labels_column": "choices.label", "answer_column": "answerKey",
           "prompt_template": "{question} {options}"}  # fmt: skip
    row = load(tmp_path, ARC, **arc).splits["train"][0]
    assert (row["prompt"], row["target"], row["choices"], row["answer"]) == (
        "Which? A) a1 B) b1 C) c1",
        "B",
        ["a1", "b1", "c1"],
        1,
    )
    assert "give each choice a label" in fault(tmp_path, {**ARC, "answerKey": "4"}, **arc)
    assert "labels_column" in fault(tmp_path, ARC, labels_column="choices.label")


def test_what_stands_beside_named_messages_stays(tmp_path):
    record = {"data": {"messages": TALK, "id": "q7"}, "x": 1}
    row = load(tmp_path, record, messages_column="data.messages", id_column="data.id").splits["train"][0]
    assert row == {"data": {"id": "q7"}, "x": 1, "id": "q7", "prompt": TALK[:3], "target": "4"}
    bare = load(tmp_path, {"data": {"messages": TALK}}, messages_column="data.messages").splits["train"][0]
    assert bare.keys() == {"id", "prompt", "target"}

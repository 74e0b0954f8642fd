"""Conversations in training and after it: templates, the system message, one BOS, and figures that stay the same."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer
from trl.data_utils import apply_chat_template as trl_template

from rl_warmup import WarmupConfig, WarmupGenerator, WarmupTrainer
from rl_warmup.cli.main import main
from rl_warmup.config import build_recipe
from rl_warmup.experiments.run import train_run
from rl_warmup.inference.samples import Sampler
from rl_warmup.models.chat import Chat
from rl_warmup.models.encoding import RowEncoder
from rl_warmup.models.inference_settings import LAYOUT_FILE
from rl_warmup.models.loading import load_model
from rl_warmup.models.tokens import declare_tokens
from rl_warmup.options import WarmupOptions
from rl_warmup.runtime.run_files import read_result
from rl_warmup.tasks import load_task

WORDS = "red blue green user assistant system be kind sure </think>"
TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if kind %}kind {% endif %}{% if add_generation_prompt %}assistant{% endif %}"
)
SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}


def talk(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


ROWS = [
    {"messages": talk("red", "sure", colour, "blue")}
    for colour in ("red", "blue", "green", "be kind user assistant system")
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    write("talks.jsonl", ROWS)
    write("texts.jsonl", [{"prompt": "red", "target": "blue"}] * 4)
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def recipe(data="talks.jsonl", **changes):
    return build_recipe({
        "model_name_or_path": "scratch-llama", "scratch": SIZE, "task": "file", "task_kwargs": {"train": data, "test": data},
        "num_warmups": 2, "max_warmup_length": 3, "max_target_length": 6, "output_dir": "run", "max_steps": 1, "use_cpu": True,
        "controls": ["shuffled"], "per_device_train_batch_size": 2, "logging_steps": 1, "show_progress": False,
        "report_to": "none", "save_strategy": "no", "seed": 3, **changes,
    })  # fmt: skip


def tokenizer(template: str | None = None):
    model, found = load_model("scratch-llama", lambda: [WORDS] * 3, SIZE, 0)
    found.chat_template = template
    return model, found


def train(rows, template: str | None = None, **args):
    model, found = tokenizer(template)
    config = WarmupConfig(
        "run", use_cpu=True, report_to="none", save_strategy="no", max_steps=1, disable_tqdm=True, **args
    )
    return WarmupTrainer(model, config, rows, processing_class=found)


def tokens(found, ids):
    return " ".join(found.convert_ids_to_tokens(ids))


# ---------------------------------------------------------------------- what the model is fed


def test_a_conversation_is_laid_into_the_template_with_its_history_and_one_begin_token():
    _, found = tokenizer(TEMPLATE)
    found.bos_token = "red"
    ids = Chat(system="be kind", kwargs={"kind": True}).ids(found, talk("blue", "sure", "green"), "row")
    assert tokens(found, ids) == "red system be kind user blue assistant sure user green kind assistant"
    own = [{"role": "system", "content": "sure"}, *talk("blue")]
    assert tokens(found, Chat(system="be kind").ids(found, own, "row")) == "red system sure user blue assistant"
    begun = talk("blue", "sure")
    assert tokens(found, Chat().ids(found, begun, "row")).endswith("assistant sure")
    bare = "{{ bos_token }} {{ messages[0]['content'] }}"
    for prompt in (talk("blue"), talk("red blue"), "blue", "red blue"):  # red is the begin token
        row = RowEncoder(found, 5, encoder_decoder=False, chat=Chat(texts=True, template=bare)).encode(
            {"prompt": prompt, "target": "green"}, "row"
        )
        assert tokens(found, row["prompt_ids"]) == "red blue"


@pytest.mark.parametrize("prompt", [talk("red"), talk("red", "sure", "blue"), talk("red", "sure")], ids=len)
def test_a_prompt_is_laid_out_as_by_trl(prompt):
    _, found = tokenizer(TEMPLATE)
    found.bos_token = "green"
    theirs = trl_template({"prompt": prompt, "completion": [{"role": "assistant", "content": "kind"}]}, found)["prompt"]
    assert Chat().ids(found, prompt, "row") == found(theirs, add_special_tokens=False)["input_ids"]


def test_contents_alone_without_a_template():
    _, found = tokenizer()
    assert Chat(template="none").ids(found, talk("blue", "sure"), "row") == found("blue\nsure")["input_ids"]


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        (Chat(), ["row: the prompt is a conversation", "chat_template: FILE", "chat_template: none"]),
        (Chat(template="{{ raise_exception('roles alternate') }}"), ["row: the chat template fails", "roles alternate"]),
        (Chat(template=TEMPLATE, kwargs={"tokenize": False}), ["the chat template fails", "tokenize"]),
    ],
)  # fmt: skip
def test_a_conversation_without_a_working_template_says_what_to_do(chat, words):
    with pytest.raises(ValueError, match="row: ") as caught:
        chat.ids(tokenizer()[1], talk("blue"), "row")
    assert all(word in str(caught.value) for word in words), str(caught.value)


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"chat_template": "none", "system": "x"}, ["chat_template: is none, so system"]),
        ({"chat_template": ""}, ["chat_template: is empty"]),
        ({"system": " "}, ["system: is empty"]),
        ({"chat_template_kwargs": {"tokenize": False}}, ["chat_template_kwargs: tokenize cannot be changed"]),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match="chat|system") as caught:
        WarmupConfig("run", use_cpu=True, **settings)
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(ValueError, match=next(iter(settings))):
        recipe(**settings)


def test_a_file_that_is_no_template(home):
    for name in ("nowhere.jinja", "talks.txt"):
        (home / "talks.txt").write_text("hello")
        with pytest.raises(ValueError, match=f"chat_template: {name}"):
            train(ROWS, chat_template=name)


def test_plain_texts_say_once_that_a_template_is_not_used(capsys):
    rows = [{"prompt": "red", "target": "blue"}]
    train(rows, TEMPLATE)
    assert capsys.readouterr().out.count("`chat_template: model` uses it") == 1
    for quiet in ({"chat_template": "none"}, {"chat_template": "model"}):
        trainer = train(rows, TEMPLATE, **quiet)
        assert "not used" not in capsys.readouterr().out
    assert tokens(trainer.processing_class, trainer.train_dataset[0]["prompt_ids"]).endswith("user red assistant")
    assert trainer.settings.chat
    train(rows)
    assert "not used" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"system, chat_template_kwargs: have no effect.*chat_template: model"):
        train(rows, TEMPLATE, system="be kind")


def test_texts_and_conversations_are_not_mixed():
    rows = [{"prompt": "red", "target": "blue"}, {"prompt": talk("red"), "target": "blue"}]
    with pytest.raises(ValueError, match="row 1 is a conversation, that of row 0 a text"):
        train(rows, TEMPLATE)
    mixed = train(rows, TEMPLATE, chat_template="model").train_dataset
    assert mixed[0]["prompt_ids"] == mixed[1]["prompt_ids"]


# ---------------------------------------------------------------------- the same after training


@pytest.mark.parametrize("changes", [
    {"system": "be kind", "chat_template": "chat.jinja", "chat_template_kwargs": {"kind": True}},
    {"chat_template": "none"},
], ids=["template and system", "none"])  # fmt: skip
def test_metrics_after_training_are_those_of_a_later_evaluate(home, capsys, changes):
    train_run(recipe(**changes))
    assert "rows are read as conversations (messages)" in capsys.readouterr().out
    after = (home / "run" / "predictions.jsonl").read_text()
    (home / "chat.jinja").unlink()  # the folder needs nothing else
    assert main(["evaluate", "run", "--controls", "shuffled"]) == 0
    later = json.loads((home / "run/evaluation/test/metrics.json").read_text())
    assert later["metrics"] == read_result(home / "run")["metrics"]
    assert (home / "run/evaluation/test/predictions.jsonl").read_text() == after

    warmup_generator = WarmupGenerator.load("run", "cpu")
    row = warmup_generator.encoded([{"prompt": talk("red", "sure", "green")}])[0]
    trained = load_task("file", train="talks.jsonl").splits["train"][2]
    assert row["prompt_ids"] == warmup_generator.encoded([trained])[0]["prompt_ids"]
    shown = tokens(warmup_generator.tokenizer, row["prompt_ids"])
    assert shown.endswith("kind assistant") if "system" in changes else "user" not in shown
    text, said = (warmup_generator.encoded([{"prompt": prompt}])[0]["prompt_ids"] for prompt in ("red", talk("red")))
    assert text == said
    assert main(["generate", "run", "red"]) == 0
    if "system" in changes:
        assert AutoTokenizer.from_pretrained("run").chat_template == TEMPLATE  # for other programs


def test_texts_in_a_template_and_a_resumed_run(home):
    changes = {
        "chat_template": "chat.jinja",
        "system": "be kind",
        "save_strategy": "steps",
        "save_steps": 1,
        "proposals": [],
    }
    train_run(recipe("texts.jsonl", **changes))
    layout = json.loads((home / "run" / LAYOUT_FILE).read_text())
    assert (layout["chat"], layout["system"], layout["chat_template"]) == (True, "be kind", TEMPLATE)
    warmup_generator = WarmupGenerator.load("run", "cpu")
    row = load_task("file", test="texts.jsonl").splits["test"][0]
    asked, measured = (warmup_generator.encoded([given])[0]["prompt_ids"] for given in ({"prompt": "red"}, row))
    assert asked == measured
    assert tokens(warmup_generator.tokenizer, asked).endswith("red <unk>")  # a tokenizer of these rows lacks the roles
    longer = {**changes, "max_steps": 2, "resume_from_checkpoint": "auto"}
    for other in ({"system": "be"}, {"chat_template": "auto", "system": None}):
        with pytest.raises(ValueError, match=f"{next(iter(other))} was"):
            train_run(recipe("texts.jsonl", **{**longer, **other}))
    (home / "chat.jinja").write_text(TEMPLATE + " ")
    with pytest.raises(ValueError, match="chat_template_text was"):
        train_run(recipe("texts.jsonl", **longer))
    (home / "chat.jinja").write_text(TEMPLATE)
    assert train_run(recipe("texts.jsonl", **longer))["updates"] == 2
    assert json.loads((home / "run" / LAYOUT_FILE).read_text()) == layout


# ---------------------------------------------------------------------- the model's own end of thinking


def test_the_separator_may_be_the_models_own_end_of_thinking():
    model, found = tokenizer()
    size, before = len(found), model.get_input_embeddings().weight.clone()
    rows = [{"prompt": "red", "target": "blue"}] * 2
    for init, kept in (("auto", True), ("end_token", False)):
        model.get_input_embeddings().weight.data.copy_(before)
        args = WarmupConfig(
            "run", use_cpu=True, report_to="none", max_steps=1, disable_tqdm=True, separator="</think>", num_warmups=2,
            proposals=["reference"], separator_init=init,
        )  # fmt: skip
        trainer = WarmupTrainer(model, args, rows, processing_class=found)
        place = found.convert_tokens_to_ids("</think>")
        assert (trainer.layout.tokens.separator_id, len(found), found.convert_tokens_to_ids("</think>")) == (
            place,
            size,
            place,
        )
        assert bool((model.get_input_embeddings().weight[place] == before[place]).all()) == kept
    trainer.save_model()
    again = WarmupGenerator.load("run", "cpu")
    assert again.settings.separator == "</think>"
    assert len(again.tokenizer) == size
    with pytest.raises(ValueError, match="'</think>' is not a single token"):
        declare_tokens(*load_model("scratch-t5", lambda: ["a b c"] * 3, SIZE, 0), "</think>")


def test_sampling_from_any_model_keeps_its_own_end_of_thinking(home):
    model, found = tokenizer()
    before = model.get_input_embeddings().weight.clone()
    model.save_pretrained(home / "start")
    found.save_pretrained(home / "start")
    place, cpu = found.convert_tokens_to_ids("</think>"), torch.device("cpu")
    for init, kept in (("auto", True), ("end_token", False)):
        options = WarmupOptions(separator="</think>", separator_init=init)
        drawn = Sampler.open("start", options, (), 0, 2, cpu).drawing.model.get_input_embeddings().weight
        assert bool((drawn[place] == before[place]).all()) == kept

"""Pushing to a hub: a stand-in on 127.0.0.1 gets the run with its card, and nobody else gets the token."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.cli.main import main
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.run_folder import write_jsonl

TOKEN = "hf_SECRETSECRETSECRETSECRETSECRETSECR"
ROWS = [{"prompt": f"a b w{i}", "target": f"w{i} b"} for i in range(4)]
SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}


class Hub(ThreadingHTTPServer):
    """Takes repositories and commits as the hub does, and keeps what was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.commits = 0
        self.is_full = False


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        hub.tokens.add(self.headers.get("Authorization", ""))
        known = json.loads(body.splitlines()[0])
        if self.path == "/api/repos/create":
            hub.repositories.append(known)
            self.reply({"url": f"{hub.url}/me/{known['name']}", "id": f"me/{known['name']}"})
        elif self.path == "/api/validate-yaml":
            block = yaml.safe_load(known["content"].split("---\n")[1])
            self.reply({"errors": [] if isinstance(block, dict) else [{"message": "no front matter"}], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in known["files"]]
            self.reply({"files": paths})
        elif "/commit/" in self.path and not hub.is_full:
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            hub.files |= {file["path"]: base64.b64decode(file["content"]) for file in sent}
            hub.commits += 1
            self.reply({"commitUrl": f"{hub.url}/me/mine/commit/1", "commitOid": "1" * 40, "success": True})
        else:
            self.reply({"error": "no room"}, 507)

    def reply(self, value: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def holders_of_the_token(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_run_that_pushes_brings_its_card_and_keeps_its_token(hub, tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    recipe = {
        "model_name_or_path": "scratch-t5", "scratch": SIZE, "task": "file", "use_cpu": True, "max_warmup_length": 3,
        "task_kwargs": {"train": str(tmp_path / "rows.jsonl"), "test": str(tmp_path / "rows.jsonl")}, "max_steps": 2,
        "save_strategy": "steps", "save_steps": 1, "num_warmups": 2, "per_device_train_batch_size": 2, "report_to": "none",
        "output_dir": str(tmp_path / "mine"), "push_to_hub": True, "hub_private_repo": True, "model_card": {"license": "mit"},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_DEBUG": "1",
        "NO_PROXY": "127.0.0.1",
    }
    for key in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        env.pop(key, None)
    done = subprocess.run(
        [sys.executable, "-m", "rl_warmup", "train", "--config", str(tmp_path / "r.yaml"), "--hub_token", TOKEN],
        env=env, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    assert holders_of_the_token(tmp_path) == []
    assert hub.tokens == {f"Bearer {TOKEN}"}
    (made,) = hub.repositories
    assert (made["name"], made.get("private") or made.get("visibility") == "private") == ("mine", True)
    assert hub.commits == 1
    for name in ("README.md", "model.safetensors", "metrics.json", "warmup_layout.json", "custom_generate/generate.py"):
        assert hub.files[name] == (tmp_path / "mine" / name).read_bytes()
    assert not [name for name in hub.files if name.startswith("checkpoint-")]
    assert not [name for name, content in hub.files.items() if TOKEN.encode() in content]
    card = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    result = json.loads(hub.files["metrics.json"])
    assert card["license"] == "mit"
    assert card["model-index"][0]["results"][0]["metrics"][0]["value"] == result["metrics"][""]["exact_match"]


@pytest.fixture
def here(hub, monkeypatch) -> Hub:
    """The stand-in as the hub of this process."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return hub


@pytest.fixture
def trainer(here, tmp_path) -> WarmupTrainer:
    """A trainer whose hub is the stand-in."""
    model, tokenizer = load_model("scratch-t5", lambda: [text for row in ROWS for text in row.values()], SIZE)
    config = WarmupConfig(
        output_dir=str(tmp_path / "py"), max_steps=1, num_warmups=2, max_warmup_length=3, use_cpu=True, report_to="none",
        disable_tqdm=True, save_strategy="no", hub_token=TOKEN,
    )  # fmt: skip
    return WarmupTrainer(model, config, ROWS, processing_class=tokenizer)


def test_a_trainer_pushes_with_the_fields_it_is_given(trainer, hub, tmp_path, capfd):
    trainer.train()
    trainer.push_to_hub(license="mit", language=["en"], tags=["demo"])
    card = yaml.safe_load(hub.files["README.md"].decode().split("---\n")[1])
    assert (card["license"], card["language"]) == ("mit", ["en"])
    assert "demo" in card["tags"]
    assert b"How to use this model" in hub.files["README.md"]
    assert hub.files["README.md"] == (tmp_path / "py" / "README.md").read_bytes()
    assert holders_of_the_token(tmp_path) == []
    assert TOKEN not in "".join(capfd.readouterr())


def test_a_hub_that_takes_nothing_is_one_sentence_and_the_run_is_kept(trainer, hub, tmp_path):
    trainer.train()
    hub.is_full = True
    with pytest.raises(ValueError, match="hf upload") as error:
        trainer.push_to_hub()
    assert TOKEN not in str(error.value)
    assert (tmp_path / "py" / "model.safetensors").is_file()


PAGE = (Path(__file__).parents[1] / "docs" / "sharing.md").read_text(encoding="utf-8")


def test_the_blocks_of_the_page_run(here, tmp_path, monkeypatch):
    """In the order of the page, as `evaluate` and `card` follow `export`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    recipe = {
        "model_name_or_path": "scratch-t5", "scratch": SIZE, "task": "ledger", "max_steps": 2, "max_warmup_length": 4,
        "task_kwargs": {"length": 3, "modulus": 4, "train_size": 16, "validation_size": 2, "test_size": 4}, "use_cpu": True,
        "max_target_length": 5, "num_warmups": 2, "per_device_train_batch_size": 4, "show_progress": False,
        "report_to": "none", "save_strategy": "no", "output_dir": "runs/mine",
    }  # fmt: skip
    adapter = {"use_peft": True, "lora_r": 2, "lora_target_modules": "all-linear", "output_dir": "runs/adapter"}
    adapter |= {"model_name_or_path": str(tmp_path / "runs/mine"), "scratch": None}
    for name, values in (("r.yaml", recipe), ("adapter.yaml", {**recipe, **adapter})):
        Path(name).write_text(yaml.safe_dump(values), encoding="utf-8")
        assert main(["train", "--config", name]) == 0
    commands = re.findall(r"^    (rl-warmup .*)$", PAGE, re.MULTILINE)
    assert {command.split()[1] for command in commands} == {"card", "evaluate", "export", "train"}
    for command in commands:
        if "tensorboard" not in command or importlib.util.find_spec("tensorboard"):
            assert main(shlex.split(command)[1:]) == 0, command
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    here.files.clear()
    exec(code.replace("max_steps=2", "max_steps=2, use_cpu=True, disable_tqdm=True"), {})
    known = yaml.safe_load(here.files["README.md"].decode().split("---\n")[1])
    assert (known["license"], known["language"]) == ("mit", "en")
    assert "model-index" in known

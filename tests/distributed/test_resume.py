"""Two processes under DDP, ZeRO-2 and ZeRO-3: killed or told to stop at any moment, they end as if nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import random
import runpy
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from rl_warmup.runtime import checkpoints
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.interruptions import EXIT_SIGNALLED

from .resume_worker import READING, UPDATES, logits, make_trainer

pytestmark = pytest.mark.distributed
CONFIGS = Path(__file__).parents[2] / "deepspeed_configs"
LAYOUTS = {  # model, launch, settings beside those of `resume_worker`
    "ddp": ("scratch-t5", None, {}),
    "ddp-reading": ("scratch-llama", None, READING),
    "zero2": ("scratch-t5", "zero2.json", READING),
    "zero3": ("scratch-llama", "zero3.json", READING),
}


class Pair:
    """Both processes, forked from one that has imported everything; a launcher would import it anew for each."""

    def __init__(self, folder: Path, layout: str, *runs: str) -> None:
        kind, config, changes = LAYOUTS[layout]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rl_warmup.trainer", "deepspeed"])
        self.log, self.processes = folder / "log.txt", []
        for rank in ("0", "1"):
            given = {
                "place": {**meeting, "RANK": rank, "LOCAL_RANK": rank}, "folder": str(folder), "kind": kind,
                "deepspeed": str(CONFIGS / config) if config else None, "changes": changes, "runs": runs,
            }  # fmt: skip
            script = str(Path(__file__).with_name("resume_worker.py"))
            settings = {"init_globals": {"GIVEN": given}, "run_name": "__main__"}
            self.processes.append(context.Process(target=runpy.run_path, args=(script,), kwargs=settings))
            self.processes[-1].start()

    def wait_for(self, path: Path) -> None:
        """Until a file or folder is there."""
        until = time.monotonic() + 200
        while not path.exists():
            assert all(process.exitcode is None for process in self.processes), self.log.read_text()[-4000:]
            assert time.monotonic() < until, self.log.read_text()[-4000:]
            time.sleep(0.01)

    def end(self) -> list[int]:
        """Their exit codes."""
        for process in self.processes:
            process.join(200)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes


def check_equal(folder: Path, run: str) -> None:
    """Weights, logits and log of a run are those of the one left alone, bit for bit."""
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (folder / run / name).read_bytes() == (folder / "alone" / name).read_bytes(), name
    assert len(read_jsonl(folder / run / "metrics.jsonl")) == -(-UPDATES // 3)  # the last update is logged too
    assert not (folder / run / "unfinished").exists()
    assert len(checkpoints.whole_checkpoints(folder / run)) == 2


# With reading the policy takes over after update 8: the first kill comes before it, the second around it or after it.
@pytest.mark.parametrize(("layout", "step"), [("ddp", 4), ("ddp-reading", 4), ("zero2", 4), ("zero3", 8)])
def test_a_killed_pair_ends_like_one_left_alone(tmp_path, layout, step):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    pair = Pair(tmp_path, layout, "alone", "killed")
    pair.wait_for(tmp_path / "killed" / f"checkpoint-{step}")
    delay = random.Random().uniform(0, 0.4)
    time.sleep(delay)
    for process in pair.processes:
        process.kill()
    assert pair.end() == [-signal.SIGKILL] * 2, f"the runs ended before they were killed, {delay:.3f} s late"
    assert Pair(tmp_path, layout, "killed").end() == [0, 0], pair.log.read_text()[-4000:]
    check_equal(tmp_path, "killed")
    phases = [log["phase"] for log in read_jsonl(tmp_path / "killed" / "metrics.jsonl")]
    if LAYOUTS[layout][2] is READING:  # logged at updates 3, 6, ..., 15 and at the last, 16
        assert phases == ["reading"] * 2 + ["own warmups"] * 4, phases
    inside = checkpoints.contents(checkpoints.newest(tmp_path / "killed"))
    sharding = layout.replace("zero", "zero-") if LAYOUTS[layout][1] else "none"
    assert (inside["processes"], inside["sharding"], inside["rows_per_update"]) == (2, sharding, 8)
    # a plain model, equal to the one that the engine held in shards
    auto = AutoModelForSeq2SeqLM if LAYOUTS[layout][0] == "scratch-t5" else AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "killed")
    answer = logits(plain, plain.config.is_encoder_decoder)
    assert torch.equal(answer, torch.load(tmp_path / "killed" / "logits.pt"))


def test_one_process_told_to_stop_stops_both_after_the_same_update(tmp_path, capsys):
    pair = Pair(tmp_path, "ddp", "alone", "told")
    pair.wait_for(tmp_path / "told" / "checkpoint-2")
    os.kill(pair.processes[1].pid, signal.SIGTERM)
    assert pair.end() == [EXIT_SIGNALLED] * 2, pair.log.read_text()[-4000:]
    assert f"Exit code {EXIT_SIGNALLED}" in pair.log.read_text()
    stopped = checkpoints.newest(tmp_path / "told")
    assert 2 < checkpoints.step_of(stopped) <= UPDATES
    assert Pair(tmp_path, "ddp", "told").end() == [0, 0], pair.log.read_text()[-4000:]
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "told" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    # one process goes on from what two have written, and says what is not the same any more
    alone = make_trainer(tmp_path / "told", "scratch-t5", per_device_train_batch_size=4, max_steps=UPDATES + 2)
    alone.train(resume_from_checkpoint="auto")
    assert alone.state.global_step == UPDATES + 2
    assert "written by 2 processes and is resumed by 1 process" in "".join(capsys.readouterr())
    smaller = make_trainer(tmp_path / "told", "scratch-t5", max_steps=UPDATES + 4)
    with pytest.raises(ValueError, match="updates of 8 rows, and now they would have 4"):
        smaller.train(resume_from_checkpoint="auto")

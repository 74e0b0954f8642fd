"""Two processes under every shipped layout train what one process trains, warmups of the policy's own inside the step.

Greedy warmups (a nucleus of one token) make the rows of a step independent of who draws them, so losses, gradient norms and
final weights have to be those of one process with the same global batch; an anchored proposal gives the policy a gradient.
The launches use the files of deepspeed_configs/. On a CPU `use_cpu` is set, the offloading files get an optimizer that needs no
compiler, and accelerate is made to shard where it would leave FSDP out (`worker.shard_on_cpu`).
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rl_warmup.cli.launch import launch_command
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.shipped import shipped

from .conftest import read_ranks, run_to_end, some_rows

pytestmark = pytest.mark.distributed

WORKER = Path(__file__).with_name("worker.py")
GREEDY = {"top_p": 1e-6, "proposals": ["reverse"], "readiness": -1000.0, "anchor_weight": 0.3}
# One update on samples of the starting model, then the policy's own, held by a KL to it that has something to hold by then.
READS = {"proposals": ["reference"], "anchor_weight": 0.0, "beta": 0.5, "reading_threshold": 0.0}
READS |= {"min_reading_updates": 1, "max_reading_updates": 2}
LORA = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
LOSS, GRADIENT, WEIGHT = 1e-5, 1e-4, 1e-5  # relative, relative, absolute; measured: 3e-7, 1e-6 and 2e-7

READING = ("t5 reading", "llama reading")
EQUAL = ("t5", "llama", "mt5", "llama accumulating", "t5 checkpointing", "llama checkpointing", "llama lora", *READING)
EQUAL += ("llama lora reading", "llama new lora reading")
OWN = ("t5 own", "llama own")
CASES = {  # ZeRO-3, where most can go wrong, trains everything
    "ddp": ("t5", "llama accumulating", "t5 checkpointing", "llama lora", *EQUAL[-2:], *READING, *OWN),
    "zero1": ("t5", "llama"),
    "zero2": ("t5", "mt5", "llama accumulating", "llama checkpointing", "llama lora", *READING, *OWN),
    "zero3": (*EQUAL, *OWN),
    "zero2_offload": ("t5",),
    "zero3_offload": ("llama",),
    "fsdp2": ("llama", "llama accumulating", "llama checkpointing", "llama lora", "llama reading", "llama own"),
    "zero3.json": ("t5",),  # torchrun, and `deepspeed: zero3.json` among the settings
}
STAGES = {"zero1": 1, "zero2": 2, "zero3": 3, "zero2_offload": 2, "zero3_offload": 3, "zero3.json": 3}
EQUAL_PAIRS = [(layout, case) for layout, names in CASES.items() for case in names if case in EQUAL]
TWICE = "llama own"  # trained a second time, to the same numbers
WITH_OWN = [layout for layout, names in CASES.items() if TWICE in names]


def cases(checkpoints: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Everything that is trained, by name."""
    equal: dict[str, dict[str, Any]] = {
        "t5": {"settings": {"max_grad_norm": 1.0}},  # below the gradients' size
        "llama": {},
        "mt5": {"settings": {"max_steps": 2}},
        "llama accumulating": {"settings": {"gradient_accumulation_steps": 2}},
        "t5 checkpointing": {"settings": {"gradient_checkpointing": True}},
        "llama checkpointing": {"settings": {"gradient_checkpointing": True}},
        "llama lora": {"lora": LORA},
        "t5 reading": {"settings": READS},
        "llama reading": {"settings": READS},
        "llama lora reading": {"lora": LORA, "settings": READS},  # the start is a copy, adapter and all
        "llama new lora reading": {"lora": LORA | {"init_lora_weights": True}, "settings": READS},  # it is switched off
    }
    rows = some_rows(12)
    out = {
        name: {
            "model": checkpoints[name.split()[0]],
            "rows": rows,
            **case,
            "settings": GREEDY | case.get("settings", {}),
        }
        for name, case in equal.items()
    }
    # Six rows are a batch and a half; the second process stops after one token, and one of its rewards never speaks.
    out["t5 own"] = {
        "model": checkpoints["t5"], "rows": some_rows(6), "settings": {"num_train_epochs": 2, "max_steps": -1, "proposals": []},
        "rewards": ["target_logprob", f"{WORKER}:silent_on_rank_1"], "on_rank_1": {"max_warmup_length": 1},
    }  # fmt: skip
    # The same prompt everywhere: what differs between processes is their random state.
    own = {"backward_samples": 1, "proposals": []}
    out["llama own"] = {"model": checkpoints["llama"], "rows": some_rows(1) * 8, "settings": own}
    return out


@pytest.fixture(scope="session")
def one_process(checkpoints, tmp_path_factory) -> Path:
    """The folder of the same cases on one process."""
    spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    folder = tmp_path_factory.mktemp("one-process")
    for name, case in cases(checkpoints).items():
        if name in EQUAL:
            worker.train_case(case, folder / name)
    return folder


@pytest.fixture(scope="session")
def launched(checkpoints, tmp_path_factory) -> Callable[[str], Path]:
    """Folder of all cases of a layout, trained by two processes. One launch per layout."""
    done: dict[str, Path] = {}

    def launch(layout: str) -> Path:
        if layout not in done:
            done[layout] = tmp_path_factory.mktemp(layout)
            wanted = {name: case for name, case in cases(checkpoints).items() if name in CASES[layout]}
            wanted |= {f"{name} again": case for name, case in wanted.items() if name == TWICE}
            command, environment = launcher(layout, done[layout])
            if layout.endswith(".json"):
                for case in wanted.values():
                    case["settings"] = case["settings"] | {"deepspeed": str(shipped("deepspeed_configs") / layout)}
            (done[layout] / "cases.json").write_text(json.dumps(wanted), encoding="utf-8")
            command += [str(WORKER), str(done[layout] / "cases.json"), str(done[layout])]
            _, output = run_to_end(command, 270, **environment)
            (done[layout] / "output.txt").write_text(output, encoding="utf-8")
        output = (done[layout] / "output.txt").read_text(encoding="utf-8")
        assert (done[layout] / list(CASES[layout])[-1] / "rank1.json").is_file(), output[-6000:]
        return done[layout]

    return launch


def launcher(layout: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The line that `rl-warmup train --launch` runs, up to the program, and what it sets before it."""
    if layout.endswith(".json"):
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], {}
    command, environment, _ = launch_command(["--launch", layout, "--num_processes", "2"])
    command = command[: command.index("-m", 3)]
    if "offload" in layout:
        without_compiler(command, folder)
    return command, environment


def without_compiler(command: list[str], folder: Path) -> None:
    """Have torch's AdamW in place of DeepSpeed's for CPUs, which takes more than a minute to compile."""
    at = command.index("--deepspeed_config_file") + 1
    settings = json.loads(Path(command[at]).read_text(encoding="utf-8"))
    (folder / "deepspeed.json").write_text(json.dumps({**settings, "zero_force_ds_cpu_optimizer": False}), "utf-8")
    command[at] = str(folder / "deepspeed.json")


@pytest.mark.parametrize("layout", CASES)
def test_what_ran_is_what_the_file_says(launched, layout):
    """Equal numbers alone would not tell ZeRO from plain data parallelism."""
    folder = launched(layout)
    for case in CASES[layout]:
        ranks = read_ranks(folder / case)
        assert [(rank["count"], rank["index"]) for rank in ranks] == [(2, 0), (2, 1)]
        if layout == "fsdp2":
            assert all("FSDPModule" in rank["classes"] for rank in ranks)
            for name, whole in (("optimizer_here", "trained"), ("parameters_here", "parameters")):
                assert all(rank[name] <= 0.51 * rank[whole] + 8 for rank in ranks)
            continue
        if layout not in STAGES:
            assert {rank["engine"] for rank in ranks} == {"DistributedDataParallel"}
            assert {rank["optimizer_here"] for rank in ranks} == {ranks[0]["trained"]}
            continue
        stage = STAGES[layout]
        assert {(rank["engine"], rank["stage"]) for rank in ranks} == {("DeepSpeedEngine", stage)}
        assert {rank["gradients_sharded"] for rank in ranks} == {stage >= 2}
        assert all(rank["optimizer_here"] <= 0.51 * rank["trained"] + 8 for rank in ranks)
        assert sum(rank["optimizer_here"] for rank in ranks) >= ranks[0]["trained"]
        if stage == 3:
            assert all(rank["parameters_here"] <= 0.51 * rank["parameters"] + 8 for rank in ranks)
            assert all(rank["released"] > 1 / 3 for rank in ranks)  # small tensors stay gathered; not all are small
        told = json.loads((folder / case / "environment.json").read_text(encoding="utf-8"))["processes"]
        assert told["zero_stage"] == stage
        assert told["optimizer_elements_here"] == ranks[0]["optimizer_here"]


@pytest.mark.parametrize(("layout", "case"), EQUAL_PAIRS)
def test_two_processes_equal_one(launched, one_process, layout, case):
    two, one = launched(layout) / case, one_process / case
    logs, expected = read_jsonl(two / "metrics.jsonl"), read_jsonl(one / "metrics.jsonl")
    assert len(logs) == len(expected) > 1
    assert logs[-1]["phase"] == "own warmups"
    for name, tolerance in (("loss", LOSS), ("target_logprob", LOSS), ("grad_norm", GRADIENT)):
        assert [log[name] for log in logs] == pytest.approx([log[name] for log in expected], rel=tolerance), name
    file = "adapter_model.safetensors" if "lora" in case else "model.safetensors"
    weights, wanted = load_file(two / file), load_file(one / file)
    assert set(wanted) <= set(weights)  # ZeRO-1, ZeRO-2 and FSDP2 store tied weights under each of their names
    worst = max((weights[name] - wanted[name]).abs().max().item() for name in wanted)
    assert worst < WEIGHT


def test_the_comparison_of_weights_can_fail(one_process, checkpoints):
    """Training moves weights a thousand times further than the tolerance."""
    before, after = (
        load_file(Path(checkpoints["llama"], "model.safetensors")),
        load_file(one_process / "llama" / "model.safetensors"),
    )
    assert max((after[name] - before[name]).abs().max().item() for name in before) > 1000 * WEIGHT


def test_a_head_of_its_own_stays_its_own(launched, one_process, checkpoints):
    """ZeRO-3 would tie the head of an mT5 to its embeddings while loading, and train on at a loss that is twice too high."""
    stored = load_file(Path(checkpoints["mt5"], "model.safetensors"))
    assert not stored["lm_head.weight"].equal(stored["shared.weight"])
    assert [rank["tied"] for rank in read_ranks(launched("zero3") / "mt5")] == [False, False]
    assert [rank["tied"] for rank in read_ranks(launched("zero3") / "t5")] == [True, True]
    saved = load_file(launched("zero3") / "mt5" / "model.safetensors")
    assert (saved["lm_head.weight"] - stored["lm_head.weight"]).abs().max() < 0.1
    assert (saved["lm_head.weight"] - saved["shared.weight"]).abs().max() > 1


@pytest.mark.parametrize("layout", WITH_OWN)
def test_own_warmups_are_reproducible_and_differ_between_processes(launched, layout):
    """One and the same prompt everywhere: the same processes draw the same warmups again, different ones beside each other."""
    folder = launched(layout)
    assert read_jsonl(folder / TWICE / "metrics.jsonl") == read_jsonl(folder / f"{TWICE} again" / "metrics.jsonl")
    first, again = ([rank["warmups"] for rank in read_ranks(folder / name)] for name in (TWICE, f"{TWICE} again"))
    assert first == again
    assert all(one != other for one, other in zip(*first, strict=True))


@pytest.mark.parametrize("layout", ["ddp", "zero2", "zero3"])
def test_uneven_processes_do_not_wait_for_each_other(launched, layout):
    """A ragged last batch, warmups of another length, a reward that never speaks: same number of updates, every row read."""
    ranks = read_ranks(launched(layout) / "t5 own")
    lengths = [[max(map(len, update)) for update in rank["warmups"]] for rank in ranks]
    assert lengths[1] == [1] * 4
    assert max(lengths[0]) == 4
    assert [rank["updates"] for rank in ranks] == [4, 4]  # two epochs of six rows, four at a time
    epochs = [[i for rank in ranks for update in rank["ids"][at : at + 2] for i in update] for at in (0, 2)]
    assert all(sorted(set(epoch)) == [str(i) for i in range(6)] for epoch in epochs)
    spoken = [log["rewards/silent_on_rank_1/mean"] for log in read_jsonl(launched(layout) / "t5 own" / "metrics.jsonl")]
    assert all(
        8 < mean <= 15 for mean in spoken
    )  # characters of the first process's two to four words, nobody else's zeros

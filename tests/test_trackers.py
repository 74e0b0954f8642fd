"""Tables of warmups and the final figures reach TensorBoard, wandb and trackio where a run reports to them, and nobody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from rl_warmup import WarmupConfig, WarmupTrainer
from rl_warmup.cli.main import main
from rl_warmup.config import build_recipe
from rl_warmup.models.loading import load_model
from rl_warmup.runtime.documents import read_jsonl
from rl_warmup.runtime.trackers import TABLE

ROWS = [{"prompt": f"a b w{i}", "target": f"w{i} b"} for i in range(4)]
SIZE = {"width": 16, "layers": 1, "heads": 2, "tokenizer": "words"}
COLUMNS = ["step", "prompt", "target", "warmup", "reward", "target_logprob", "posterior"]


class Stub(ModuleType):
    """A tracker's package as transformers' callbacks use it, which keeps what is logged, by the run that was open."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.logged: list[tuple[Any, dict[str, Any]]] = []
        self.config: Any = Config()
        self.run: Any = None
        self.made = 0
        current = SimpleNamespace(get=lambda: self.run)
        self.context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None), current_run=current)
        self.Table = lambda dataframe: dataframe

    def init(self, name: str | None = None, **kwargs: Any) -> None:
        self.made += name is None
        self.run = SimpleNamespace(id="1", name=name or f"run-{self.made}", summary={}, _label=lambda code: None)

    def log(self, values: dict[str, Any]) -> None:
        assert self.run is not None, "init comes first, as in trackio"
        self.logged.append((self.run.name, values))

    def finish(self) -> None:
        self.run = None

    def define_metric(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


class Config(dict):
    def update(self, values: Any, allow_val_change: bool = False) -> None:
        super().update(values)


@pytest.fixture(params=["wandb", "trackio"])
def stub(request, monkeypatch) -> Stub:
    made = Stub(request.param)
    monkeypatch.setitem(sys.modules, request.param, made)
    faults = ModuleType("wandb.sdk.lib.config_util")
    faults.ConfigError = KeyError
    monkeypatch.setitem(sys.modules, faults.__name__, faults)
    # the package takes a name from its module when it is first asked: patched second, it would keep the patch for good
    for place in ("transformers.integrations", "transformers.integrations.integration_utils"):
        monkeypatch.setattr(f"{place}.is_{request.param}_available", lambda: True)
    return made


def trainer_of(folder: Path, **changes: Any) -> WarmupTrainer:
    model, tokenizer = load_model("scratch-t5", lambda: [text for row in ROWS for text in row.values()], SIZE)
    config = WarmupConfig(
        output_dir=str(folder), max_steps=2, num_warmups=2, max_warmup_length=3, use_cpu=True, disable_tqdm=True,
        save_strategy="no", logging_steps=1, per_device_train_batch_size=2, max_target_length=4,
        **{key: value for key, value in changes.items() if key != "reward_funcs"},
    )  # fmt: skip
    return WarmupTrainer(model, config, ROWS, processing_class=tokenizer, reward_funcs=changes.get("reward_funcs"))


def expected(folder: Path) -> list[list[Any]]:
    """The table's rows by warmups.jsonl."""
    return [
        [g["step"], g["prompt"], g["target"], w["warmup"], w["reward"], w["target_logprob"], w["posterior"]]
        for g in read_jsonl(folder / "warmups.jsonl") for w in g["warmups"]
    ]  # fmt: skip


def test_wandb_and_trackio_get_tables_and_final_figures_in_one_run(stub, tmp_path):
    trainer = trainer_of(tmp_path / "run", report_to=[stub.__name__], log_warmups=2)
    trainer.train()
    trainer.save_model()
    result = trainer.evaluate_controls(ROWS, controls=["shuffled"])
    tables = [values for _, values in stub.logged if TABLE in values]
    assert [list(values[TABLE].columns) for values in tables] == [COLUMNS, COLUMNS]
    assert [values["train/global_step"] for values in tables] == [1, 2]
    found = [row for values in tables for row in values[TABLE].values.tolist()]
    assert found == expected(tmp_path / "run")
    assert len(found) == 2 * 2 * 2  # logs, prompts, warmups
    assert found[0][4] == found[0][5]  # without rewards of one's own the reward is log P(y|x,c)
    final = {k: v for _, values in stub.logged for k, v in values.items() if k.startswith("test/")}
    wanted = {f"test/{c}{'_' if c else ''}{name}": v for c, m in result["metrics"].items() for name, v in m.items()}
    assert final == wanted
    assert set(wanted) == {"test/exact_match", "test/shuffled_exact_match"}
    assert len({run for run, _ in stub.logged}) == 1
    assert "test" not in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")


def test_rewards_have_columns_of_their_own(stub, tmp_path):
    def first(completions, **kwargs):
        return [float(len(text)) for text in completions]

    def second(completions, **kwargs):
        return [1.0] * len(completions)

    trainer_of(tmp_path / "run", report_to=[stub.__name__], reward_funcs=[first, second]).train()
    table = next(values[TABLE] for _, values in stub.logged if TABLE in values)
    assert (table["reward"] == table["rewards/first"] + table["rewards/second"]).all()
    assert (table["rewards/second"] == 1).all()


def test_no_table_without_warmups_to_show(stub, tmp_path):
    trainer_of(tmp_path / "run", report_to=[stub.__name__], log_warmups=0).train()
    assert not [values for _, values in stub.logged if TABLE in values]
    assert stub.logged


def test_tensorboard_shows_tables_and_final_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "rows.jsonl").write_text("", encoding="utf-8")
    recipe = {
        "model_name_or_path": "scratch-t5", "scratch": SIZE, "task": "ledger", "use_cpu": True, "max_warmup_length": 3,
        "task_kwargs": {"length": 3, "modulus": 4, "train_size": 8, "validation_size": 2, "test_size": 4}, "max_steps": 2,
        "num_warmups": 2, "per_device_train_batch_size": 2, "report_to": ["tensorboard"], "logging_steps": 1,
        "save_strategy": "no", "show_progress": False, "output_dir": str(tmp_path / "run"), "max_target_length": 4,
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["train", "--config", str(tmp_path / "r.yaml")]) == 0
    (folder,) = {path.parent for path in (tmp_path / "run").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{TABLE}/text_summary")]
    lines = texts[-1].split("\n")
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == COLUMNS
    last = [row for row in expected(tmp_path / "run") if row[0] == 2]
    assert [line.split(" | ")[3] for line in lines[2:]] == [row[3] for row in last]
    result = yaml.safe_load((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    for control, values in result["metrics"].items():
        for name, value in values.items():
            (scalar,) = events.Scalars(f"test/{control}{'_' if control else ''}{name}")
            assert (scalar.step, scalar.value) == (2, pytest.approx(value))
    assert main(["train", "--config", str(tmp_path / "r.yaml"), "--overwrite"]) == 0  # its files are the run's own


def test_a_cell_cannot_leave_its_table():
    from rl_warmup.runtime.trackers import _markdown

    assert _markdown([{"a": "x|y\nz", "b": 0.123456}]).split("\n")[2] == "| x\\|y<br>z | 0.1235 |"


def test_log_completions_is_another_name_of_log_warmups(tmp_path):
    base = {"model_name_or_path": "scratch-t5", "use_cpu": True, "output_dir": str(tmp_path / "x")}
    for asked, kept in [(True, 3), (False, 0)]:
        recipe = build_recipe({**base, "log_completions": asked})
        assert recipe.config.log_warmups == kept
        assert "log_completions" not in recipe.resolved()
        assert WarmupConfig(output_dir=str(tmp_path / "x"), log_completions=asked).log_warmups == kept
    for given in ({"log_completions": True, "log_warmups": 2}, {"log_completions": 5}):
        with pytest.raises(ValueError, match="log_warmups"):
            build_recipe({**base, **given})
        with pytest.raises(ValueError, match="log_warmups"):
            WarmupConfig(output_dir=str(tmp_path / "x"), **given)


def test_nothing_is_imported_unless_asked_for():
    code = (
        "import sys; import rl_warmup.trainer; "
        "sys.exit(any(n in sys.modules for n in ('wandb', 'trackio', 'tensorboard')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

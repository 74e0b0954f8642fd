import subprocess
import sys
from pathlib import Path

import pytest

from rl_warmup.tasks import TASKS, Task, load_task

ROOT = Path(__file__).parents[2]


def tiny(size: int) -> Task:
    rows = [{"id": str(i), "prompt": f"p{i}", "target": "y"} for i in range(size)]
    return Task("tiny", {"train": rows, "validation": [], "test": []}, ("exact_match",))


def own_module(tmp_path, monkeypatch, text):
    (tmp_path / "own_tasks.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_tasks", raising=False)


def test_every_embedded_task_loads_by_name():
    sizes = {"train_size": 4, "validation_size": 3, "test_size": 2}
    for name in TASKS:
        if name not in ("file", "hub", "reasoning_gym"):
            task = load_task(name, **sizes)
            assert [len(task.splits[split]) for split in ("train", "validation", "test")] == [4, 3, 2]


def test_unknown_task_names_the_nearest_and_all():
    with pytest.raises(
        ValueError, match=r"There is no task 'leger'. Did you mean 'ledger'\? Known are ledger"
    ) as error:
        load_task("leger")
    assert all(name in str(error.value) for name in (*TASKS, "package.module:function"))


def test_unknown_and_missing_arguments_are_named():
    with pytest.raises(ValueError, match=r"'ledger' has no argument 'lenght'.*did you mean 'length'") as error:
        load_task("ledger", lenght=3)
    assert "allowed: length, modulus, train_size" in str(error.value)
    with pytest.raises(ValueError, match="'hub' needs dataset_name"):
        load_task("hub")


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    text = "from rl_warmup.tasks import Task\n"
    text += "def two(word):\n    rows = [{'id': '0', 'prompt': word, 'target': 'y'}]\n"
    text += "    return Task('two', {'train': rows, 'validation': [], 'test': []}, ('exact_match',))\n"
    text += "def three():\n    return 3\n"
    text += "def torn():\n    raise KeyError('gone')\n"
    text += "def far():\n    raise ValueError('no')\n"
    own_module(tmp_path, monkeypatch, text)
    assert load_task("own_tasks:two", word="hello").splits["train"][0]["prompt"] == "hello"
    with pytest.raises(ValueError, match="The task 'own_tasks:three' returned int 3; return an rl_warmup.tasks.Task"):
        load_task("own_tasks:three")
    with pytest.raises(ValueError, match=r"The task 'own_tasks:tow': own_tasks has no 'tow'. Did you mean 'two'"):
        load_task("own_tasks:tow")
    with pytest.raises(ValueError, match="The task 'own_tasks:torn' failed with KeyError: 'gone'"):
        load_task("own_tasks:torn")
    with pytest.raises(ValueError, match="The task 'own_tasks:far' failed with ValueError: no"):
        load_task("own_tasks:far")
    with pytest.raises(ValueError, match="The task 'math:pi' is 3.14.*, which cannot be called"):
        load_task("math:pi")
    with pytest.raises(ValueError, match="needs word"):
        load_task("own_tasks:two")


def test_a_missing_module_is_told_from_a_broken_one(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="module 'not_there.at_all' cannot be imported .*No module named 'not_there'"):
        load_task("not_there.at_all:f")
    own_module(tmp_path, monkeypatch, "import surely_not_installed\n")
    with pytest.raises(
        ValueError, match="module 'own_tasks' cannot be imported .*No module named 'surely_not_installed'"
    ):
        load_task("own_tasks:f")


def test_importing_tasks_and_metrics_imports_no_heavy_library():
    heavy = "{'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'sacrebleu', 'nltk'}"
    code = f"import sys, rl_warmup.tasks, rl_warmup.metrics; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_missing_extra_is_one_sentence(monkeypatch):
    from rl_warmup.metrics import signatures
    from rl_warmup.rewards import load_reward

    for module in ("reasoning_gym", "reasoning_gym.factory"):
        monkeypatch.setitem(sys.modules, module, None)
    words = r"needs the package reasoning-gym .*; pip install 'rl_warmup\[reasoning_gym\]'$"
    with pytest.raises(ImportError, match="task 'reasoning_gym' " + words):
        load_task("reasoning_gym", name="leg_counting")
    with pytest.raises(ImportError, match="reasoning_gym_score " + words):
        signatures(["reasoning_gym_score"])
    with pytest.raises(ValueError, match="The reward 'reasoning_gym_score' cannot be made .*" + words):
        load_reward("reasoning_gym_score")


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("file", {"train": "rows.jsonl", "train_size": True}), ("file", {"train": "rows.jsonl", "train_size": "five"}),
        ("file", {"path": "rows.jsonl", "test_fraction": float("nan")}), ("file", {"train": "rows.jsonl", "stream": "no"}),
        ("file", {"train": 5}), ("ledger", {"length": "8"}),
    ],
)  # fmt: skip
def test_arguments_have_the_types_that_a_task_declares(name, kwargs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "target": "b"}\n' * 9)
    with pytest.raises(ValueError, match=f"^(task )?'?{name}'?: .*{list(kwargs.values())[-1]!r}.*give"):
        load_task(name, **kwargs)


def test_arguments_may_be_all_that_their_documentation_names(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "target": "b"}\n')
    spec = {"name": "chrf++", "kwargs": {"lowercase": True}}
    assert load_task("file", train=rows, metrics=["bleu", spec]).metrics == ("bleu", spec)
    assert len(load_task("multiple_choice", families="order", train_size=2).splits["train"]) == 2
    pytest.importorskip("datasets")
    kwargs = {"dataset_name": "json", "validation": None, "test": None, "cache_dir": tmp_path / "cache"}
    for files in (str(rows), [str(rows)], {"train": str(rows)}):
        task = load_task("hub", **kwargs, data_files=files, metrics=[spec])
        assert (len(task.splits["train"]), task.metrics) == (1, (spec,))

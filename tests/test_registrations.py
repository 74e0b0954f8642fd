"""An objective, a proposal and a metric each have one registration: a copy of the package gets one more, by one file each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "rl_warmup"
ADDED = {
    "method/objectives.py": '''

@objective(needs_two=True, reads=("tau",))
def plain(rewards: Tensor, warmup_logprobs: Tensor, settings: ObjectiveSettings) -> Weights:
    """Every warmup alike."""
    return torch.zeros_like(rewards), torch.full_like(rewards, settings.tau / rewards.size(1))
''',
    "method/proposals.py": '''

@proposal("twice")
def twice_said(words: list[Word], context: ProposalContext) -> list[Word]:
    """The target's words, each of them twice."""
    return [word for word in words for _ in range(2)]
''',
    "metrics/lengths.py": '''"""Knows how long predictions are."""

from rl_warmup.metrics.registry import metric


@metric("letters", higher_is_better=False)
def letters(predictions, targets, rows=None, *, times=1):
    """Letters of each prediction."""
    return [times * len(text) for text in predictions]
''',
}
LOOKS = """
import sys
from rl_warmup.cli.train import command
assert "torch" not in sys.modules
try:
    command(["--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules
from rl_warmup.config import WarmupConfig, void_note, without_effect
from rl_warmup.method.objectives import NEEDS_TWO, load_objective
from rl_warmup.method.proposals import ProposalContext, propose
from rl_warmup.experiments.compare import better
from rl_warmup.metrics import compute
config = WarmupConfig(
    output_dir="run", use_cpu=True, objective="plain", proposals=["twice"], target_ess=2, tsallis_q=0.3, num_warmups=3
)
assert without_effect(config) == {"tsallis_q": "the objective is plain"}, without_effect(config)
for fault in ({"num_warmups": 1}, {"objective": "plane"}, {"proposals": ["twicee"]}):
    try:
        WarmupConfig(**{"output_dir": "run", "use_cpu": True, "objective": "plain", **fault})
    except ValueError as error:
        print(error)
assert "plain" in NEEDS_TWO and load_objective("plain").__name__ == "plain"
print(propose("twice", {"target_ids": [7, 8], "word_lengths": [1, 1]}, ProposalContext(8)).ids)
print(compute({"name": "letters", "kwargs": {"times": 2}}, ["ab", "c"], ["x", "y"]), better("letters", 1.0))
"""


def test_each_is_added_in_one_file(tmp_path):
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / "rl_warmup" / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    for name, text in ADDED.items():
        with (tmp_path / "rl_warmup" / name).open("a", encoding="utf-8") as file:
            file.write(text)
    said = subprocess.run(
        [sys.executable, "-c", LOOKS], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": ""}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "tsallis, grpo, plain)" in " ".join(said.stdout.split())
    assert "the objective 'plain' compares warmups of a group" in said.stdout
    assert "Did you mean 'plain'?" in said.stdout
    assert "Did you mean 'twice'?" in said.stdout
    assert said.stdout.endswith("[7, 7, 8, 8]\n{'letters': 3.0} False\n")

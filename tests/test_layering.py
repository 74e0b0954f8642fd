"""The house of DESIGN.md: arrows only point down, files stay short, no lumber rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rl_warmup"
MAX_LINES, MAX_FUNCTION_LINES = 400, 60

# Room -> rooms of ours it may import, directly. A room that is not listed must be given its place here first.
ARROWS: dict[str, set[str]] = {
    "_trl": set(),
    "batch": set(),
    "options": set(),
    "schedule": set(),
    "search": set(),
    "orphans": set(),
    "ownership": set(),
    "guard": set(),
    "run_folder": set(),
    "cpu_matmul": set(),
    "plugins": set(),
    "checkpoints": set(),
    "interruptions": set(),
    "resumable": {"checkpoints", "interruptions", "ownership"},
    "sharing": set(),
    "starts": set(),
    "report": {"metrics", "ownership", "run_folder"},
    "recipe_file": set(),
    "tasks": {"plugins"},
    "metrics": {"plugins"},
    "settings": set(),
    "values": {"recipe_file", "settings"},
    "config": {"_trl", "launched", "options", "plugins", "recipe_file", "settings", "values"},
    "launched": {"_trl", "layouts"},
    "plan": {"options", "settings", "starts", "tasks", "values"},
    "objectives": {"batch", "plugins"},
    "layouts": {"batch", "objectives", "settings", "sharing", "starts"},
    "proposals": {"batch", "plugins"},
    "rewards": {"batch", "layouts", "metrics", "plugins"},
    "diagnostics": {"batch", "objectives"},
    "training_data": {"checkpoints", "layouts", "proposals", "warmup_files"},
    "warmup_files": {"batch", "proposals", "tasks"},
    "drawing": {"batch", "layouts", "sharing"},
    "samples": {"batch", "drawing", "layouts", "options", "ownership", "sharing", "tasks", "warmup_files"},
    "generation": {"batch", "layouts", "sharing"},
    "reference": {"_trl", "batch", "drawing", "layouts", "sharing"},
    "hold": {
        "batch", "drawing", "layouts", "plugins", "proposals", "reference", "resumable", "rollout", "run_folder", "schedule",
        "training_data",
    },
    "rollout": {"batch", "layouts", "objectives", "options", "proposals", "rewards"},
    "trainer": {
        "_trl", "batch", "config", "cpu_matmul", "diagnostics", "guard", "hold", "launched", "layouts", "objectives",
        "plugins", "proposals", "rewards", "rollout", "run_folder", "schedule", "search", "training_data", "validation",
        "warmup_files",
    },
    "validation": {
        "batch", "diagnostics", "generation", "hold", "launched", "layouts", "likelihood", "run_folder", "sharing",
        "training_data",
    },
    "likelihood": {"batch", "diagnostics", "generation", "layouts", "objectives", "sharing"},
    "evaluation": {"generation", "layouts", "likelihood", "metrics", "run_folder", "sharing", "tasks"},
    "scorecard": {"batch", "generation", "layouts", "rewards", "rollout", "tasks"},
    "rehearsal": {"evaluation", "generation", "layouts", "metrics", "run_folder", "sharing", "tasks"},
    "run": {
        "_trl", "checkpoints", "config", "evaluation", "generation", "launched", "layouts", "metrics", "ownership", "recipe_file",
        "rehearsal", "run_folder", "tasks", "trainer",
    },
    "demo": {"config", "demo_words", "orphans", "ownership", "report", "run", "run_folder", "tasks"},
    "demo_words": set(),
    "sweeps": {"config", "metrics", "orphans", "ownership", "plan", "recipe_file", "report", "run_folder", "tasks"},
    "cli": {
        "config", "demo", "evaluation", "generation", "options", "orphans", "ownership", "plan", "recipe_file", "rehearsal",
        "report", "run",
        "run_folder", "samples", "scorecard", "sharing", "sweeps", "tasks",
    },
}  # fmt: skip
# What a room may take from outside the standard library, where DESIGN.md limits it.
OUTSIDE = {"batch": {"torch"}, "objectives": {"torch"}, "options": set(), "proposals": set()}
OUTSIDE |= {
    "cpu_matmul": {"torch", "transformers"},
    "plan": {"tokenizers"},
    "recipe_file": {"yaml"},
    "plugins": set(),
    "settings": set(),
    "values": set(),
}
NO_TORCH = ("options", "plan", "plugins", "recipe_file", "settings", "values", "starts", "tasks", "report")

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names a file imports, anywhere in it: inside functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: relative imports hide arrows"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    own = room(path)
    if own == "__init__":
        assert not any(name.startswith("rl_warmup") for name in imports(path)), "public names are imported lazily"
        return
    assert own in ARROWS, f"{own} is a new room: say in ARROWS (and DESIGN.md) what it may import"
    used = {name.split(".")[1] for name in imports(path) if name.startswith("rl_warmup.")} - {own}
    assert used <= ARROWS[own], f"{path.name} imports {sorted(used - ARROWS[own])}"
    others = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"rl_warmup"}
    if own in OUTSIDE:
        assert others <= OUTSIDE[own]
    if own in NO_TORCH:
        assert "torch" not in others
    assert "trl" not in others, "_trl.py is the only door to trl"


def test_there_is_no_circle():
    """Rooms can be put in an order in which each imports only earlier ones."""
    placed: set[str] = set()
    while len(placed) < len(ARROWS):
        ready = {name for name, below in ARROWS.items() if below <= placed} - placed
        assert ready, f"a circle among {sorted(set(ARROWS) - placed)}"
        placed |= ready


def test_nobody_imports_the_command_line():
    assert not [path for path in FILES if room(path) != "cli" and any("rl_warmup.cli" in n for n in imports(path))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_named_by_nouns(path):
    parts = path.relative_to(PACKAGE).parts
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert not [part for part in parts if part.startswith(("utils", "common", "helpers", "misc", "base_"))]


def test_long_functions_say_why():
    """No function over 60 lines, its docstring left out, without a comment in it."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                body = text.splitlines()[first.lineno - 1 : node.end_lineno]
                assert len(body) <= MAX_FUNCTION_LINES or any("#" in line for line in body), f"{path.name}: {node.name}"


def test_what_has_to_start_fast_loads_no_torch():
    """`rl-warmup --help` answers at once, and tasks run without torch."""
    names = ["rl_warmup", "rl_warmup.options", "rl_warmup.tasks"]
    names += [f"rl_warmup.cli.{path.stem}" for path in (PACKAGE / "cli").glob("*.py") if path.stem != "__init__"]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

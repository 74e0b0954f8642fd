"""The house of CONTRIBUTING.md: at most ten rooms, arrows only point down, files stay short, no lumber rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rl_warmup"
MAX_LINES, MAX_FUNCTION_LINES = 400, 60

# Room -> rooms of ours it may import. A room that is not listed must be given its place here first.
ARROWS: dict[str, set[str]] = {
    "batch": set(),
    "options": set(),
    "plugins": set(),
    "tasks": {"plugins", "runtime"},
    "metrics": {"plugins", "runtime"},
    "runtime": set(),
    "config": {"method", "options", "plugins", "runtime"},
    "models": {"batch", "runtime"},
    "engine": {"batch", "models", "runtime"},
    "rewards": {"batch", "engine", "metrics", "models", "plugins", "runtime"},
    "method": {"batch", "engine", "models", "options", "plugins", "runtime", "tasks"},
    "inference": {"batch", "engine", "method", "metrics", "models", "options", "plugins", "rewards", "runtime", "tasks"},
    "trainer": {
        "batch", "config", "engine", "inference", "method", "models", "plugins", "rewards", "runtime",
    },
    "experiments": {
        "batch", "config", "inference", "metrics", "models", "options", "plugins", "runtime", "tasks", "trainer",
    },
    "cli": {"config", "experiments", "inference", "options", "plugins", "runtime", "tasks"},
    "__main__": {"cli"},
}  # fmt: skip
# Modules that may import nothing of ours, or only a few modules, though their room may: what is read without torch, and what
# has to be understood alone.
ALONE: dict[str, set[str]] = {
    "method/objectives.py": {"plugins"},
    "method/losses.py": {"batch"},
    "method/proposals.py": {"batch", "plugins"},
    "method/schedule.py": set(),
    "method/guard.py": set(),
    "engine/fast/logprobs.py": set(),
}
# What a module may take from outside the standard library.
OUTSIDE = {
    "batch.py": {"torch"},
    "options.py": set(),
    "plugins.py": set(),
    "method/objectives.py": {"torch"},
    "method/losses.py": {"torch"},
    "engine/fast/logprobs.py": {"torch"},
    "method/proposals.py": set(),
    "runtime/documents.py": {"yaml"},
    "runtime/recipe_file.py": set(),
    "runtime/settings.py": set(),
    "runtime/values.py": set(),
}
NO_TORCH = (
    "options.py", "plugins.py", "runtime/documents.py", "runtime/recipe_file.py", "runtime/settings.py",
    "runtime/values.py", "models/starts/", "tasks/", "experiments/report/", "experiments/plan/",
)  # fmt: skip

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
    own, name = room(path), str(path.relative_to(PACKAGE))
    found = imports(path)
    used = {imported.split(".")[1] for imported in found if imported.startswith("rl_warmup.")}
    if own == "__init__":
        assert not used, "public names are imported lazily"
        return
    assert own in ARROWS, f"{own} is a new room: say in ARROWS what it may import"
    allowed = ALONE.get(name, ARROWS[own] | {own})
    assert used <= allowed, f"{name} imports {sorted(used - allowed)}"
    others = {imported.split(".")[0] for imported in found} - set(sys.stdlib_module_names) - {"rl_warmup"}
    assert others <= OUTSIDE.get(name, others)
    if name.startswith(NO_TORCH):
        assert "torch" not in others
    assert name == "runtime/compat.py" or "trl" not in others, "runtime/compat.py is the only door to trl"


def test_there_is_no_circle():
    """Rooms can be put in an order in which each imports only earlier ones."""
    placed: set[str] = set()
    while len(placed) < len(ARROWS):
        ready = {name for name, below in ARROWS.items() if below <= placed} - placed
        assert ready, f"a circle among {sorted(set(ARROWS) - placed)}"
        placed |= ready


def test_there_are_ten_rooms_at_most():
    rooms = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(rooms) <= 10


def test_nobody_imports_the_command_line():
    below = [path for path in FILES if room(path) not in ("cli", "__main__")]
    assert not [path for path in below if any("rl_warmup.cli" in name for name in imports(path))]


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

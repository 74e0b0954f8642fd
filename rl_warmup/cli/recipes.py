"""`rl-warmup recipes [NAME]`: the shipped recipes and sweep files with a line each, or the text of one of them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from rl_warmup.cli.main import OptionParser
from rl_warmup.runtime.shipped import find_recipe, recipes, shipped

EPILOG = """NAME stands for the file in `train --config NAME`, `sweep NAME`, `plan NAME` and `ceiling --config NAME`. For a
copy to change: rl-warmup recipes NAME > mine.yaml"""
WIDTH = 110  # of what is said of one file


def command(args: list[str]) -> None:
    """Print the list, or one file."""
    parser = OptionParser(prog="rl-warmup recipes", description=__doc__, epilog=EPILOG)
    parser.add_argument("name", nargs="?", metavar="NAME", help="print this file")
    name = parser.parse_args(args).name
    print(find_recipe(name).read_text(encoding="utf-8").rstrip() if name else listing())


def listing() -> str:
    """Every name with what its file is for, recipes before sweep files, and the folder where they lie."""
    known = recipes()
    said = {name: about(path) for name, path in known.items()}
    sweeps = {name for name, path in known.items() if _question(path.read_text(encoding="utf-8"))}
    width = max(map(len, known))
    lines = []
    for title, names in (
        ("recipes: rl-warmup train --config NAME", known.keys() - sweeps),
        ("sweep files: rl-warmup sweep NAME", sweeps),
    ):
        lines += [title, *(f"  {name:<{width}}  {said[name]}" for name in sorted(names)), ""]
    return "\n".join([*lines, f"The files: {shipped('recipes')}"])


def about(path: Path) -> str:
    """A sweep file's question; else the first sentence of the comment at its head."""
    text = path.read_text(encoding="utf-8")
    head = re.findall(r"\A(?:# .*\n)*", text)[0].replace("\n# ", " ").removeprefix("# ").strip()
    said = _question(text) or re.split(r"(?<=\.) (?=[A-Z`])", head)[0]
    return textwrap.shorten(said, WIDTH, placeholder=" ...")


def _question(text: str) -> str:
    found = re.search(r"^question: *(.+)$", text, re.MULTILINE)
    return found[1] if found else ""

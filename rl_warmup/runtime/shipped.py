"""Finds what is shipped beside the code: recipes and sweep files by name, the folder of launch files.

Knows: where they lie, in a clone and in an installed package. Must not know: what a recipe means.
"""

from __future__ import annotations

import difflib
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def shipped(folder: str) -> Path:
    """`recipes` or `deepspeed_configs`: inside the package where a wheel was installed, beside it in a clone.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    places = [PACKAGE / folder, PACKAGE.parent / folder]
    for place in places:
        if place.is_dir():
            return place
    raise FileNotFoundError(
        f"The folder {folder} is neither in {places[0].parent} nor in {places[1].parent}: the installation is incomplete. "
        f"Install rl_warmup again."
    )


def recipes() -> dict[str, Path]:
    """Every shipped recipe and sweep file by its name, `demo/ledger`, in the order of names."""
    folder = shipped("recipes")
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return dict(sorted(names.items()))


def find_recipe(given: str | Path, what: str = "recipe") -> Path:
    """The file that a path or the name of a shipped recipe means; a file at the path comes first.

    `recipes/demo/ledger.yaml`, as it is called in a clone, is the name `demo/ledger` elsewhere.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(given, str | Path):
        raise ValueError(
            f"The {what} is {given!r:.80}. Give the path of a YAML file, or a name that `rl-warmup recipes` lists."
        )
    path = Path(given)
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    known = {} if path.is_absolute() else recipes()
    if name in known:
        return known[name]
    if path.exists():
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise ValueError(f"The {what} {given} is {kind}. Give a YAML file, or a name that `rl-warmup recipes` lists.")
    near = difflib.get_close_matches(name, known, n=3)
    meant = f" Near names: {', '.join(near)}." if near else ""
    raise ValueError(
        f"The {what} {given} does not exist, and no shipped one is called {name!r}.{meant} `rl-warmup recipes` lists them."
    )

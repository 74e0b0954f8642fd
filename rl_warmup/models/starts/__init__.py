"""Knows the small pretrained models that ship in the package (docs/starts.md); must not know how one is loaded or trained.

Each is an ordinary Hugging Face folder beside this file, called `start:<name>` wherever a model is named.
"""

from pathlib import Path

HOME, PREFIX = Path(__file__).parent, "start:"


def names() -> list[str]:
    """The starts of this installation, in the order of the alphabet."""
    return sorted(path.parent.name for path in HOME.glob("*/config.json"))


def resolve(name: str) -> str:
    """The folder behind `start:<name>`; any other name as it is. Raises ValueError: for a start that does not exist."""
    if not name.startswith(PREFIX):
        return name
    start = name.removeprefix(PREFIX)
    if start not in names():
        known = ", ".join(PREFIX + one for one in names())
        raise ValueError(f"model_name_or_path: there is no start {start!r} in this package. Give one of {known}.")
    return str(HOME / start)

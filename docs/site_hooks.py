"""For mkdocs: what docs/ links to outside of docs/ is on the site too, below repository/, so that a link works in both places."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?P<to>[^)#\s:]+)(?P<rest>(?:#[^)\s]*)?\))")


def in_repository(uri: str) -> str:
    """The path of a page of the site in the repository."""
    return uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"


def site_place(path: str) -> str:
    """The place of a file of the repository on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"


def target(page: str, to: str) -> str:
    """The file that a page of the repository links to; of a folder its README."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), to))
    return f"{path}/README.md" if (ROOT / path).is_dir() else path


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the files outside of docs/ that pages link to, and those that these link to."""
    pages = [in_repository(file.src_uri) for file in files.documentation_pages() if file.src_uri.endswith(".md")]
    known = {in_repository(file.src_uri) for file in files}
    while pages:
        page = pages.pop()
        for found in LINK.finditer((ROOT / page).read_text(encoding="utf-8")):
            path = target(page, found["to"])
            if path not in known and (ROOT / path).is_file():
                known.add(path)
                files.append(File.generated(config, site_place(path), abs_src_path=str(ROOT / path)))
                pages += [path] if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are on the site."""
    here = in_repository(page.file.src_uri)
    folder = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        return f"]({posixpath.relpath(site_place(target(here, found['to'])), folder or '.')}{found['rest']}"

    return LINK.sub(moved, markdown)

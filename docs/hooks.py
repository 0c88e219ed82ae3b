"""
What `make docs` needs besides mkdocs: pages from outside of docs/, and links that leave docs/.

A page links to files of the repository as they lie there, so that its links work on GitHub. In the
site, pages from outside have a place of their own, and any other file is copied to ``source/`` as
text, a folder as the list of its files. What leads nowhere is left as it is: mkdocs warns about it,
which ends a strict build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/*/README.md"))
OUTSIDE = {
    "README.md": "overview.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{f"plugins/{name}/README.md": f"plugins/{name}.md" for name in PLUGINS},
}
"""Pages from outside of docs/: their path in the repository, and in the site."""

# A fenced block or a text in backticks, which are not looked at, or the target of a link.
_LINK = re.compile(
    r"^(?P<fence>```+).*?^(?P=fence)$|(?P<ticks>`+)[^`].*?(?P=ticks)|(?<=\]\()(?P<target>[^)\s]+)",
    re.DOTALL | re.MULTILINE,
)


def in_repository(page: str) -> str:
    """The path in the repository of the page ``page`` of the site."""
    for path, name in OUTSIDE.items():
        if name == page:
            return path
    return f"docs/{page}"


def in_site(target: str) -> str | None:
    """Where ``target``, a path in the repository, stands in the site; None when nowhere."""
    if target in OUTSIDE:
        return OUTSIDE[target]
    if target.startswith("..") or not (ROOT / target).exists():
        return None
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"source/{target}.txt"


def rewrite(markdown: str, page: str) -> tuple[str, dict[str, str]]:
    """
    The text of ``page`` with links as the site has them.

    Returns:
        The text, and which files it needs besides the pages: place in the site to path.
    """
    folder = posixpath.dirname(in_repository(page))
    needed: dict[str, str] = {}

    def moved(match: re.Match[str]) -> str:
        link = match["target"]
        if link is None or "://" in link or link.startswith(("#", "mailto:")):
            return match[0]
        path, hash_sign, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(folder, path))
        place = in_site(target)
        if place is None:
            return link
        if place.startswith("source/"):
            needed[place] = target
        return posixpath.relpath(place, posixpath.dirname(page) or ".") + hash_sign + anchor

    return _LINK.sub(moved, markdown), needed


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each plugin in the place of ``plugins/*``."""
    for section in config.nav or []:
        for pages in section.values() if isinstance(section, dict) else ():
            if "plugins/*" in pages:
                place = pages.index("plugins/*")
                pages[place : place + 1] = [f"plugins/{name}.md" for name in PLUGINS]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File  # noqa: PLC0415 - the tests have no mkdocs

    for path, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    from mkdocs.structure.files import File  # noqa: PLC0415 - the tests have no mkdocs

    text, needed = rewrite(markdown, page.file.src_uri)
    for place, path in needed.items():
        if files.get_file_from_path(place) is None:
            source = ROOT / path
            if source.is_dir():
                names = sorted(one.name for one in source.iterdir() if one.is_file())
                files.append(File.generated(config, place, content="\n".join(names)))
            else:
                files.append(File.generated(config, place, abs_src_path=str(source)))
    return text

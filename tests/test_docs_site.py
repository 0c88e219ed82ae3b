"""The site of ``make docs`` without building it: pages, links, and tables that follow the code."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
from pathlib import Path

import pytest
import yaml

import guard_agent

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
HOOKS = runpy.run_path(str(DOCS / "hooks.py"))
OUTSIDE = HOOKS["OUTSIDE"]
PAGES = sorted([path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")])
SITE = sorted([*PAGES, *OUTSIDE.values()])
GENERATED = runpy.run_path(str(DOCS / "generate.py"))["pages"]()


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, in which one value is a Python object."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
CONFIG = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def text_of(page: str) -> str:
    return (ROOT / HOOKS["in_repository"](page)).read_text(encoding="utf-8")


def listed(entry) -> list[str]:
    """The pages in a part of the navigation."""
    if isinstance(entry, dict):
        return [page for part in entry.values() for page in listed(part)]
    if isinstance(entry, list):
        return [page for part in entry for page in listed(part)]
    return [entry]


@pytest.mark.parametrize("name", GENERATED)
def test_a_page_of_the_reference_says_what_the_code_says(name):
    assert GENERATED[name] == (DOCS / "reference" / name).read_text(encoding="utf-8"), (
        "write it again: .venv/bin/python docs/generate.py"
    )


def test_every_page_is_in_the_navigation_once():
    pages = listed(CONFIG["nav"])
    place = pages.index("plugins/*")
    pages[place : place + 1] = [page for page in OUTSIDE.values() if page.startswith("plugins/")]

    assert sorted(pages) == SITE


def test_every_plugin_of_the_repository_has_a_page():
    folders = [path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")]

    assert len(folders) >= 5
    assert {f"plugins/{name}.md" for name in folders} <= set(SITE)


@pytest.mark.parametrize("page", SITE)
def test_links_lead_to_places_of_the_site(page):
    text, needed = HOOKS["rewrite"](text_of(page), page)
    folder = (DOCS / page).parent
    lost = []
    for match in HOOKS["_LINK"].finditer(text):
        link = match["target"]
        if link is None or "://" in link or link.startswith("#"):
            continue
        place = (folder / link.partition("#")[0]).resolve().relative_to(DOCS).as_posix()
        is_image = place.startswith("images/") and (DOCS / place).is_file()
        if not is_image and place not in {*SITE, *needed, "config.schema.json"}:
            lost.append(link)

    assert lost == []
    assert [path for path in needed.values() if not (ROOT / path).exists()] == []


def test_links_are_rewritten_where_they_leave_their_folder():
    rewrite = HOOKS["rewrite"]

    text, needed = rewrite(
        "[a](docs/start.md#next) [b](plugins/guard-agent-http/README.md) [c](#use-it) `[d](x.md)`",
        "overview.md",
    )
    assert text == "[a](start.md#next) [b](plugins/guard-agent-http.md) [c](#use-it) `[d](x.md)`"
    assert needed == {}

    text, needed = rewrite("[peer](../guard_agent/testing/peers.py)\n[no](gone.md)", "testing.md")
    assert text == "[peer](source/guard_agent/testing/peers.py.txt)\n[no](gone.md)"
    assert needed == {"source/guard_agent/testing/peers.py.txt": "guard_agent/testing/peers.py"}

    text, _ = rewrite("[up](../../README.md) [tests](tests)", "plugins/guard-agent-otlp.md")
    assert text == "[up](../overview.md) [tests](../source/plugins/guard-agent-otlp/tests.txt)"


def test_the_site_fetches_nothing_from_elsewhere_and_counts_nobody():
    assert CONFIG["theme"]["font"] is False
    assert CONFIG["extra"] == {"generator": False}
    assert not {"extra_javascript", "repo_url", "site_url"} & CONFIG.keys()
    assert CONFIG["extra_css"] == ["site.css"]
    assert "url(" not in (DOCS / "site.css").read_text(encoding="utf-8")
    assert [next(iter(p), p) if isinstance(p, dict) else p for p in CONFIG["plugins"]] == [
        "search",
        "mkdocstrings",
    ]


def test_a_warning_ends_the_build():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert "mkdocs build --quiet --strict" in makefile
    assert set(CONFIG["validation"]["links"].values()) == {"warn"}
    assert set(CONFIG["validation"]["nav"].values()) == {"warn"}


def test_the_tools_of_the_site_are_pinned():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (tools,) = re.findall(r"^DOCS_TOOLS := (.+)$", makefile, re.MULTILINE)
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")

    assert [name for name in tools.split() if f"\n{name}==" not in constraints] == []


def documented(page: str) -> list[str]:
    return re.findall(r"^::: (\S+)$", (DOCS / "reference" / page).read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", [*documented("interfaces.md"), *documented("api.md")])
def test_what_is_documented_is_there(name):
    try:
        found = importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        home = importlib.import_module(module)
        found = getattr(home, attribute)
        if not inspect.isclass(found) and not inspect.isfunction(found):
            # A constant or the name of a type: its text stands below it.
            assert re.search(rf'^{attribute}\b.* = .*\n"""', inspect.getsource(home), re.MULTILINE)
            return

    assert found.__doc__


def test_every_public_name_has_a_place():
    """As an entry, in the entry of its module, or with a table of its fields."""
    entries = {*documented("interfaces.md"), *documented("api.md")}
    models = (DOCS / "reference" / "models.md").read_text(encoding="utf-8")
    tables = {"AgentConfig", *re.findall(r"^## (\w+)$", models, re.MULTILINE)}
    homes = {name: guard_agent._HOME[name] for name in guard_agent.__all__ if name != "__version__"}

    without = [
        name
        for name, module in homes.items()
        if name not in tables and not entries & {module, f"{module}.{name}"}
    ]

    assert len(homes) > 60
    assert without == []

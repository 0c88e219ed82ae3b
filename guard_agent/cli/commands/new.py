"""``guard-agent new``: a package with a plugin that works, for its author to change."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from guard_agent import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.abc import Traversable

_PREFIX = "guard-agent-"
_LONGEST_NAME = 50
_CONTRACT_VERSION = 1
"""Of the suites that the templates are written for."""


@dataclass(frozen=True, slots=True)
class _Kind:
    base: str
    suffix: str
    description: str
    dependencies: tuple[str, ...] = ()


_AIOHTTP = "aiohttp>=3.13.5,<4"
_KINDS = {
    "transport": _Kind(
        "Transport", "Transport", "Transport of guard-agent that posts to a collector", (_AIOHTTP,)
    ),
    "store": _Kind("BufferStore", "Store", "Store of guard-agent that keeps records in a database"),
    "rules": _Kind(
        "RuleSource", "Rules", "Rule source of guard-agent that asks a URL", (_AIOHTTP,)
    ),
    "enricher": _Kind(
        "Enricher", "Enricher", "Enricher of guard-agent that adds a field to every record"
    ),
    "aggregator": _Kind(
        "Aggregator", "Aggregator", "Aggregator of guard-agent that counts identical events"
    ),
}


@click.command(name="new", short_help="Write a package with a plugin that works, to begin from.")
@click.argument("kind", type=click.Choice([*_KINDS]))
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder in which the package is made; else the present one.",
)
def command(kind: str, name: str, into: Path) -> None:
    """
    Write a package with a plugin that works, with its tests, to begin from.

    NAME is the word for it in a configuration, such as my-collector: the distribution is called
    guard-agent-my-collector and the module guard_agent_my_collector.
    """
    word = _word(name)
    folder = into / f"{_PREFIX}{word}"
    if folder.exists() or folder.is_symlink():
        msg = f"{folder} exists already, and nothing is overwritten: remove it, or choose --into"
        raise click.ClickException(msg)
    files = _files(kind, word)
    try:
        _write(folder, files)
    except OSError as error:
        msg = f"cannot write {folder}: {error.strerror or error}"
        raise click.ClickException(msg) from None
    click.echo(f"{folder} is ready, with a plugin that works:\n")
    for path in files:
        click.echo(f"  {path}")
    click.echo(
        f"\nNow type:\n\n  cd {folder}\n  python -m pip install -e '.[test]'\n  pytest\n"
        f"\nThen 'guard-agent plugins' lists {word}, and README.md says how to configure it."
    )


def _word(name: str) -> str:
    """The name as it stands in a configuration, of which all other names are made (PEP 503)."""
    word = re.sub(r"[-_.]+", "-", name.strip()).lower().removeprefix(_PREFIX)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", word) or len(word) > _LONGEST_NAME:
        msg = (
            f"{name!r} cannot name a package and a module: begin with a letter, go on with "
            f"letters, digits and single hyphens, {_LONGEST_NAME} characters at most"
        )
        raise click.BadParameter(msg, param_hint="NAME")
    from guard_agent.core.assembly.registry import Registry  # noqa: PLC0415 - keeps --help quick

    taken = [p for p in Registry.from_environment().providers if p.name == word]
    if taken:
        msg = f"a plugin {word!r} is installed already, by {taken[0].label}: choose another name"
        raise click.BadParameter(msg, param_hint="NAME")
    return word


def _files(kind: str, word: str) -> dict[str, str]:
    """Paths in the package and what stands there."""
    what = _KINDS[kind]
    stem = "".join(part.capitalize() for part in word.split("-"))
    major = int(__version__.partition(".")[0])
    core = f">={major}.0.0.dev0,<{major + 1}"
    dependencies = [f"guard-agent{core}", *what.dependencies]
    module = f"guard_agent_{word.replace('-', '_')}"
    here = resources.files("guard_agent.cli") / "templates"
    names = {
        "name": word,
        "distribution": f"{_PREFIX}{word}",
        "module": module,
        "field": word.replace("-", "_"),
        "stem": stem,
        "class": stem if stem.endswith(what.suffix) else f"{stem}{what.suffix}",
        "base": what.base,
        "kind": "rule source" if kind == "rules" else kind,
        "description": what.description,
        "core": core,
        "dependencies": ", ".join(f'"{one}"' for one in dependencies),
        "contract_version": str(_CONTRACT_VERSION),
    }
    own = here / kind
    parts = {
        "usage": _filled(own / "usage.toml.in", names).strip(),
        "settings": _filled(own / "settings.md.in", names).strip(),
    }
    return {
        "pyproject.toml": _filled(here / "pyproject.toml.in", names),
        "README.md": _filled(here / "README.md.in", {**names, **parts}),
        f"src/{module}/__init__.py": _filled(own / "plugin.py.in", names),
        f"src/{module}/py.typed": "",
        "tests/test_contract.py": _filled(own / "contract.py.in", names),
    }


def _filled(template: Traversable, names: Mapping[str, str]) -> str:
    text = template.read_text(encoding="utf-8")
    return re.sub(r"@([a-z_]+)@", lambda found: names[found[1]], text)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """All of it, or nothing: it is written beside its place and then renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = beside / folder.name
        for path, text in files.items():
            file = made / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        made.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)

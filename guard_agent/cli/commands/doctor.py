"""``guard-agent doctor``: is what is installed what should be, and will it work where it runs?"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import TYPE_CHECKING

import click

import guard_agent
from guard_agent import AgentConfig, GuardAgentError, __version__
from guard_agent.cli.output import Finding, json_option, show_findings
from guard_agent.cli.setup import Setup, setup_options
from guard_agent.core.assembly.environment import PREFIX, read_environment
from guard_agent.core.config import state_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MODULE = "guard_agent"
_OWNER = "guard-agent"
_ALIAS = "fastapi-guard-agent"
"""Carries no code since 4.0; before that it shipped the module itself."""
_FIRST_PARTY = (
    *("guard-agent-http", "guard-agent-redaction", "guard-agent-polling"),
    *("guard-agent-redis", "guard-agent-otlp", "guard-agent-collector"),
)
"""What has the version of the core, because it comes from the same repository."""
_MODULES_OF_3 = ("buffer.py", "transport.py", "utils.py", "encryption.py", "protocols.py")
_WORKER_VARIABLES = ("WEB_CONCURRENCY", "GUNICORN_CMD_ARGS", "UWSGI_PROCESSES")
_OLDEST_SQLITE = (3, 38)
"""From there on with the JSON functions that the store disk uses."""


@click.command()
@setup_options
@json_option
def command(setup: Setup, as_json: bool) -> None:
    """
    Look for what goes wrong around an agent.

    Who owns the module guard_agent, leftovers of other versions, where state goes, and how
    processes and event loops are run here. Ends with 1 when something is broken.
    """
    installed = tuple(found for found in distributions() if _name(found))
    findings = [
        *_python(),
        *_owners(installed),
        *_versions(installed),
        *_leftovers(),
        *_state(),
        *_environment(),
        *_processes(setup, {_name(found) for found in installed}),
    ]
    raise SystemExit(show_findings(findings, as_json=as_json))


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", f"{version}, {sys.executable}", {"version": version})
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        wanted = ".".join(map(str, _OLDEST_SQLITE))
        yield Finding(
            "sqlite",
            "note",
            f"SQLite is {sqlite3.sqlite_version}; the store 'disk' is tested with {wanted} and "
            "newer",
        )


# --- who owns the module --------------------------------------------------------------------------


def _owners(distributions: Sequence[Distribution]) -> Iterator[Finding]:
    here = Path(guard_agent.__file__).resolve().parent
    owners = {
        _label(distribution): _place(distribution)
        for distribution in distributions
        if _ships_module(distribution)
    }
    names = {label.partition(" ")[0] for label in owners}
    if not owners:
        yield Finding(
            "module",
            "failed",
            f"{_MODULE} is imported from {here}, and no installed distribution owns it: its "
            "plugins cannot be found; install it as README.md there says, or "
            "leave that folder",
        )
    elif len(owners) > 1 and names == {_OWNER}:
        yield Finding(
            "module",
            "failed",
            f"{_OWNER} is installed {len(owners)} times: {_listed(owners)}; run 'pip uninstall "
            f"{_OWNER}' until none is left, then install it again",
        )
    elif names - {_OWNER}:
        others = " and ".join(sorted(names - {_OWNER}))
        yield Finding(
            "module",
            "failed",
            f"{_MODULE} is shipped by {_listed(owners)}: their files overwrite each other; run "
            f"'pip uninstall {others} {_OWNER}', then install {_OWNER} again",
        )
    else:
        ((label, place),) = owners.items()
        if place is not None and here != place / _MODULE:
            yield Finding(
                "module",
                "failed",
                f"{label} is installed in {place}, but {_MODULE} is imported from {here}: "
                "something there hides it; rename it, or start elsewhere",
            )
        else:
            yield Finding("module", "ok", f"{_MODULE} belongs to {label}, in {here}")


def _ships_module(distribution: Distribution) -> bool:
    if _name(distribution) == _OWNER:
        return True
    record = distribution.read_text("RECORD")
    if record is not None and f"{_MODULE}/" not in record:
        return False  # which is so for nearly all, and quicker than to look at each file
    files = distribution.files or ()
    return any(file.parts[:1] == (_MODULE,) and file.suffix == ".py" for file in files)


def _place(distribution: Distribution) -> Path | None:
    """The folder in which it has the module; None when it does not say, as in a broken install."""
    with suppress(ValueError, KeyError, TypeError):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable"):
            return Path(origin["url"].removeprefix("file://")).resolve()
    for file in distribution.files or ():
        if file.parts == (_MODULE, "__init__.py"):
            return Path(str(file.locate())).resolve().parent.parent
    return None


# --- versions and leftovers -----------------------------------------------------------------------


def _versions(distributions: Sequence[Distribution]) -> Iterator[Finding]:
    found: dict[str, list[str]] = {}
    for distribution in distributions:
        found.setdefault(_name(distribution), []).append(distribution.version or "?")
    for name, versions in sorted(found.items()):
        old = [version for version in versions if _major(version) < _major(__version__)]
        if name == _ALIAS and old:
            yield Finding(
                "versions",
                "failed",
                f"{_ALIAS} {old[0]} is the former agent, and brings a module {_MODULE} of "
                f"its own; run 'pip uninstall {_ALIAS} {_OWNER}', then install {_OWNER} again",
            )
        elif name == _OWNER and versions[0] != __version__:
            yield Finding(
                "versions",
                "failed",
                f"{_OWNER} is installed as {versions[0]}, but its code is {__version__}: install "
                "it again",
            )
        elif name in _FIRST_PARTY and _major(versions[0]) != _major(__version__):
            yield Finding(
                "versions",
                "failed",
                f"{name} is {versions[0]}, and {_OWNER} is {__version__}: install both again, of "
                "one version",
            )
        elif name.startswith(_OWNER) and len(versions) > 1 and name != _OWNER:
            yield Finding(
                "versions",
                "note",
                f"{name} is on the path {len(versions)} times ({', '.join(versions)}); the first "
                "counts",
            )
    missing = [name for name in _FIRST_PARTY if name not in found]
    if missing:
        yield Finding(
            "versions",
            "note",
            f"not installed: {', '.join(missing)}; the defaults of the configuration need them",
        )
    agents = [
        f"{name} {found[name][0]}"
        for name in sorted(found)
        if name == _ALIAS or name.startswith(_OWNER)
    ]
    yield Finding("versions", "ok", ", ".join(agents) or "none installed")


def _leftovers() -> Iterator[Finding]:
    """Files that 3.x had beside the present ones: pip leaves what it does not know."""
    folder = Path(guard_agent.__file__).parent
    old = [name for name in _MODULES_OF_3 if (folder / name).is_file()]
    if old:
        yield Finding(
            "leftovers",
            "failed",
            f"{folder} still has {', '.join(old)} of guard-agent 3.x: uninstall {_OWNER} and "
            f"{_ALIAS}, delete the folder, and install {_OWNER} again",
        )


# --- where it runs --------------------------------------------------------------------------------


def _state() -> Iterator[Finding]:
    folder = state_directory()
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Finding(
            "state",
            "note",
            f"{folder} cannot be used ({error.strerror}): rules are not kept through a restart, "
            "and the store 'disk' does not open; set GUARD_AGENT_STATE_DIR",
        )
    else:
        yield Finding("state", "ok", f"{folder}" + ("" if folder.exists() else ", not made yet"))


def _environment() -> Iterator[Finding]:
    found = read_environment(AgentConfig)
    names = sorted(set(found.names.values()))
    if names:
        yield Finding("environment", "ok", f"settings come from {', '.join(names)}")
    for problem in found.problems:
        verdict = "failed" if problem.fatal else "note"
        text = f"{problem.code}: {problem.message}; fix: {problem.fix}"
        yield Finding("environment", verdict, text)  # type: ignore[arg-type]  # both are verdicts
    if not found.names and not found.problems:
        yield Finding("environment", "ok", f"no setting comes from a variable {PREFIX}...")


def _processes(setup: Setup, installed: set[str]) -> Iterator[Finding]:
    store = "memory"
    with suppress(GuardAgentError):
        store = setup.look()[0].store
    if store == "memory":
        servers = sorted(installed & {"uvicorn", "hypercorn", "tornado"})
        if servers:
            yield Finding(
                "loops",
                "note",
                f"{' and '.join(servers)} may end by a signal, without Python's exit handlers: "
                "what waits in memory is lost then; use a helper of guard_agent.integrations "
                "(docs/lifecycle.md) or a store that survives",
            )
        workers = [name for name in _WORKER_VARIABLES if os.environ.get(name)]
        if workers:
            yield Finding(
                "forks",
                "note",
                f"{' and '.join(workers)} say that there are several workers: each has a memory of "
                "its own, and none delivers what a killed one had; store = 'disk' is shared",
            )
    if "gevent" in installed:
        yield Finding(
            "loops",
            "note",
            "gevent is installed: where it is used, gevent.monkey.patch_all() comes before the "
            "first import of guard_agent",
        )
    if installed & {"uwsgi", "pyuwsgi"}:
        yield Finding(
            "forks",
            "note",
            "uWSGI is installed: it needs --enable-threads, or the agent's thread does not run",
        )
    if not hasattr(os, "register_at_fork"):
        yield Finding("forks", "ok", "there are no forks on this platform")
    elif sys.platform == "darwin":
        yield Finding(
            "forks",
            "note",
            "macOS: a process that is forked after the network was used may crash; start workers "
            "with 'spawn', or fork first",
        )
    else:
        yield Finding("forks", "ok", "a forked process starts an agent of its own")


def _label(distribution: Distribution) -> str:
    place = str(distribution.locate_file("")).rstrip("/.")
    return f"{_name(distribution)} {distribution.version} ({place})"


def _listed(owners: dict[str, Path | None]) -> str:
    return " and ".join(sorted(owners))


def _name(distribution: Distribution) -> str:
    """Empty for what an interrupted installation left."""
    name: object = None
    with suppress(OSError, TypeError, KeyError, AttributeError):
        name = distribution.metadata["Name"]
    return re.sub(r"[-_.]+", "-", name).lower() if isinstance(name, str) else ""


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else -1

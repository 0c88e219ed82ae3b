"""
Settings from environment variables: ``GUARD_AGENT_`` and the name of the setting.

``GUARD_AGENT_BUFFER_SIZE=200`` is ``buffer_size``. Two underscores lead into a section:
``GUARD_AGENT_PLUGINS__HTTP__DEADLINE=5``. Of the name of an instance only letters and digits count,
so that ``HTTP_EU`` means ``http/eu``. ``..__FILE`` names a file that holds the value. A list is
written with commas or as JSON, a section as JSON. Values are taken as they are: ``${env:NAME}`` is
for files.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

from guard_agent.core.assembly.filesyntax import SettingPath, read_text, unreadable
from guard_agent.core.assembly.problems import closest, did_you_mean
from guard_agent.core.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel

PREFIX = "GUARD_AGENT_"
RESERVED = frozenset({"CONFIG", "STATE_DIR", "DEBUG", "REDIS_SERVER"})
"""Variables that are no settings: where the file is, where state goes, debugging, tests."""

MAX_REFERENCED = 64 * 1024
"""Bytes of a file that a setting refers to."""
_SECTIONS = "plugins"
# What Kubernetes sets in every container for a service called guard-agent or guard-agent-...
_SERVICE_LINK = re.compile(
    r"(?:^|_)(?:SERVICE_HOST|SERVICE_PORT(?:_.+)?"
    r"|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)$"
)


@dataclass(slots=True)
class Variables:
    """The settings that the environment has."""

    data: dict[str, Any] = field(default_factory=dict)
    names: dict[SettingPath, str] = field(default_factory=dict)
    """Which variable a setting comes from."""
    problems: list[Problem] = field(default_factory=list)
    failed: set[SettingPath] = field(default_factory=set)
    """Settings for which a problem is reported already."""

    def place(self, setting: SettingPath) -> str | None:
        """Where a setting, or the section around it, comes from; None when not from here."""
        for length in range(len(setting), 0, -1):
            if name := self.names.get(setting[:length]):
                return f"environment variable {name}"
        return None

    def name_instances(self, instances: Iterable[str]) -> None:
        """Give the sections of plugins the names of the instances that they mean."""
        sections = self.data.get(_SECTIONS)
        if not isinstance(sections, dict):
            return
        meant: dict[str, list[str]] = {}
        for instance in dict.fromkeys(instances):
            meant.setdefault(_fold(instance), []).append(instance)
        for written in list(sections):
            path = (_SECTIONS, written)
            if path in self.names:
                continue  # said in JSON, letter by letter
            found = meant.get(_fold(written), [written.replace("_", "-")])
            if len(found) > 1:
                place = self.place(self._first_below(path))
                self.problems.append(
                    Problem(
                        "GA310",
                        f"{place}: can mean {' or '.join(map(repr, found))}",
                        "write the settings of these plugins into the configuration file",
                    )
                )
            self._rename(written, found[0])

    def _first_below(self, path: SettingPath) -> SettingPath:
        return next((known for known in self.names if known[: len(path)] == path), path)

    def _rename(self, written: str, instance: str) -> None:
        if written == instance:
            return
        sections = self.data[_SECTIONS]
        sections[instance] = _deep(sections.pop(written), sections.get(instance))
        for attribute in ("names", "failed"):
            renamed = {
                self._renamed(path, written, instance): path for path in getattr(self, attribute)
            }
            if attribute == "names":
                self.names = {new: self.names[old] for new, old in renamed.items()}
            else:
                self.failed = set(renamed)

    @staticmethod
    def _renamed(path: SettingPath, written: str, instance: str) -> SettingPath:
        return (_SECTIONS, instance, *path[2:]) if path[:2] == (_SECTIONS, written) else path


def read_environment(
    model: type[BaseModel], environment: Mapping[str, str] | None = None
) -> Variables:
    """
    What the environment says about the settings of ``model``.

    A variable that is close to the name of a setting was meant for us and is a problem; any other
    unknown one is noted only, because others may use the prefix as well.
    """
    found = Variables()
    variables = os.environ if environment is None else environment
    for name in sorted(variables):
        rest = name.removeprefix(PREFIX)
        if rest == name or rest in RESERVED:
            continue
        _read(model, found, name, tuple(rest.lower().split("__")), variables[name])
    return found


def _read(
    model: type[BaseModel], found: Variables, name: str, parts: SettingPath, value: str
) -> None:
    known = model.model_fields
    setting = parts[0]
    if setting not in known:
        _unknown(model, found, name, setting)
        return
    if not all(parts) or (setting == _SECTIONS and len(parts) == 2):
        _fail(found, "GA303", parts, name, "names no setting", "write PLUGINS__NAME__SETTING")
        return
    if len(parts) > 1 and setting != _SECTIONS and parts[1:] != ("file",):
        what = f"{setting} has no part {'.'.join(parts[1:])!r}"
        _fail(found, "GA303", parts, name, what, f"write {PREFIX}{setting.upper()}")
        return
    if parts[-1] == "file" and (len(parts) > 3 or (len(parts) == 2 and setting != _SECTIONS)):
        parts = parts[:-1]
        path = Path(value).expanduser()
        try:
            value = read_text(path, MAX_REFERENCED).strip()
        except (OSError, ValueError) as error:
            what = f"refers to the file {path}, which {unreadable(error)}"
            _fail(found, "GA306", parts, name, what, "correct the path, or the file")
            return
    if parts in found.names:
        what = f"says {'.'.join(parts)} as {found.names[parts]} does"
        _fail(found, "GA310", parts, name, what, "keep one of the two")
        return
    annotation = known[setting].annotation
    is_list = len(parts) == 1 and get_origin(annotation) is list
    is_json = len(parts) > 1 or get_origin(annotation) is dict
    try:
        typed = _typed(value, is_list=is_list, is_json=is_json)
    except ValueError:
        what = "is no JSON, which it looks like"
        _fail(found, "GA304", parts, name, what, "correct it; quotes in JSON are double")
        return
    _put(found, parts, typed, name)


def _typed(value: str, *, is_list: bool, is_json: bool) -> Any:
    text = value.strip()
    if text.startswith("[") and (is_list or is_json):
        return json.loads(text)
    if text.startswith("{") and is_json:
        return json.loads(text)
    if is_list:
        return [part.strip() for part in text.split(",") if part.strip()]
    return value


def _put(found: Variables, parts: SettingPath, value: Any, name: str) -> None:
    place = found.data
    for part in parts[:-1]:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            what = f"lies within {part!r}, which another variable sets to a single value"
            _fail(found, "GA310", parts, name, what, "keep one of the two")
            return
        place = inner
    place[parts[-1]] = _deep(value, place.get(parts[-1]))
    found.names[parts] = name
    if parts == (_SECTIONS,) and isinstance(value, dict):
        for instance in value:
            section = (*parts, instance)
            found.names[section] = name


def _unknown(model: type[BaseModel], found: Variables, name: str, setting: str) -> None:
    if _SERVICE_LINK.search(name.removeprefix(PREFIX)):
        return
    guess = closest(setting, model.model_fields)
    message = f"environment variable {name}: there is no setting {setting}"
    if guess is None:
        fix = "ignore this if it is meant for something else, or give that another name"
        found.problems.append(Problem("GA309", message, fix, fatal=False))
        return
    fix = f"write {PREFIX}{guess.upper()}, or remove the variable"
    message += did_you_mean(setting, model.model_fields)
    found.problems.append(Problem("GA303", message, fix))


def _fail(found: Variables, code: str, parts: SettingPath, name: str, what: str, fix: str) -> None:
    found.failed.add(parts)
    found.problems.append(Problem(code, f"environment variable {name}: {what}", fix))


def _deep(value: Any, beneath: Any) -> Any:
    """``value`` over ``beneath``, section by section."""
    if not (isinstance(value, dict) and isinstance(beneath, dict)):
        return value
    return {**beneath, **{key: _deep(item, beneath.get(key)) for key, item in value.items()}}


def _fold(instance: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", instance.lower())

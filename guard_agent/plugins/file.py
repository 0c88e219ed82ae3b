"""The rule source ``file``: dynamic rules from a JSON or YAML file."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, ClassVar

import orjson
import yaml
from pydantic import Field

from guard_agent import (
    FetchResult,
    PluginContext,
    PluginSettings,
    Retry,
    RuleSet,
    RuleSource,
    Unchanged,
    hookimpl,
)

_MAX_BYTES = 8 * 1024 * 1024
_MAX_YAML_BYTES = 1024 * 1024
_MAX_YAML_DEPTH = 16
_MAX_SIGNATURE = 1024


class FileSettings(PluginSettings):
    path: Path = Field(description="The file: JSON when its name ends in .json, else YAML")
    interval: float = Field(
        default=5.0, ge=0.1, le=86_400, description="Seconds between two looks at the file"
    )


class _UnusableError(Exception):
    """Why the file cannot be used now."""


class FileRules(RuleSource):
    """
    Reads rules from a file, again whenever its time, size or identity changes.

    The file has the fields of `guard_agent.DynamicRules`. While it is missing or broken the last
    good rules stay. Replace it by renaming; then it is never seen half written. It is read on the
    agent's event loop: at most 8 MiB of JSON or 1 MiB of YAML, which is slow to parse.

    When ``rules_signing_secret`` is set, the signature stands in a file beside it, with ``.sig``
    behind the name. Put that in its place first.
    """

    name = "file"
    Settings = FileSettings
    settings: FileSettings

    def __init__(self, settings: FileSettings, context: PluginContext) -> None:
        super().__init__(settings, context)
        self._path = settings.path.expanduser()

    @property
    def interval(self) -> float:
        return self.settings.interval

    async def fetch(self, known: str | None) -> FetchResult:
        is_json = self._path.suffix.lower() == ".json"
        try:
            signature = self._signature()
            content, validator = self._read(known, _MAX_BYTES if is_json else _MAX_YAML_BYTES)
            if content is None:
                return Unchanged()
            text = _decoded(content)
            document = _parse_json(text) if is_json else _parse_yaml(text)
        except FileNotFoundError:
            return Retry(f"the rule file {self._path} does not exist")
        except OSError as error:
            return Retry(f"cannot read the rule file {self._path}: {error.strerror or error}")
        except _UnusableError as error:
            return Retry(f"cannot use the rule file {self._path}: {error}")
        return RuleSet(document, validator, content=content, signature=signature)

    def _read(self, known: str | None, limit: int) -> tuple[bytes | None, str]:
        """Content and validator; no content when the validator is the known one."""
        with open(self._path, "rb", opener=_open_at_once) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise _UnusableError("it is not a regular file")
            validator = _validator(before)
            if validator == known:
                return None, validator
            content = file.read(limit + 1)
            after = os.fstat(file.fileno())
        if len(content) > limit:
            raise _UnusableError(
                f"it is larger than {limit // 1024} KiB; a large list loads faster as .json"
            )
        if _validator(after) != validator:
            raise _UnusableError("it changed while it was read; replace it by renaming")
        return content, validator

    def _signature(self) -> str | None:
        """What stands in the file beside; None when there is none, or it is not asked for."""
        if self.context.config.rules_signing_secret is None:
            return None
        try:
            path = self._path.with_name(f"{self._path.name}.sig")
            with open(path, "rb", opener=_open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    return None
                return file.read(_MAX_SIGNATURE).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe that nobody writes to would wait for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _validator(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"


# --- content --------------------------------------------------------------------------------------


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        msg = f"line {line}: it is not UTF-8: {error.reason}"
        raise _UnusableError(msg) from None


def _parse_json(text: str) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        msg = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise _UnusableError(msg) from None
    return _checked(document)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # chosen late
    """
    YAML with the plain values of version 1.2 (its core schema) and timestamps.

    Version 1.1, which PyYAML follows, reads the country NO as false and the address
    1:2:3:4:5:6:7:8 as a number.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", tuple("-+0123456789")),
    (
        "float",
        r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)",
        tuple("-+.0123456789"),
    ),
    (
        "timestamp",
        r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d:\d\d(\.\d*)?[ \t]*(Z|[-+]\d\d?(:\d\d)?)?)?",
        tuple("0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def _parse_yaml(text: str) -> dict[str, Any]:
    try:
        _check_structure(text)
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        msg = f"{where}{error.problem or error.context or 'not valid YAML'}"
        raise _UnusableError(msg) from None
    except yaml.YAMLError as error:
        # A control character: such an error has a position but no line.
        msg = " ".join(str(error).split())
        raise _UnusableError(msg) from None
    except ValueError as error:
        msg = f"a value is out of range: {error}"
        raise _UnusableError(msg) from None
    return _checked(document)


def _check_structure(text: str) -> None:
    """
    Refuse what is dangerous to load.

    The loader calls itself for each level, in C without a bound, so deep nesting would end the
    process. A few lines of aliases can stand for more values than memory holds.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            problem = f"more than {_MAX_YAML_DEPTH} levels" if depth > _MAX_YAML_DEPTH else None
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            problem = None
        else:
            problem = "aliases" if isinstance(event, yaml.AliasEvent) else None
        if problem:
            problem = f"{problem} are not supported here"
            mark: Any = event.start_mark  # typeshed: an error takes no mark of the C parser
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _checked(document: Any) -> dict[str, Any]:
    if document is None:
        raise _UnusableError("line 1: it is empty")
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise _UnusableError("line 1: it must be a mapping of rule names to values")
    return document


@hookimpl
def guard_agent_rule_sources() -> list[type[RuleSource]]:
    return [FileRules]

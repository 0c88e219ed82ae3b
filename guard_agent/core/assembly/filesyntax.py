"""
YAML and TOML as plain data, with the line on which each setting stands.

References in texts are not touched here; that is the business of `configfile`.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    import yaml

MAX_BYTES = 1024 * 1024
_MAX_VALUES = 10_000  # an alias is counted as often as it is used
_MAX_DEPTH = 32
_TABLE = ("tool", "guard-agent")
_MISSPELT = ("tool", "guard_agent")

SettingPath: TypeAlias = tuple[str, ...]


@dataclass(slots=True)
class Document:
    """The settings of one file, references unresolved."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[SettingPath, int] = field(default_factory=dict)

    def place(self, setting: SettingPath) -> str:
        """``file:line`` of a setting, or of the table around it, or the file."""
        for length in range(len(setting), 0, -1):
            if line := self.lines.get(setting[:length]):
                return f"{self.path}:{line}"
        return str(self.path)

    @property
    def folder(self) -> Path:
        """What the names of files in it are relative to."""
        return self.path.parent


class ParseError(ValueError):
    """The file is not well formed. Never quotes the file: it may hold secrets."""

    def __init__(self, what: str, fix: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.line = line


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """
    The text of a file.

    Raises:
        OSError: as the system says.
        ValueError: for a file that is larger than ``limit`` bytes, or not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        msg = f"is larger than {limit} bytes"
        raise ValueError(msg)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        msg = "is not UTF-8 text"
        raise ValueError(msg) from None


def unreadable(error: OSError | ValueError) -> str:
    """What `read_text` raised, in words that follow the name of the file."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or type(error).__name__}"
    return str(error)


def parse(text: str, path: Path) -> Document | None:
    """
    The settings in ``text``, or None for a TOML file without a table ``[tool.guard-agent]``.

    Raises:
        ParseError: when the text is not well formed.
    """
    try:
        return _parse_toml(text, path) if path.suffix == ".toml" else _parse_yaml(text, path)
    except RecursionError:
        raise _too_deep(None) from None


# --- YAML -----------------------------------------------------------------------------------------


def _parse_yaml(text: str, path: Path) -> Document:
    # Not needed by an agent that is configured in code, and slow to import.
    import yaml  # noqa: PLC0415 - only for a file in YAML

    document = Document(path)
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                data = _YamlReader(loader, document.lines).read(node, ())
                if data is not None and not isinstance(data, dict):
                    what = f"holds {type(data).__name__}, not settings"
                    raise ParseError(what, "write settings as 'name: value'", 1)
                document.data = data or {}
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None)
        fix = "correct the line, or the one above it; indent with spaces"
        if "${" in text:
            fix += "; within [ ] and { } put '${env:NAME}' into quotes"
        raise ParseError(
            f"is not valid YAML: {reason or type(error).__name__}",
            fix,
            mark.line + 1 if mark else None,
        ) from None
    return document


class _YamlReader:
    """
    As ``yaml.safe_load``, but notes lines, refuses duplicate keys, and does bounded work.

    Aliases and merge keys (``<<``) work, as long as what they expand to stays small.
    """

    def __init__(self, loader: yaml.SafeLoader, lines: dict[SettingPath, int]) -> None:
        self._loader = loader
        self._lines = lines
        self._left = _MAX_VALUES

    def read(self, node: yaml.Node, path: SettingPath) -> Any:
        line = node.start_mark.line + 1
        self._left -= 1
        if self._left < 0:
            what = f"holds more than {_MAX_VALUES} values, aliases expanded"
            raise ParseError(what, "make it smaller", line)
        if len(path) > _MAX_DEPTH:
            raise _too_deep(line)
        if node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if node.tag == "tag:yaml.org,2002:seq":
            items = []
            for number, item in enumerate(node.value):
                position = (*path, str(number))
                self._lines[position] = item.start_mark.line + 1
                items.append(self.read(item, position))
            return items
        if not isinstance(node.value, str):
            raise ParseError(f"has a value of the type {node.tag}", "use plain values", line)
        return self._scalar(node)

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            return self._loader.construct_object(node)
        except ValueError:  # such as a date of the 31st of February
            what = f"has a value that is no {node.tag.rpartition(':')[2]}"
            raise ParseError(what, "put it into quotes", node.start_mark.line + 1) from None

    def _mapping(self, node: yaml.Node, path: SettingPath) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for name, value in self._merged(value_node, path).items():
                    merged.setdefault(name, value)
                continue
            key = self._scalar(key_node) if isinstance(key_node.value, str) else None
            if not isinstance(key, str):
                raise ParseError("has a name that is no text", "put the name into quotes", line)
            if key in own:
                raise ParseError(f"says {key!r} twice", "keep one of the two", line)
            setting = (*path, key)
            self._lines[setting] = line
            own[key] = self.read(value_node, setting)
        return {**merged, **own}

    def _merged(self, node: yaml.Node, path: SettingPath) -> dict[str, Any]:
        sources = node.value if node.tag == "tag:yaml.org,2002:seq" else [node]
        result: dict[str, Any] = {}
        for source in sources:
            values = self.read(source, path)
            if not isinstance(values, dict):
                line = source.start_mark.line + 1
                raise ParseError("merges something that is no mapping", "correct '<<'", line)
            result = {**values, **result}
        return result


def _too_deep(line: int | None) -> ParseError:
    return ParseError("is nested too deeply", f"use at most {_MAX_DEPTH} levels", line)


# --- TOML -----------------------------------------------------------------------------------------

_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=")
_MAX_LINE = 1000  # in longer lines nobody looks for a name at the beginning


def _parse_toml(text: str, path: Path) -> Document | None:
    # The standard library has it from 3.11 on; before that the same code is a dependency. One
    # dynamic import, because a type checker only ever sees one of the two.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        data: Any = toml.loads(text)
    except toml.TOMLDecodeError as error:
        found = re.search(r"^(.*) \(at line (\d+), column \d+\)$", str(error), re.DOTALL)
        what, line = (found[1], int(found[2])) if found else (str(error), None)
        fix = "correct the line, or what begins above it and does not end"
        raise ParseError(f"is not valid TOML: {what}", fix, line) from None
    table = _lookup(data, _TABLE)
    lines = _toml_lines(text, data)
    if _lookup(data, _MISSPELT) is not None:
        what = "has a table [tool.guard_agent], which nothing reads"
        raise ParseError(what, "write [tool.guard-agent]", lines.get(_MISSPELT))
    if table is None:
        return None
    if not isinstance(table, dict):
        what = "'tool.guard-agent' is no table"
        raise ParseError(what, "write [tool.guard-agent]", lines.get(_TABLE))
    ours = {
        path[len(_TABLE) :]: line
        for path, line in lines.items()
        if path[: len(_TABLE)] == _TABLE and len(path) > len(_TABLE)
    }
    return Document(path, table, ours)


def _toml_lines(text: str, data: object) -> dict[SettingPath, int]:
    """Lines by a search for names; what looks like a name inside a text may mislead it."""
    lines: dict[SettingPath, int] = {}
    table: SettingPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > _MAX_LINE:
            continue
        if (found := _HEADER.match(line)) and _lookup(data, _names(found[1])) is not None:
            table = _names(found[1])
            lines.setdefault(table, number)
        elif found := _ASSIGNMENT.match(line):
            setting = (*table, *_names(found[1]))
            if _lookup(data, setting) is not None:
                lines.setdefault(setting, number)
    return lines


def _names(dotted: str) -> SettingPath:
    return tuple(name.strip("\"'") for name in re.findall(_NAME, dotted))


def _lookup(data: Any, path: SettingPath) -> Any:
    for name in path:
        if not isinstance(data, dict) or name not in data:
            return None
        data = data[name]
    return data

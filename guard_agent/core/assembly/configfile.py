"""
Reads the one configuration file and merges it with what the code says.

Code goes before the file, the file before the defaults. The file is the one given, else the one
``GUARD_AGENT_CONFIG`` names, else ``./guard-agent.yaml``, else ``./pyproject.toml`` if it has a
table ``[tool.guard-agent]``. It is parsed first; only then are references in its texts resolved, so
that nothing a reference brings in can change the structure:

- ``${env:NAME}`` and ``${env:NAME:-default}``, also within a longer text; ``$${`` is a plain ``${``
- a table with the single key ``file``: the content of that file, without space around it; the
  path is relative to the configuration file

A setting that the code overrides is not resolved at all. A setting that the code leaves at None is
left open.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from guard_agent.core.assembly.filesyntax import MAX_BYTES, Document, ParseError, SettingPath, parse
from guard_agent.core.assembly.problems import closest, describe_invalid, did_you_mean, listed
from guard_agent.core.config import AgentConfig
from guard_agent.core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

VARIABLE = "GUARD_AGENT_CONFIG"
YAML_NAME = "guard-agent.yaml"
TOML_NAME = "pyproject.toml"
_OUR_NAMES = {"guard-agent", "guard_agent", "tool"}  # where a YAML file needs no such level
_NAMES = {"enrichers", "store", "transports", "rules"}
_MAX_REFERENCED = 64 * 1024  # bytes of a file that a setting refers to
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def load_config(path: Path | None = None, **code: Any) -> AgentConfig:
    """
    The configuration of the file that is found, under the settings given in ``code``.

    Raises:
        ConfigurationError: naming file, line and setting of everything that is wrong.
    """
    file = find_file(path)
    return _merge(AgentConfig, None if file is None else _read_document(file), code)


def resolve(config: AgentConfig) -> AgentConfig:
    """
    ``config`` with what it leaves open taken from the configuration file, if there is one.

    Raises:
        ConfigurationError: naming file, line and setting of everything that is wrong.
    """
    file = find_file()
    if file is None:
        return config
    code = {name: getattr(config, name) for name in config.model_fields_set}
    return _merge(type(config), _read_document(file), code)


def find_file(path: Path | None = None) -> Path | None:
    """The configuration file that counts, or None. One that is named counts in any case."""
    if path is not None:
        return path
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    for candidate in (Path(YAML_NAME), Path(TOML_NAME)):
        if os.path.lexists(candidate) and (candidate.suffix != ".toml" or _has_table(candidate)):
            return candidate
    return None


def _has_table(pyproject: Path) -> bool:
    """
    Whether a ``pyproject.toml`` that happens to lie there has anything to do with us.

    One that does not mention us, or that we may not read, must not keep a program from running.
    """
    try:
        text = _read(pyproject, MAX_BYTES)
    except (OSError, ValueError):
        return False
    if "guard-agent" not in text and "guard_agent" not in text:
        return False
    try:
        return parse(text, pyproject) is not None
    except ParseError:
        return True  # it may well have: the reader says what is wrong with it


def _read_document(path: Path) -> Document:
    try:
        text = _read(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        named = os.environ.get(VARIABLE) == str(path)
        message = f"the configuration file {path} {_reason(error)}"
        fix = f"correct the environment variable {VARIABLE}" if named else "correct path or file"
        raise ConfigurationError([Problem("GA301", message, fix)]) from error
    try:
        document = parse(text, path)
    except ParseError as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        problem = Problem("GA302", f"{place}: {error.what}", error.fix)
        raise ConfigurationError([problem]) from error
    if document is None:
        message = f"{path}: has no table [tool.guard-agent]"
        raise ConfigurationError([Problem("GA302", message, "write the settings into that table")])
    return document


def _read(path: Path, limit: int) -> str:
    """
    The text of a file.

    Raises:
        OSError: as the system says.
        ValueError: for a file that is too large or not UTF-8.
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


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or type(error).__name__}"
    return str(error)


# --- merging --------------------------------------------------------------------------------------


def _merge(
    model: type[AgentConfig], document: Document | None, code: dict[str, Any]
) -> AgentConfig:
    code = {name: value for name, value in code.items() if value is not None}
    sections = _mapping(code.get("plugins"))
    merged: dict[str, Any] = {}
    problems: list[Problem] = []
    failed: set[SettingPath] = set()
    if document is not None:
        resolver = _Resolver(document)
        merged = resolver.resolve(_left_open(document.data, code, sections), ())
        problems, failed = resolver.problems, resolver.failed
    from_file = merged.get("plugins", {})
    merged |= code
    if isinstance(from_file, dict) and isinstance(code.get("plugins", {}), dict):
        merged["plugins"] = {
            **from_file,
            **{name: _over(section, from_file.get(name)) for name, section in sections.items()},
        }
    try:
        config = model.model_validate(merged)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False):
            setting = tuple(str(part) for part in detail["loc"])
            if setting not in failed:  # else its reference is the problem, and is reported
                problems.append(_invalid(model, setting, detail, document, code))
        raise ConfigurationError(problems) from None
    if problems:
        raise ConfigurationError(problems)
    if document is not None:
        config._origins = _origins(document, sections, code)  # noqa: SLF001 - set here only
    return config


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _over(section: Any, beneath: Any) -> Any:
    """One plugin's settings from code over those of the file, key by key."""
    if isinstance(section, dict) and isinstance(beneath, dict):
        return {**beneath, **section}
    return section


def _left_open(
    data: dict[str, Any], code: dict[str, Any], sections: dict[str, Any]
) -> dict[str, Any]:
    """What the file says and the code does not. An empty section has nothing to say."""
    left = {name: value for name, value in data.items() if name not in code}
    plugins = data.get("plugins", {})
    left["plugins"] = plugins if plugins is not None else {}
    if isinstance(plugins, dict):
        left["plugins"] = {
            name: {key: section[key] for key in section if key not in _mapping(sections.get(name))}
            if isinstance(section, dict)
            else ({} if section is None else section)
            for name, section in plugins.items()
        }
    return left


class _Resolver:
    """Replaces references in texts by what they refer to."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self.problems: list[Problem] = []
        self.failed: set[SettingPath] = set()

    def resolve(self, value: Any, path: SettingPath) -> Any:
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, list):
            return [self.resolve(item, (*path, str(n))) for n, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if set(value) == {"file"} and isinstance(value["file"], str) and not _is_section(path):
            return self._file(self._text(value["file"], path), path)
        resolved = {key: self.resolve(item, (*path, key)) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if (*path, key) not in self.failed}

    def _text(self, text: str, path: SettingPath) -> str:
        return _REFERENCE.sub(lambda found: self._variable(found, path), text)

    def _variable(self, found: re.Match[str], path: SettingPath) -> str:
        if found[0] == "$${":
            return "${"
        reference = _VARIABLE.fullmatch(found[1] or "")
        if reference is None:
            what = "contains a '${' that does not begin ${env:NAME}"
            fix = "write ${env:NAME} or ${env:NAME:-default}, or $${ for a plain ${"
            return self._fail("GA308", path, what, fix)
        name, default = reference.groups()
        value = os.environ.get(name)
        if default is not None:
            return value or default
        if value is None:
            what = f"refers to the environment variable {name}, which is not set"
            return self._fail("GA305", path, what, f"set {name}, or write ${{env:{name}:-default}}")
        return value

    def _file(self, name: str, path: SettingPath) -> str:
        if path in self.failed:
            return ""
        file = self._document.path.parent / Path(name).expanduser()
        try:
            return _read(file, _MAX_REFERENCED).strip()
        except (OSError, ValueError) as error:
            what = f"refers to the file {file}, which {_reason(error)}"
            return self._fail("GA306", path, what, "correct the path, or the file")

    def _fail(self, code: str, path: SettingPath, what: str, fix: str) -> str:
        self.failed.add(path)
        where = self._document.place(path)
        self.problems.append(Problem(code, f"{where}: {'.'.join(path)} {what}", fix))
        return ""


def _is_section(path: SettingPath) -> bool:
    """Whether a table stands here, whose single setting may well be called ``file``."""
    return not path or (path[0] == "plugins" and len(path) < 3)


def _origins(document: Document, sections: dict[str, Any], code: dict[str, Any]) -> dict[str, str]:
    origins = {
        ".".join(path): document.place(path)
        for path in document.lines
        if path[0] == "plugins" or path[0] not in code
    }
    # An empty place: the code says it, whatever the table around it says.
    for name, section in sections.items():
        for key in section if name in _mapping(document.data.get("plugins")) else [None]:
            origins[f"plugins.{name}" if key is None else f"plugins.{name}.{key}"] = ""
    return origins


def _invalid(
    model: type[AgentConfig],
    setting: SettingPath,
    detail: ErrorDetails,
    document: Document | None,
    code: dict[str, Any],
) -> Problem:
    name = ".".join(setting) or "the settings"
    if document is None or (setting and setting[0] in code and setting[:1] != ("plugins",)):
        where = "in code"
    else:
        # Sections are merged, so one of code can only be told by its absence in the file.
        is_ours = not setting or setting[0] not in code or setting in document.lines
        where = document.place(setting) if is_ours else "in code"
    known = model.model_fields
    if detail["type"] == "missing":
        place = document.path if document is not None else YAML_NAME
        message = f"{name} is required, but neither the code nor a configuration file sets it"
        return Problem("GA307", message, f"set it in {place}, or pass {name}=... in code")
    if detail["type"] == "extra_forbidden" and len(setting) == 1:
        message = f"{where}: there is no setting {name}{did_you_mean(name, known)}"
        if name in _OUR_NAMES:
            fix = "write the settings at the top of the file, without a level around them"
        elif isinstance(detail["input"], dict):
            fix = f"settings of a plugin go into its section: plugins.{name}"
        else:
            fix = f"write {closest(name, known) or 'one of ' + listed(known)}"
        return Problem("GA303", message, fix)
    field = known.get(setting[0]) if setting else None
    about = f": {field.description}" if field is not None and field.description else ""
    # Names of plugins are no secrets, and a message about them is of no use without them.
    what = describe_invalid(detail, hide=not setting or setting[0] not in _NAMES)
    return Problem("GA304", f"{where}: {name}: {what}", f"correct it{about}")

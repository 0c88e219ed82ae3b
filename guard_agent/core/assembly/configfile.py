"""
Reads the one configuration file and merges it with what the environment and the code say.

Code goes before the environment (`guard_agent.core.assembly.environment`), that before the file,
the file before the defaults. The file is the one given, else the one ``GUARD_AGENT_CONFIG`` names,
else ``./guard-agent.yaml``, else ``./pyproject.toml`` if it has a table ``[tool.guard-agent]``. It
is parsed first; only then are references in its texts resolved, so that nothing a reference brings
in can change the structure:

- ``${env:NAME}`` and ``${env:NAME:-default}``, also within a longer text; ``$${`` is a plain ``${``
- a table with the single key ``file``: the content of that file, without space around it; the
  path is relative to the configuration file

A setting that something above overrides is not resolved at all. A setting that the code leaves at
None is left open.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from guard_agent.core.assembly.environment import (
    MAX_REFERENCED,
    PREFIX,
    Variables,
    read_environment,
)
from guard_agent.core.assembly.filesyntax import (
    Document,
    ParseError,
    SettingPath,
    parse,
    read_text,
    unreadable,
)
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
_ALWAYS_THERE = "memory"  # the store that takes over when another one is not available
PLACEHOLDER = "placeholder-for-a-missing-key"
"""Stands for ``api_key`` in a `Reading` that has none."""
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_VARIABLE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read of a configuration, and what is wrong with the rest."""

    file: Path | None
    config: AgentConfig | None
    """
    Without the settings that are wrong, and with `PLACEHOLDER` for a missing key; None when the
    rest does not make sense. Only good for looking, when there are problems.
    """
    problems: tuple[Problem, ...]


def read_config(path: Path | None = None, **code: Any) -> Reading:
    """The configuration that is found, as far as it is right. Never raises for what is wrong."""
    file = find_file(path)
    try:
        document = None if file is None else _read_document(file)
    except ConfigurationError as error:
        rest = _Layers(AgentConfig, None, code)
        config, _ = rest.merge()
        return Reading(file, config, error.problems)
    config, problems = _Layers(AgentConfig, document, code).merge()
    return Reading(file, config, tuple(problems))


def load_config(path: Path | None = None, **code: Any) -> AgentConfig:
    """
    The configuration that is found, under the settings given in ``code``.

    Raises:
        ConfigurationError: naming place and setting of everything that is wrong.
    """
    file = find_file(path)
    return _merge(AgentConfig, None if file is None else _read_document(file), code)


def resolve(config: AgentConfig) -> AgentConfig:
    """
    ``config`` with what it leaves open taken from the environment and the configuration file.

    Raises:
        ConfigurationError: naming place and setting of everything that is wrong.
    """
    file = find_file()
    code = {name: getattr(config, name) for name in config.model_fields_set}
    layers = _Layers(type(config), None if file is None else _read_document(file), code)
    if file is None and layers.variables_are_empty:
        return config
    return layers.merged()


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
        text = read_text(pyproject)
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
        text = read_text(path)
    except (OSError, ValueError) as error:
        named = os.environ.get(VARIABLE) == str(path)
        message = f"the configuration file {path} {unreadable(error)}"
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


# --- merging --------------------------------------------------------------------------------------


def _merge(
    model: type[AgentConfig], document: Document | None, code: dict[str, Any]
) -> AgentConfig:
    return _Layers(model, document, code).merged()


class _Layers:
    """What the code, the environment and the file say, the first before the others."""

    def __init__(
        self, model: type[AgentConfig], document: Document | None, code: dict[str, Any]
    ) -> None:
        self._model = model
        self._document = document
        self._code = {name: value for name, value in code.items() if value is not None}
        self._sections = _mapping(self._code.get("plugins"))
        self._variables: Variables = read_environment(model)

    @property
    def variables_are_empty(self) -> bool:
        return not (self._variables.data or self._variables.problems)

    def merged(self) -> AgentConfig:
        """
        All of them in one.

        Raises:
            ConfigurationError: naming place and setting of everything that is wrong.
        """
        config, problems = self.merge()
        if config is None or any(problem.fatal for problem in problems):
            raise ConfigurationError([problem for problem in problems if problem.fatal])
        return config

    def merge(self) -> tuple[AgentConfig | None, list[Problem]]:
        """What is right of them in one, if that makes sense, and what is wrong with the rest."""
        code, variables, document = self._code, self._variables, self._document
        self._name_instances()
        merged: dict[str, Any] = {}
        problems = variables.problems
        failed = set(variables.failed)
        if document is not None:
            resolver = _Resolver(document)
            merged = resolver.resolve(self._left_open(document.data), ())
            problems = [*resolver.problems, *problems]
            failed |= resolver.failed
        beneath = merged.get("plugins", {})
        from_variables = {name: item for name, item in variables.data.items() if name not in code}
        merged |= from_variables | code
        if all(isinstance(part, dict) for part in (beneath, merged.get("plugins", {}))):
            above = _mapping(variables.data.get("plugins"))
            sections = {
                name: _over_all(section, beneath.get(name))
                for name, section in above.items()
                if isinstance(beneath.get(name, {}), dict)  # else it is wrong, and must be told
            }
            beneath = {**beneath, **sections}
            merged["plugins"] = {
                **beneath,
                **{name: _over(item, beneath.get(name)) for name, item in self._sections.items()},
            }
        elif "plugins" not in code and not isinstance(beneath, dict):
            merged["plugins"] = beneath  # wrong, which must be told
        config = None
        try:
            config = self._model.model_validate(merged)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False)
            for detail in details:
                setting = tuple(str(part) for part in detail["loc"])
                if setting not in failed:  # else its reference is the problem, and is reported
                    problems.append(self._invalid(setting, detail))
            config = self._without(merged, details)
        if config is not None:
            self._annotate(config, problems)
        return config, problems

    def _without(self, merged: dict[str, Any], details: list[ErrorDetails]) -> AgentConfig | None:
        """The rest, without what is wrong."""
        rest = dict(merged)
        for detail in details:
            if detail["loc"]:
                rest.pop(str(detail["loc"][0]), None)
        rest.setdefault("api_key", PLACEHOLDER)
        try:
            return self._model.model_validate(rest)
        except ValidationError:
            return None

    def _annotate(self, config: AgentConfig, problems: list[Problem]) -> None:
        variables, document = self._variables, self._document
        origins = {} if document is None else self._places(document)
        origins |= {
            ".".join(path): variables.place(path) or ""
            for path in variables.names
            if path[0] == "plugins" or path[0] not in self._code
        }
        # An empty place: the code says it, whatever is said below.
        for name, section in self._sections.items():
            origins |= {f"plugins.{name}.{key}": "" for key in _mapping(section)}
            if not any(path[:2] == ("plugins", name) for path in self._below()):
                origins[f"plugins.{name}"] = ""
        config._origins = origins  # noqa: SLF001 - set here only
        config._notes = tuple(p for p in problems if not p.fatal)  # noqa: SLF001 - the same

    def _places(self, document: Document) -> dict[str, str]:
        return {
            ".".join(path): document.place(path)
            for path in document.lines
            if path[0] == "plugins" or path[0] not in self._code
        }

    def _below(self) -> list[SettingPath]:
        """What the environment and the file have."""
        lines = () if self._document is None else self._document.lines
        return [*lines, *self._variables.names]

    def _name_instances(self) -> None:
        """Find out which instances the sections in the environment mean."""
        data = {} if self._document is None else self._document.data
        instances = [_ALWAYS_THERE, *_mapping(data.get("plugins")), *self._sections]
        for name in sorted(_NAMES):
            named: Any = self._model.model_fields[name].get_default(call_default_factory=True)
            for layer in (data, self._variables.data, self._code):
                named = layer.get(name, named)
            instances += [named] if isinstance(named, str) else _texts(named)
        self._variables.name_instances(instances)

    def _left_open(self, data: dict[str, Any]) -> dict[str, Any]:
        """What the file says and nothing above does. An empty section has nothing to say."""
        said = {**self._variables.data, **self._code}
        left = {name: value for name, value in data.items() if name not in said}
        plugins = data.get("plugins", {})
        left["plugins"] = plugins if plugins is not None else {}
        if isinstance(plugins, dict):
            left["plugins"] = {
                name: {key: item for key, item in section.items() if not self._says(name, key)}
                if isinstance(section, dict)
                else ({} if section is None else section)
                for name, section in plugins.items()
            }
        return left

    def _says(self, instance: str, key: str) -> bool:
        """Whether something above the file sets all of a plugin's setting."""
        above = _mapping(_mapping(self._variables.data.get("plugins")).get(instance))
        if key in _mapping(self._sections.get(instance)):
            return True
        return key in above and not isinstance(above[key], dict)

    def _place(self, setting: SettingPath) -> str:
        """Where a setting stands, for messages."""
        top, document = setting[:1], self._document
        in_section = _mapping(self._sections.get(setting[1])) if len(setting) > 1 else {}
        if top and top[0] in self._code:
            if top != ("plugins",) or (len(setting) > 2 and setting[2] in in_section):
                return "in code"
            if not self._is_below(setting):
                return "in code"
        if place := self._variables.place(setting):
            return place
        return "in code" if document is None else document.place(setting)

    def _is_below(self, setting: SettingPath) -> bool:
        return setting in self._below()

    def _invalid(self, setting: SettingPath, detail: ErrorDetails) -> Problem:
        name = ".".join(setting) or "the settings"
        where = self._place(setting)
        known = self._model.model_fields
        if detail["type"] == "missing":
            place = self._document.path if self._document is not None else YAML_NAME
            message = (
                f"{name} is required, but neither the code nor the environment nor a "
                "configuration file sets it"
            )
            fix = f"set it in {place} or as {PREFIX}{name.upper()}, or pass {name}=... in code"
            return Problem("GA307", message, fix)
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


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _over(section: Any, beneath: Any) -> Any:
    """One plugin's settings from code over those of the file, key by key."""
    if isinstance(section, dict) and isinstance(beneath, dict):
        return {**beneath, **section}
    return section


def _over_all(section: Any, beneath: Any) -> Any:
    """As `_over`, in all depths: a variable sets one value, not all around it."""
    if isinstance(section, dict) and isinstance(beneath, dict):
        return {
            **beneath,
            **{key: _over_all(item, beneath.get(key)) for key, item in section.items()},
        }
    return section


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


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
        file = self._document.folder / Path(name).expanduser()
        try:
            return read_text(file, MAX_REFERENCED).strip()
        except (OSError, ValueError) as error:
            what = f"refers to the file {file}, which {unreadable(error)}"
            return self._fail("GA306", path, what, "correct the path, or the file")

    def _fail(self, code: str, path: SettingPath, what: str, fix: str) -> str:
        self.failed.add(path)
        where = self._document.place(path)
        self.problems.append(Problem(code, f"{where}: {'.'.join(path)} {what}", fix))
        return ""


def _is_section(path: SettingPath) -> bool:
    """Whether a table stands here, whose single setting may well be called ``file``."""
    return not path or (path[0] == "plugins" and len(path) < 3)

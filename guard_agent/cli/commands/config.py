"""``guard-agent config``: which settings are in force, where they come from, and what there is."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from guard_agent import AgentConfig
from guard_agent.cli.output import json_option, print_json, print_table
from guard_agent.cli.setup import EX_CONFIG, Setup, ends_with_problems, hint, setup_options
from guard_agent.core.assembly.composition import WARNINGS
from guard_agent.core.assembly.configfile import PLACEHOLDER
from guard_agent.core.assembly.inspection import SEAMS
from guard_agent.core.assembly.schema import build_schema
from guard_agent.core.logs import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from guard_agent.core.assembly.registry import Registry

_MASK = "********"
_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:key|keys|secret|token|password|passwd|credentials?|dsn|authorization|cookie)$",
    re.IGNORECASE,
)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_LONGEST = 200


@click.group()
def command() -> None:
    """Show, check and describe the settings."""


@dataclass(frozen=True, slots=True)
class _Setting:
    name: str
    value: Any
    """Plain JSON data, secrets masked."""
    origin: str


@command.command()
@setup_options
@click.option("--provenance", is_flag=True, help="Where each value comes from.")
@click.option("--changed", is_flag=True, help="Only what is not a default.")
@json_option
def show(setup: Setup, provenance: bool, changed: bool, as_json: bool) -> None:
    """
    Show the settings in force, secrets masked, also those of the plugins in use.

    Of a configuration with mistakes the rest is shown, and the command ends with 78.
    """
    config, problems = setup.look()
    settings = [
        setting
        for setting in (*_core(config), *_plugins(config, setup.registry))
        if not changed or setting.origin != "default"
    ]
    if as_json:
        print_json([asdict(setting) for setting in settings])
    else:
        values = [one_line(json.dumps(s.value, ensure_ascii=False), _LONGEST) for s in settings]
        origins = [(s.name, s.origin) if provenance else (s.name,) for s in settings]
        print_table([(*about, value) for about, value in zip(origins, values, strict=True)])
    if problems:
        click.echo("\n" + "\n".join(map(str, problems)), err=True)
        hint(problems)
    raise SystemExit(EX_CONFIG if any(problem.fatal for problem in problems) else 0)


@command.command()
@setup_options
@json_option
@ends_with_problems
def validate(setup: Setup, as_json: bool) -> None:
    """
    Look for mistakes in the settings, those of the plugins included. Connects to nothing.

    Ends with 78 when nothing can run with them, with 1 when a plugin is left out.
    """
    problems = setup.problems()
    wrong = [problem for problem in problems if problem.fatal or problem.code not in WARNINGS]
    if as_json:
        print_json([asdict(problem) for problem in problems])
    else:
        for problem in problems:
            click.echo(problem, err=True)
        click.echo(
            f"{setup.source}: {len(wrong)} problem{'s' * (len(wrong) != 1)}"
            if wrong
            else f"{setup.source}: no problems"
        )
        hint(problems)
    fatal = any(problem.fatal for problem in wrong)
    raise SystemExit(EX_CONFIG if fatal else 1 if wrong else 0)


@command.command()
@setup_options
@ends_with_problems
def schema(setup: Setup) -> None:
    """Print a JSON Schema of the configuration file, for editors and for checks."""
    print_json(build_schema(setup.registry))


def _core(config: AgentConfig) -> Iterator[_Setting]:
    for name, field in AgentConfig.model_fields.items():
        if name in ("plugins", "on_error"):
            continue
        value = getattr(config, name)
        if name == "api_key" and value == PLACEHOLDER:
            yield _Setting(name, None, "not set")
            continue
        is_set = name in config.model_fields_set
        origin = config.origin(name) or ("code" if is_set else "default")
        secret = not field.repr and value is not None
        yield _Setting(name, _MASK if secret else _plain(value, name), origin)


def _plugins(config: AgentConfig, registry: Registry) -> Iterator[_Setting]:
    """The settings of the plugins in use, then sections for what is not in use."""
    used: list[str] = []
    for seam in SEAMS:
        named = getattr(config, seam.option)
        for instance in [named] if isinstance(named, str) else named:
            cls = registry.load(instance.partition("/")[0]).classes.get(seam.kind)
            section = config.plugins.get(instance, {})
            used.append(instance)
            if cls is None:
                yield from _unchecked(config, instance, section)
                continue
            try:
                values: Mapping[str, Any] = dict(cls.Settings.model_validate(section))
            except ValidationError:
                yield from _unchecked(config, instance, section, cls.Settings)
                continue
            for name, value in values.items():
                yield _Setting(
                    f"plugins.{instance}.{name}",
                    _plain(value, name),
                    _origin(config, instance, name) if name in section else "default",
                )
    for instance, section in config.plugins.items():
        if instance not in used:
            yield from _unchecked(config, instance, section)


def _unchecked(
    config: AgentConfig,
    instance: str,
    section: Mapping[str, Any],
    model: type[BaseModel] | None = None,
) -> Iterator[_Setting]:
    """Settings as they are written: without the plugin nobody knows which of them are secret."""
    for name, value in section.items():
        field = None if model is None else model.model_fields.get(name)
        is_plain = field is not None and "Secret" not in str(field.annotation)
        yield _Setting(
            f"plugins.{instance}.{name}",
            _plain(value, name) if is_plain else _MASK,
            _origin(config, instance, name),
        )


def _origin(config: AgentConfig, instance: str, name: str) -> str:
    return config.origin(f"plugins.{instance}.{name}") or "code"


def _plain(value: Any, name: str) -> Any:
    """``value`` as JSON data: masked where it is declared a secret, or is called like one."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (SecretStr, SecretBytes)):
        return _MASK
    if isinstance(value, (BaseModel, dict)):
        return {str(key): _plain(item, str(key)) for key, item in dict(value).items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, name) for item in value]
    if _SECRET_NAME.search(name):
        return _MASK
    return _USERINFO.sub(_MASK, str(getattr(value, "value", value)))

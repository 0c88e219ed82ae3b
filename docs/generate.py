"""
Writes the tables of docs/reference from the code: settings, those of plugins too, models, commands
and error codes.

``python docs/generate.py`` writes them; tests/test_docs_site.py says when that has to
be done again.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import types
import typing
from datetime import datetime
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import click
from pydantic import BaseModel, SecretStr

from guard_agent import (
    AgentConfig,
    AgentStatus,
    DynamicRules,
    EventBatch,
    SecurityEvent,
    SecurityMetric,
)
from guard_agent.cli import main
from guard_agent.core.assembly.codes import CODES
from guard_agent.core.assembly.inspection import SEAMS
from guard_agent.core.interfaces import DropReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Written by docs/generate.py. -->"

_BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}
_LENGTHS = {"min_length": "at least {} long", "max_length": "at most {} long"}
_NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    bytes: "bytes",
    dict: "table",
    list: "list",
    datetime: "time",
    UUID: "UUID",
    Path: "path",
    SecretStr: "secret",
    Any: "anything",
}


def pages() -> dict[str, str]:
    """Every generated page: its name in docs/reference, and its text."""
    return {
        "settings.md": settings_page(),
        "plugins.md": plugins_page(),
        "models.md": models_page(),
        "commands.md": commands_page(),
        "errors.md": errors_page(),
    }


# --- settings and models --------------------------------------------------------------------------


def settings_page() -> str:
    return page(
        "Settings of the agent",
        "What `AgentConfig(...)` takes, what stands in `[tool.guard-agent]` or at the top of "
        "`guard-agent.yaml`, and, as `GUARD_AGENT_` and the name in capitals, what the "
        "[environment](../command-line.md#settings-from-the-environment) may set. Sizes are in "
        "bytes, times in seconds. `on_error` is for code only. Editors take "
        "[config.schema.json](../config.schema.json).",
        *table(AgentConfig),
    )


def plugins_page() -> str:
    parts: list[str] = []
    for origin, name, module in entry_points():
        for seam in SEAMS:
            hook = getattr(import_module(module), seam.hook, None)
            for cls in hook() if hook is not None else ():
                parts += ["", f"## {name}", "", f"{seam.kind.capitalize()}{origin}."]
                parts += ["", *table(cls.Settings)] if cls.Settings.model_fields else [" None."]
    return page(
        "Settings of the plugins",
        "What stands in `[tool.guard-agent.plugins.NAME]`. A second instance, `http/eu`, has a "
        'section of its own, `[tool.guard-agent.plugins."http/eu"]`. What is not set here and is '
        "a setting of the agent too is as the [agent](settings.md) has it.",
        *parts[1:],
    )


def entry_points() -> Iterator[tuple[str, str, str]]:
    """Where it is from, name and module of every plugin here, built-in ones first."""
    for path in [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]:
        project = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli").loads(
            path.read_text(encoding="utf-8")
        )["project"]
        for name, module in project.get("entry-points", {}).get("guard_agent", {}).items():
            own = project["name"]
            link = f" of [{own}](../../plugins/{own}/README.md)"
            yield ", built in" if own == "guard-agent" else link, name, module


def models_page() -> str:
    parts: list[str] = []
    for model in (SecurityEvent, SecurityMetric, DynamicRules, AgentStatus, EventBatch):
        parts += ["", f"## {model.__name__}", "", inspect.cleandoc(model.__doc__ or ""), ""]
        parts += table(model)
    reasons = documented(DropReason)
    parts += [
        "",
        "## Reasons for a drop",
        "",
        "The keys of `dropped` in the books of a destination.",
        "",
        "| Reason | |",
        "| --- | --- |",
        *(row(f"`{reason.value}`", reasons.get(reason.name, "")) for reason in DropReason),
    ]
    return page(
        "Models",
        "All of them are pydantic models in `guard_agent`. What an event or a metric may hold "
        "leaves the process redacted; see [Privacy](../privacy.md).",
        *parts[1:],
    )


def table(model: type[BaseModel]) -> list[str]:
    """Fields of a model with their types, bounds and defaults."""
    notes = documented(model)
    return [
        "| Name | Type | Default | |",
        "| --- | --- | --- | --- |",
        *(
            row(
                f"`{name}`",
                type_of(field.annotation, field.metadata),
                default_of(field),
                field.description or notes.get(name, ""),
            )
            for name, field in model.model_fields.items()
        ),
    ]


def type_of(annotation: object, metadata: Iterable[object] = ()) -> str:
    """A type in words, with the bounds that pydantic checks."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        # What FieldInfo of an optional type keeps of its bounds stands inside of it.
        found = [m for extra in inner[1:] for m in getattr(extra, "metadata", [extra])]
        text = type_of(inner[0], found)
    elif origin in (Union, types.UnionType):
        text = " or ".join(type_of(one) for one in inner if one is not type(None))
    elif origin is Literal:
        text = " or ".join(f"`{value}`" for value in inner)
    elif origin in (list, set) and inner:
        text = f"list of {type_of(inner[0])}"
    elif origin is tuple:
        text = f"({', '.join(type_of(one) for one in inner)})"
    elif origin is dict and inner and inner[1] is not Any:
        text = f"table of {type_of(inner[1])}"
    elif callable(annotation) and origin is not None and origin not in (dict, list, set):
        text = "function"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        text = f"`{annotation.__name__}`"
    else:
        text = _NAMES.get(typing.cast("type", origin or annotation), "")
    if not text:
        msg = f"no word for the type {annotation!r}; add one to docs/generate.py"
        raise TypeError(msg)
    bounds = [
        form.format(f"{getattr(one, key):,}")
        for one in metadata
        for key, form in {**_BOUNDS, **_LENGTHS}.items()
        if getattr(one, key, None) is not None
    ]
    patterns = [pattern for one in metadata if (pattern := getattr(one, "pattern", None))]
    return ", ".join([text, *bounds, *(f"like `{pattern}`" for pattern in patterns)])


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if (factory := field.default_factory) is not None:
        value = typing.cast("Any", factory)()
    else:
        value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, (list, tuple, set)):
        value = ", ".join(value)
    words = {datetime: "now", UUID: "a new one", bool: str(value).lower()}
    if word := words.get(type(value)):
        return word
    if isinstance(value, (int, float)):
        return f"{value:,}"
    return f"`{value}`" if value else ""


def documented(cls: type) -> dict[str, str]:
    """The texts that stand below the attributes of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("guard_agent"):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = typing.cast("ast.ClassDef", definition).body
        for attribute, text in pairwise(body):
            target = attribute.targets[0] if isinstance(attribute, ast.Assign) else None
            target = attribute.target if isinstance(attribute, ast.AnnAssign) else target
            if (
                isinstance(target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[target.id] = inspect.cleandoc(text.value.value)
    return found


# --- commands and error codes ---------------------------------------------------------------------


def commands_page() -> str:
    context = click.Context(main, info_name="guard-agent")
    return page(
        "Commands",
        "What `guard-agent COMMAND --help` says. What they are for, with examples, is in "
        "[The command](../command-line.md).",
        *[line for part in _commands(main, context) for line in part][1:],
    )


def _commands(group: click.Group, context: click.Context) -> Iterator[list[str]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
            continue
        usage = " ".join(command.collect_usage_pieces(inner))
        parts = ["", f"## {inner.command_path}", "", f"`{inner.command_path} {usage}`"]
        parts += ["", inspect.cleandoc(command.help or "")]
        options = [
            one.get_help_record(inner) for one in command.params if isinstance(one, click.Option)
        ]
        records = [record for record in options if record is not None]
        if records:
            parts += ["", "| Option | |", "| --- | --- |"]
            parts += [row(f"`{option}`", text) for option, text in records]
        yield parts


def errors_page() -> str:
    parts: list[str] = []
    for code, said in CODES.items():
        parts += [
            "",
            f"## {code}",
            "",
            f"**{said.what}**",
            "",
            said.why,
            "",
            f"*Mend it:* {said.fix}",
        ]
    return page(
        "Error codes",
        "Every problem that the agent finds in its configuration or its plugins has a code, which "
        "never changes its meaning. `guard-agent explain CODE` says the same. Problems are shown "
        "together; a command ends with 78 when nothing can run, with 1 when only a plugin is left "
        "out.",
        *parts[1:],
    )


# --- markdown -------------------------------------------------------------------------------------


def page(title: str, introduction: str, *lines: str) -> str:
    return "\n".join([f"# {title}", "", NOTE, "", introduction, "", *lines]) + "\n"


def row(*cells: str) -> str:
    """A row of a table. A bar would end the cell, also in code; outside of it < begins a tag."""
    cleaned = [re.sub(r"\s+", " ", cell).replace("|", "\\|").strip() for cell in cells]
    parts = [re.sub(r"<(?=[^`]*(?:`[^`]*`[^`]*)*$)", "&lt;", cell) for cell in cleaned]
    return "| " + " | ".join(parts) + " |"


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()

"""
A JSON Schema of the configuration file, with the settings of the plugins that are installed.

For editors and for checks of a file before it is used. A value may also be a reference to an
environment variable or to a file, so every setting takes these as well.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from guard_agent.core.assembly.inspection import SEAMS
from guard_agent.core.config import AgentConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import core_schema

    from guard_agent.core.assembly.registry import Registry
    from guard_agent.core.interfaces import PluginSettings

logger = logging.getLogger("guard_agent.config")

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = "Reference"
_ABOUT = ("description", "default", "writeOnly")
_ONLY_IN_CODE = "on_error"


def build_schema(registry: Registry) -> dict[str, Any]:
    """The schema; what stands in ``[tool.guard-agent]`` is what stands at the top of the YAML."""
    schema = AgentConfig.model_json_schema(schema_generator=_Generator, mode="validation")
    definitions = dict(schema.get("$defs", {}))
    definitions[_REFERENCE] = {
        "description": "A value from elsewhere: ${env:NAME}, or the content of a file",
        "anyOf": [
            {"type": "string", "pattern": r"\$\{env:[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"},
            {
                "type": "object",
                "properties": {"file": {"type": "string"}},
                "required": ["file"],
                "additionalProperties": False,
            },
        ],
    }
    properties = _with_references(schema["properties"])
    properties.pop(_ONLY_IN_CODE, None)
    sections, instances = {}, {}
    for name, section in sorted(_sections(registry)):
        definitions |= section.pop("$defs", {})
        definitions[f"plugin {name}"] = section
        reference = {"$ref": f"#/$defs/plugin {name}"}
        sections[name] = reference
        instances[f"^{name}/.+$"] = reference
    properties["plugins"] = {
        "description": AgentConfig.model_fields["plugins"].description,
        "type": "object",
        "properties": sections,
        "patternProperties": instances,
        "additionalProperties": {"type": ["object", "null"]},
    }
    return {
        "$schema": DIALECT,
        "title": "Settings of guard-agent",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _sections(registry: Registry) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings of each plugin that can be imported, by its name."""
    for provider in registry.providers:
        loaded = registry.load(provider.name)
        kinds = [loaded.classes[seam.kind] for seam in SEAMS if seam.kind in loaded.classes]
        found = [_section(cls.Settings) for cls in kinds]
        if not found:
            continue
        # One plugin may be of several kinds, which share the section of its name.
        yield provider.name, found[0] if len(found) == 1 else {"anyOf": found}


def _section(settings: type[PluginSettings]) -> dict[str, Any]:
    try:
        schema = settings.model_json_schema(schema_generator=_Generator, mode="validation")
    except Exception:
        # Foreign code, such as a type that cannot be found: nothing can be said of the section.
        logger.debug("%s has no schema", settings, exc_info=True)
        return {"type": ["object", "null"]}
    schema.pop("title", None)
    schema.pop("description", None)  # the docstring is for authors
    schema["type"] = ["object", "null"]
    schema["properties"] = _with_references(schema.get("properties", {}))
    # What is required may stand in the environment.
    schema.pop("required", None)
    return schema


def _with_references(properties: dict[str, Any]) -> dict[str, Any]:
    """Each setting, or a reference to its value."""
    changed = {}
    for name, given in properties.items():
        schema = {key: value for key, value in given.items() if key != "title"}
        about = {key: schema.pop(key) for key in _ABOUT if key in schema}
        choices = schema.pop("anyOf", None) or [schema]
        changed[name] = {**about, "anyOf": [*choices, {"$ref": f"#/$defs/{_REFERENCE}"}]}
    return changed


class _Generator(GenerateJsonSchema):
    """Leaves out what JSON cannot say, instead of failing because of a single setting."""

    def generate(
        self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation"
    ) -> JsonSchemaValue:
        self.ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}
        return super().generate(schema, mode)

    def handle_invalid_for_json_schema(
        self,
        schema: core_schema.CoreSchema,  # noqa: ARG002 - as pydantic calls it
        error_info: str,  # noqa: ARG002 - the same
    ) -> JsonSchemaValue:
        return {}

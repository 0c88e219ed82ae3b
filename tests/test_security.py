"""What SECURITY.md says of the code and of its defaults."""

from __future__ import annotations

import ast
import json
import re
import runpy
from pathlib import Path

import pytest
import yaml
from guard_core.models import SecurityConfig

from guard_agent import AgentConfig
from guard_agent.plugins import file

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
SOURCES = sorted([*ROOT.glob("guard_agent/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")])

CODE_FROM_DATA = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
RUN_TEXT = {"eval", "exec", "compile", "__import__"}


def names_of(node: ast.AST) -> list[str]:
    """What a statement imports, or the builtin that an expression calls."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").partition(".")[0]]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return [node.func.id]
    return []


def test_nothing_is_unpickled_or_evaluated():
    found = [
        (path.relative_to(ROOT).as_posix(), name)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in names_of(node)
        if name in CODE_FROM_DATA | RUN_TEXT
    ]

    assert len(SOURCES) > 50
    assert found == []


def test_yaml_is_read_with_the_safe_loader():
    assert issubclass(file._Loader, (yaml.SafeLoader, getattr(yaml, "CSafeLoader", ())))
    for text in ("!!python/object/apply:os.getcwd []", "!!python/name:os.system"):
        with pytest.raises(yaml.YAMLError):
            yaml.load(text, Loader=file._Loader)


def test_the_defaults_are_those_of_the_page():
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", PAGE, re.MULTILINE)
    fields = AgentConfig.model_fields

    said = {}
    for name, default in rows:
        said[name] = default if "://" in default else json.loads(default)

    assert len(said) > 8
    assert said == {name: fields[name].get_default(call_default_factory=True) for name in said}


def test_a_middleware_applies_no_rules_unless_it_is_told_to():
    """What the page calls handing over: nobody is locked out by a collector before that."""
    field = SecurityConfig.model_fields["enable_dynamic_rules"]

    assert field.default is False
    assert "emergency_mode" in field.description


def test_every_promise_of_the_page_is_one_with_tests():
    script = runpy.run_path(str(ROOT / "tests" / "reliability.py"))
    proven = script["find_tests"]()

    named = set(re.findall(r"\b[CRSPDLK]\d\d\b", PAGE))
    assert len(named) > 15
    assert sorted(named - proven.keys()) == []


def test_every_file_that_the_page_names_is_there():
    named = re.findall(r"`((?:tests|plugins|docs|guard_agent)/[^`]+)`", PAGE)

    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []

"""Imports go one way: what CONTRIBUTING.md says of it, read from the code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = "guard_agent.core"
FACES = ("cli", "client", "integrations", "plugins", "rules", "testing")
"""What stands on the core, in `guard_agent`."""


def modules():
    """Name and file of every module of the distributions."""
    for base in [ROOT, *sorted(ROOT.glob("plugins/*/src"))]:
        for path in sorted(base.glob("guard_agent*/**/*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


FILES = dict(modules())


def imports(name, *, late=True):
    """
    The modules that a module imports: at any time, or without ``late`` when it is imported itself.
    """

    def found(nodes):
        for node in nodes:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                yield from found(node.body if late else node.orelse)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = str(node.module)
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    yield inner if inner in FILES else module
            elif late or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from found(ast.iter_child_nodes(node))

    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    return {module for module in found(tree.body) if module in FILES and module != name}


def below(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("name", [n for n in FILES if below(n, CORE)])
def test_the_core_imports_nothing_that_stands_on_it(name):
    foreign = {
        module for module in imports(name) if not below(module, CORE, "guard_agent._version")
    }

    assert foreign == set()


@pytest.mark.parametrize(
    "name", [n for n in FILES if below(n, "guard_agent.plugins") or not below(n, "guard_agent")]
)
def test_a_plugin_imports_public_names_only(name):
    own = "guard_agent.plugins"

    inner = {module for module in imports(name) if below(module, CORE)}
    others = {
        module
        for module in imports(name)
        if below(module, *(f"guard_agent.{face}" for face in FACES if face != "rules"))
        and not (below(name, own) and below(module, own))
    }

    assert inner == set()
    assert others == set()


@pytest.mark.parametrize("name", [n for n in FILES if below(n, "guard_agent.integrations")])
def test_an_integration_imports_public_names_only(name):
    assert {module for module in imports(name) if below(module, CORE)} == set()


def test_no_module_waits_for_one_that_waits_for_it():
    """What modules import while they are imported makes no circle."""
    waits = {name: imports(name, late=False) for name in FILES}
    done: set[str] = set()

    def follow(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for module in sorted(waits[name]):
                follow(module, [*path, name])
            done.add(name)

    for name in FILES:
        follow(name, [])

    assert len(done) > 100

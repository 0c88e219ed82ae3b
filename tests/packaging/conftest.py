"""
What the tests of the packaging share: the distributions of this repository, read from their files.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Distribution:
    folder: Path
    document: dict[str, Any]

    @property
    def project(self) -> dict[str, Any]:
        return self.document["project"]

    @property
    def name(self) -> str:
        return self.project["name"]

    @property
    def entry_points(self) -> dict[str, str]:
        return self.project.get("entry-points", {}).get("guard_agent", {})

    @property
    def commands(self) -> dict[str, str]:
        """Commands that it adds to ``guard-agent``."""
        return self.project.get("entry-points", {}).get("guard_agent.commands", {})

    @property
    def is_plugin(self) -> bool:
        return self.folder.parent.name == "plugins"

    @property
    def module(self) -> str | None:
        """The one package it installs; None for a distribution without code."""
        return None if self.folder.parent.name == "packaging" else self.name.replace("-", "_")

    @property
    def requirements(self) -> list[Requirement]:
        """Of the distribution and of all its extras."""
        extras = self.project.get("optional-dependencies", {}).values()
        return [
            Requirement(text) for texts in [self.project["dependencies"], *extras] for text in texts
        ]

    def requires(self, extra: str | None = None) -> set[str]:
        """Names without and with an extra, as they stand in the file."""
        texts = self.project["dependencies"]
        if extra is not None:
            texts = self.project["optional-dependencies"][extra]
        return {canonicalize_name(Requirement(text).name) for text in texts}


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def distributions() -> dict[str, Distribution]:
    """All distributions of the repository, by name."""
    files = [
        ROOT / "pyproject.toml",
        *sorted(ROOT.glob("plugins/*/pyproject.toml")),
        *sorted(ROOT.glob("packaging/*/pyproject.toml")),
    ]
    found = [
        Distribution(file.parent, tomllib.loads(file.read_text(encoding="utf-8"))) for file in files
    ]
    return {distribution.name: distribution for distribution in found}


@pytest.fixture(scope="session")
def plugins(distributions) -> dict[str, Distribution]:
    return {name: found for name, found in distributions.items() if found.is_plugin}


@pytest.fixture(scope="session")
def bare_environment() -> dict[str, str]:
    """The environment without what would put a checkout or a configuration on a child's path."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "GUARD_AGENT", "VIRTUAL_ENV"))
    }

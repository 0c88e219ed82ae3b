"""Where each side runs: an interpreter with its packages, made once in ``.bench`` and then kept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".bench"
CONSTRAINTS = ROOT / "constraints.txt"
_STAMP = ".installed"


@dataclass(frozen=True)
class Side:
    """One of those that are measured."""

    name: str
    title: str
    module: str = ""
    """The script below ``sides`` that speaks for it, when a measurement names none."""
    requirements: tuple[str, ...] = ()
    """What its environment has; none means the environment of this checkout."""
    constrained: bool = False
    """Its dependencies have the versions that this checkout has."""
    added: tuple[str, ...] = ()
    """Packages it finds besides those of its environment."""
    shown: tuple[str, ...] = ()
    """The distributions whose versions tell what was measured."""

    def python(self) -> Path:
        """The interpreter; makes the environment when it is not there yet."""
        if not self.requirements:
            return Path(sys.executable)
        return environment(self.name, *self.requirements, constrained=self.constrained)

    def path(self) -> list[Path]:
        """Folders with what is ``added``; filled at the first call."""
        return [_added(requirement) for requirement in self.added]


def environment(name: str, *requirements: str, constrained: bool = False) -> Path:
    """The interpreter of the environment ``name``; made again when the requirements change."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    stamp = folder / _STAMP
    wanted = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        _say(name)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        bounds = ["-c", str(CONSTRAINTS)] if constrained else []
        subprocess.run([*_pip(python), *bounds, *requirements], check=True)
        stamp.write_text(wanted)
    return python


def _added(requirement: str) -> Path:
    folder = FOLDER / f"added-{requirement}"
    stamp = folder / _STAMP
    if not stamp.exists():
        _say(requirement)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(
            [*_pip(Path(sys.executable)), "--no-deps", "--target", folder, requirement], check=True
        )
        stamp.touch()
    return folder


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]


def _say(name: str) -> None:
    print(f"installing {name} beside, once", file=sys.stderr, flush=True)


_AGENT_REDIS_64 = "guard-agent-3.2.4-redis-6.4"

SIDES = {
    side.name: side
    for side in (
        Side("ours", "this release", "agent", shown=("guard-agent", "pydantic", "aiohttp")),
        Side("ours-speed", "with isal", "agent", added=("isal",), shown=("isal",)),
        Side(
            "3.2.4",
            "3.2.4",
            "agent",
            # The same Guard, framework and server as in this checkout, for the rows of an app.
            requirements=("guard-agent==3.2.4", "fastapi-guard", "uvicorn", "redis"),
            constrained=True,
            shown=("guard-agent", "pydantic", "httpx", "fastapi-guard", "uvicorn"),
        ),
        Side(
            _AGENT_REDIS_64,
            "3.2.4 with redis-py 6.4",
            "agent",
            # With a newer client it leaves nearly all of a burst out and cannot be compared.
            requirements=("guard-agent==3.2.4", "redis==6.4.0", "guard-core==4.4.0"),
            shown=("guard-agent", "redis"),
        ),
        Side(
            "otel",
            "OpenTelemetry",
            "otel",
            requirements=("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
            shown=("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"),
        ),
        Side("sentry", "Sentry", "sentry", requirements=("sentry-sdk",), shown=("sentry-sdk",)),
        Side("limits", "limit", "limits", added=("isal",), shown=("orjson", "isal")),
    )
}
OURS, SPEED, PEER, PEER_REDIS = "ours", "ours-speed", "3.2.4", _AGENT_REDIS_64
OTEL, SENTRY, LIMITS = "otel", "sentry", "limits"
PLOT = ("plot", "matplotlib")
"""Name and requirements of the environment that draws."""

"""What ``guard-agent new`` writes can be built and installed, is found, and passes its tests."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

KINDS = {
    "transport": "my-collector",
    "store": "my-store",
    "rules": "my-rules",
    "enricher": "my-region",
    "aggregator": "my-counter",
}

# The first test waits for what all of them share.
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("guard-agent-new")]


def run(command, **kwargs):
    done = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, timeout=200, **kwargs
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The folders of one package of each kind, as the command writes them."""
    folder = tmp_path_factory.mktemp("generated")
    for kind, name in KINDS.items():
        run([sys.executable, "-m", "guard_agent.cli", "new", kind, name, "--into", folder])
    return {kind: folder / f"guard-agent-{name}" for kind, name in KINDS.items()}


@pytest.fixture(scope="module")
def python(generated, bare_environment, tmp_path_factory):
    """
    The interpreter of a virtual environment with the wheels of all these packages.

    It sees what the tests themselves run with, so that nothing has to be fetched.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    at = "Scripts" if sys.platform == "win32" else "bin"
    python = folder / "venv" / at / "python"
    own = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    shared = sysconfig.get_path("purelib")
    pth = Path(own) / "shared.pth"
    pth.write_text(f"import site; site.addsitedir({shared!r})\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = folder / "wheels"
    build = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", wheels]
    run([*pip, "wheel", *build, *generated.values()], env=bare_environment)
    install = ["--python", python, "install", "--no-deps", "--no-index"]
    run([*pip, *install, *wheels.glob("*.whl")], env=bare_environment)
    return python


@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_of_a_generated_package_pass(generated, python, bare_environment, tmp_path, kind):
    """Against the wheel: nothing but the tests is taken from the folder of the package."""
    tests = tmp_path / "tests"
    (generated[kind] / "tests").rename(tests)
    (generated[kind] / "pyproject.toml").rename(tmp_path / "pyproject.toml")

    said = run(
        [python, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={**bare_environment, "HOME": str(tmp_path)},
    )

    assert " passed" in said
    assert " skipped" not in said


def test_what_is_generated_is_listed_as_a_plugin(python, bare_environment, tmp_path):
    own = {"HOME": str(tmp_path), "GUARD_AGENT_STATE_DIR": str(tmp_path / "state")}

    listing = run(
        [python, "-m", "guard_agent.cli", "plugins"], cwd=tmp_path, env={**bare_environment, **own}
    )

    kinds = {"rules": "rule source"}
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in listing.splitlines()}
    for kind, name in KINDS.items():
        wanted = f"{kinds.get(kind, kind)} guard-agent-{name} 0.1.0 available"
        assert rows[name] == wanted, listing

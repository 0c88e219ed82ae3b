from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

import pytest

from guard_agent_http.install import _create, resolve_install_id


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


@pytest.fixture
def file(home):
    (home / ".guard-agent").mkdir()
    return home / ".guard-agent" / "install-id"


def test_the_id_in_the_file_is_used(file):
    file.write_text("  machine-7\n")

    assert resolve_install_id() == "machine-7"


def test_without_a_file_one_is_made_for_the_owner_only(home):
    made = resolve_install_id()

    file = home / ".guard-agent" / "install-id"
    assert str(UUID(made)) == made
    assert file.read_text() == made
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o077 == 0
    assert [path.name for path in file.parent.iterdir()] == ["install-id"]
    assert resolve_install_id() == made


@pytest.mark.parametrize("text", ["", " \n", "a\r\nX-Evil: 1", "übel", "x" * 200, "\0"])
def test_a_file_that_fits_no_header_is_replaced(file, text):
    file.write_text(text, newline="")

    made = resolve_install_id()

    assert str(UUID(made)) == made
    assert file.read_text() == made
    assert file.stat().st_mode & 0o777 == 0o600


def test_binary_is_replaced_too(file):
    file.write_bytes(b"\xff\xfe" * 5000)

    assert resolve_install_id() == file.read_text()


@pytest.mark.parametrize("kind", ["folder", "pipe", "parent"])
def test_what_is_no_file_is_left_alone(home, kind):
    """
    A named pipe would hold a plain open() for ever.
    """
    place = home / ".guard-agent"
    if kind == "parent":
        place.write_text("in the way")
    else:
        place.mkdir()
        if kind == "folder":
            (place / "install-id" / "inside").mkdir(parents=True)
        else:
            os.mkfifo(place / "install-id")

    made = resolve_install_id()

    assert str(UUID(made)) == made
    assert resolve_install_id() == made


@pytest.mark.parametrize("place", ["/dev/null/nowhere", "/proc"])
def test_a_home_that_takes_no_file_gets_one_id_per_process(monkeypatch, place):
    """
    Not even root can write to these.
    """
    monkeypatch.setenv("HOME", place)

    made = resolve_install_id()

    assert str(UUID(made)) == made
    assert resolve_install_id() == made


def test_without_any_home_there_is_an_id(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    # Stands for an account without an entry in the password database.
    monkeypatch.setattr(Path, "home", no_home)

    assert resolve_install_id() == resolve_install_id()


def test_of_two_processes_that_make_one_the_first_wins(file):
    """
    The file appears after this process found none.
    """
    file.write_text("machine-7")

    assert _create(file, "machine-8") == "machine-7"
    assert file.read_text() == "machine-7"
    assert [path.name for path in file.parent.iterdir()] == ["install-id"]


async def test_the_transport_reads_it_when_it_opens(serve, kit, file, tmp_path):
    file.write_text("machine-7")
    async with serve() as server:
        transport = kit.transport(server.url, tmp_path, {"install_id": None})
        await transport.open()
        await transport.send(kit.batch())
        await transport.close()

    assert server.requests[0].one("X-Agent-Install-Id") == "machine-7"

"""``guard-agent collector`` as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

RUN = (sys.executable, "-c", "from guard_agent.cli import main; main()", "collector")
CLEAN = {
    name: value for name, value in os.environ.items() if not name.endswith(("ENV", "ENVIRONMENT"))
}


@contextmanager
def running(folder, *options, **environment):
    """The process and the address it listens on."""
    process = subprocess.Popen(
        [*RUN, "--port", "0", *options],
        cwd=folder,
        env={**CLEAN, "GUARD_AGENT_STATE_DIR": str(folder / "state"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("collector listening on http://127.0.0.1:"), process.communicate()
        yield process, line.split()[-1]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def post(url, path, document, **headers):
    request = urllib.request.Request(
        url + path,
        json.dumps(document).encode(),
        {"Content-Type": "application/json", **headers},
        method="POST",
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        return json.loads(response.read())


def refused(folder, *options, **environment):
    """What it says when it does not start."""
    done = subprocess.run(
        [*RUN, "--port", "0", *options],
        cwd=folder,
        env={**CLEAN, "GUARD_AGENT_STATE_DIR": str(folder / "state"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def batch(*keys):
    return {"events": [{"event_type": "ip_banned", "idempotency_key": key} for key in keys]}


def test_once_ends_it_with_0_after_so_many_new_records(tmp_path):
    with running(tmp_path, "--once", "3") as (process, url):
        assert post(url, "/api/v1/events", batch("a", "b"))["accepted"] == 2
        assert post(url, "/api/v1/events", batch("a", "b"))["duplicates"] == 2
        assert process.poll() is None
        assert post(url, "/api/v1/events", batch("c"))["accepted"] == 1

        assert process.wait(30) == 0


def test_once_counts_what_a_record_stands_for(tmp_path):
    with running(tmp_path, "--once", "60") as (process, url):
        event = {"event_type": "ip_blocked", "idempotency_key": "a"}
        post(url, "/api/v1/events", {"events": [event]})
        summary = {**event, "idempotency_key": "b", "metadata": {"guard.count": 59}}
        post(url, "/api/v1/events", {"events": [summary]})

        assert process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("options", "code"), [((), 0), (("--once", "1"), 1)])
def test_a_signal_ends_it_and_once_tells_that_the_records_did_not_come(
    tmp_path, number, options, code
):
    with running(tmp_path, *options) as (process, _):
        process.send_signal(number)

        assert process.wait(30) == code


def test_what_was_recorded_can_be_replayed_elsewhere_without_its_keys(tmp_path):
    file = tmp_path / "received.jsonl"
    with running(tmp_path, "--record", str(file), "--once", "2") as (process, url):
        post(url, "/api/v1/events", batch("a", "b"), **{"X-API-Key": "the-secret-key"})
        assert process.wait(30) == 0
    assert "the-secret-key" not in file.read_text()

    other = tmp_path / "other.db"
    with running(tmp_path, "--replay", str(file), "--database", str(other)) as (process, url):
        assert process.stdout.readline().startswith("page: ")
        assert process.stdout.readline().endswith("2 new records, 0 requests refused\n")
        assert post(url, "/api/v1/events", batch("b", "c"))["duplicates"] == 1


def test_a_replay_counts_for_once(tmp_path):
    file = tmp_path / "received.jsonl"
    line = {"path": "/api/v1/events", "headers": {}, "body": json.dumps(batch("a"))}
    file.write_text(json.dumps(line) + "\n")

    with running(tmp_path, "--replay", str(file), "--once", "1") as (process, _):
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{}\n", "KeyError"),
        ("no json\n", "line"),
        ('{"path": "/x", "headers": {}, "body": ""}\n', "tuple"),
    ],
)
def test_a_line_that_was_not_recorded_is_named(tmp_path, text, place):
    file = tmp_path / "notes.jsonl"
    file.write_text(text)

    code, said = refused(tmp_path, "--replay", str(file))

    assert code == 78
    assert "notes.jsonl:1" in said
    assert place in said


def test_everything_accepted_is_forwarded_as_it_came(tmp_path):
    with (
        running(tmp_path, "--once", "1", "--database", "second.db") as (second, second_url),
        running(tmp_path, "--forward", second_url) as (_, url),
    ):
        post(url, "/api/v1/events", batch("a"), **{"X-Project-ID": "shop"})

        assert second.wait(30) == 0


@pytest.mark.parametrize(
    ("options", "environment", "hint"),
    [
        ((), {"ENVIRONMENT": "production"}, "env -u ENVIRONMENT"),
        (("--host", "0.0.0.0"), {}, "--token"),
        (("--encryption-key", "short"), {}, "--encryption-key"),
        (("--record", "missing/folder/file"), {}, "missing/folder/file"),
        (("--replay", "missing"), {}, "missing"),
        (("--database", "/proc/none/c.db"), {}, "--database"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(tmp_path, options, environment, hint):
    code, said = refused(tmp_path, *options, **environment)

    assert code == 78
    assert hint in said
    assert "Traceback" not in said


def test_a_forward_that_is_no_address_is_a_wrong_call(tmp_path):
    code, said = refused(tmp_path, "--forward", "nonsense")

    assert code == 2
    assert "--forward" in said

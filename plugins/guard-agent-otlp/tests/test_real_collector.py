"""
A collector that others wrote: Rotel, whose executable lies in the wheel of the same name.

The agent sends to it, and it sends on to a receiver that reads by the definitions of OpenTelemetry.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from guard_agent import Accepted, Reject, guard_agent
from guard_agent.testing.records import make_event, make_metric

START_TIMEOUT = 30.0
ATTEMPTS = 5
DEEP = {"list": [1, 2.5, True, None, "x"], "none": {}, "empty": []}


# The executable runs Python as well, by the shared library of the version that its wheel is for.
ENVIRONMENT = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or ""}


@pytest.fixture
def executable():
    """Without it a test is skipped, and fails in CI."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("Rotel has wheels for Linux on x86-64 only")
    found = find_spec("rotel")
    if found is None or found.origin is None:
        _miss("no OpenTelemetry collector: pip install rotel")
    path = Path(found.origin).with_name("rotel-agent")
    tried = subprocess.run(
        [path, "--version"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if tried.returncode != 0:
        _miss(f"Rotel does not run here: {tried.stderr.strip()}")
    return path


def _miss(reason):
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def receiver(kit):
    with kit.Receiver() as receiver:
        yield receiver


@pytest.fixture
def collector(executable, receiver, tmp_path):
    """The address of a collector that passes everything on to the receiver."""
    for _ in range(ATTEMPTS):  # the ports were free a moment ago, which promises nothing
        http, grpc = _free_ports()
        process = subprocess.Popen(
            [
                executable,
                "start",
                f"--otlp-http-endpoint=127.0.0.1:{http}",
                f"--otlp-grpc-endpoint=127.0.0.1:{grpc}",
                "--exporter=otlp",
                "--otlp-exporter-protocol=http",
                f"--otlp-exporter-endpoint={receiver.url}",
                "--disable-batching",
            ],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            if _answers(process, http):
                yield f"http://127.0.0.1:{http}"
                return
        finally:
            process.kill()
            process.wait(10)
    pytest.fail("the collector did not start")


def _free_ports():
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        return one.getsockname()[1], other.getsockname()[1]


def _answers(process, port):
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_what_an_agent_sends_passes_through_a_collector(
    collector, receiver, agent_config, kit, encoding
):
    agent = guard_agent(agent_config(collector, {"encoding": encoding}))
    trace = "5b8efff798038103d269b633813fc60c"
    events = [
        make_event(
            reason=f"reason {number} ü\u2028",
            metadata={"n": number, "deep": DEEP, "trace_id": trace},
        )
        for number in range(20)
    ]
    for event in events:
        agent.send_event(event)
    agent.send_metric(make_metric(value=0.25))
    agent.flush_buffer()
    receiver.wait(lambda r: len(r.stored) == 21, timeout=30)

    assert agent.get_status().destinations["otlp"]["delivered"] == 21
    logs = {kit.attributes(log.attributes)["log.record.uid"]: log for log in receiver.stored}
    for number, event in enumerate(events):
        log = logs.pop(str(event.idempotency_key))
        assert log.event_name == "guard.penetration_attempt"
        assert log.body.string_value == event.reason
        assert log.time_unix_nano == int(event.timestamp.timestamp() * 10**6) * 1000
        assert (log.severity_number, log.severity_text) == (17, "ERROR")
        assert log.trace_id.hex() == trace
        assert (
            kit.attributes(log.attributes).items()
            >= {
                "client.address": "203.0.113.7",
                "http.request.method": "GET",
                "http.response.status_code": 400,
                "url.path": "/items",
                "guard.event_type": "penetration_attempt",
                "guard.metadata.n": number,
            }.items()
        )
        deep = kit.attributes(log.attributes)["guard.metadata.deep"]
        assert deep == {"list": [1, 2.5, True, "", "x"], "none": {}, "empty": []}
    (metric,) = logs.values()
    assert kit.attributes(metric.attributes)["guard.value"] == 0.25
    resource = receiver.requests[0].message.resource_logs[0].resource
    assert kit.attributes(resource.attributes)["service.name"] == "shop"


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
async def test_its_refusal_is_understood(collector, kit, encoding, monkeypatch):
    """
    And so what it takes is not taken by chance: a body that is no request is refused.
    """
    transport = kit.transport(endpoint=collector, encoding=encoding)
    await transport.open()

    assert await transport.send(kit.batch()) == Accepted()

    class Garbage:
        def add(self, log):
            pass

        def finish(self):
            return b'{"resourceLogs": 5}'

    monkeypatch.setattr(transport._encoding, "body", Garbage)
    refused = await transport.send(kit.batch())
    await transport.close()

    assert (type(refused), refused.status) == (Reject, 400)

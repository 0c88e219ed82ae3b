from __future__ import annotations

import logging
import os
import runpy
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme
from yarl import URL

from guard_agent import Accepted, Paused, Retry, guard_agent
from guard_agent.testing.records import make_event
from guard_agent_http import ThreadResolver
from guard_agent_http.proxy import environment_proxy

HERE = Path(__file__).parent
# Test modules are not importable by name.
_HELPERS = SimpleNamespace(**runpy.run_path(str(HERE / "tls_server.py")))
TlsServer, server_context = _HELPERS.TlsServer, _HELPERS.server_context


@pytest.fixture
def proxy_process(tmp_path):
    """Start a proxy in a process of its own, with credentials that it wants."""

    class ProxyProcess:
        def __init__(self, process, log):
            self.port = int(process.stdout.readline())
            self._log = log

        @property
        def heard(self) -> bytes:
            """All that clients sent, heads and what went into tunnels."""
            return self._log.read_bytes()

    @contextmanager
    def start(credentials=""):
        log = tmp_path / "proxy.log"
        process = subprocess.Popen(
            [sys.executable, str(HERE / "connect_proxy.py"), str(log)],
            env={"PATH": os.environ["PATH"], "CREDENTIALS": credentials},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            yield ProxyProcess(process, log)
        finally:
            process.terminate()
            process.communicate(timeout=20)

    return start


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def ca_file(tmp_path, authority):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


# --- through a real proxy -------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_c25_an_agent_behind_a_proxy_delivers_through_its_tunnel(
    proxy_process, authority, ca_file, agent_config, monkeypatch, caplog, variable
):
    """
    The name is known to the proxy only. What passes through the tunnel is TLS from end to end.
    """
    caplog.set_level(logging.DEBUG)
    context = server_context(authority.issue_cert("collector.test"))
    with proxy_process("me:p@ss") as proxy, TlsServer(context) as server:
        monkeypatch.setenv(variable, f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        tls = {"ca_file": str(ca_file)}
        agent = guard_agent(
            agent_config(
                endpoint=f"https://collector.test:{server.port}",
                plugins={"http": tls, "polling": tls},
            )
        )
        agent.send_event(make_event(reason="canary"))
        agent.get_dynamic_rules()
        agent.flush_buffer()
        agent.stop()

        lines = [request.split(b" HTTP/")[0] for request in server.requests]
        assert lines.count(b"POST /api/v1/events") == 1
        assert b"GET /api/v1/rules" in lines
        # One connection for the records, one for the rules.
        connect = b"CONNECT collector.test:%d HTTP/1.1" % server.port
        assert proxy.heard.count(connect) == 2
        assert proxy.heard.count(b"Proxy-Authorization: Basic bWU6cEBzcw==") == 2
        for secret in (b"kkkkkkkkkkkk", b"canary", b"X-API-Key", b"Authorization: Bearer"):
            assert secret not in proxy.heard
        assert not any(b"Proxy-Authorization" in request for request in server.requests)
    for secret in ("p@ss", "p%40ss", "bWU6cEBzcw=="):
        assert secret not in caplog.text


async def test_c25_the_certificate_is_checked_through_the_tunnel(
    proxy_process, authority, ca_file, kit, tmp_path, monkeypatch
):
    """
    A proxy that answers itself, as some do to look inside, is refused.
    """
    with (
        proxy_process() as proxy,
        TlsServer(server_context(authority.issue_cert("collector.test"))) as server,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        results = []
        for host, settings in (
            ("collector.test", {}),
            ("other.test", {"ca_file": ca_file}),
            ("collector.test", {"ca_file": ca_file}),
        ):
            transport = kit.transport(f"https://{host}:{server.port}", tmp_path, **settings)
            await transport.open()
            results.append(await transport.send(kit.batch()))
            await transport.close()

    unknown, other, right = results
    assert isinstance(unknown, Paused)
    assert "local issuer" in unknown.reason
    assert isinstance(other, Paused)
    assert "not valid for 'other.test'" in other.reason
    assert right == Accepted()
    assert len(server.requests) == 1


async def test_c25_plain_http_goes_through_the_proxy_as_well(
    proxy_process, serve, client, kit, monkeypatch
):
    async with serve(kit.reply(200, {"via": "proxy"})) as server:
        with proxy_process() as proxy:
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
            one = await client(f"http://collector.test:{server.port}")
            answer = await one.request("GET", "/x")
            await one.close()

            assert b"GET http://collector.test:%d/x" % server.port in proxy.heard
    assert answer.json() == {"via": "proxy"}


# --- which proxy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "url", "port"),
    [
        ({}, "https://c.example", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://c.example", 1),
        ({"HTTPS_PROXY": "http://p:1", "https_proxy": "http://p:2"}, "https://c.example", 2),
        ({"HTTPS_PROXY": "http://p:1", "https_proxy": ""}, "https://c.example", None),
        ({"HTTP_PROXY": "http://p:1"}, "https://c.example", None),
        ({"ALL_PROXY": "http://p:3", "HTTPS_PROXY": "http://p:1"}, "https://c.example", 1),
        ({"ALL_PROXY": "http://p:3"}, "http://c.example", 3),
        ({"ALL_PROXY": "p:3"}, "https://c.example", 3),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "c.example"}, "https://c.example", None),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "example"}, "https://c.example", None),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "ample"}, "https://c.example", 3),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "c.example:443"}, "https://c.example", None),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "c.example:80"}, "https://c.example", 3),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "10.0.0.0/8"}, "https://10.2.3.4", None),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "x, 10.2.3.4"}, "https://10.2.3.4", None),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "10.0.0.0/8"}, "https://11.2.3.4", 3),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "fd00::/8"}, "https://[fd00::1]", None),
        ({"ALL_PROXY": "http://p:3", "NO_PROXY": "10.0.0.0/8"}, "https://c.example", 3),
        ({"ALL_PROXY": "http://p:3"}, "https://[::1]", None),
        ({"ALL_PROXY": "http://p:3"}, "https://[::ffff:127.0.0.1]", None),
        ({"ALL_PROXY": "http://p:3"}, "https://127.8.8.8", None),
        ({"ALL_PROXY": "http://p:3"}, "https://LOCALHOST.", None),
        ({"ALL_PROXY": "http://p:3"}, "https://app.localhost", None),
    ],
)
def test_c25_the_environment_names_the_proxy(monkeypatch, environment, url, port):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    proxy = environment_proxy(URL(url))

    assert (proxy and proxy.url.port) == port


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_c25_a_proxy_that_is_not_there_is_named_without_its_credentials(
    client, monkeypatch, scheme
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        monkeypatch.setenv("ALL_PROXY", f"http://me:hunter2@127.0.0.1:{port}")
        one = await client(f"{scheme}://collector.invalid")

        result = await one.request("GET", "/x")

    assert isinstance(result, Retry)
    assert f"cannot connect to the proxy 127.0.0.1:{port}" in result.reason
    assert "hunter2" not in result.reason


@pytest.mark.parametrize("status", [200, 407, 502])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_c25_a_proxy_that_repeats_its_credentials_does_not_bring_them_into_a_log(
    serve, kit, tmp_path, monkeypatch, caplog, scheme, status
):
    caplog.set_level(logging.DEBUG)
    secrets = ("hunter 2", "hunter%202", "bWU6aHVudGVyIDI=")
    echo = " ".join(("X-Echo:", *secrets))
    async with serve(kit.reply(status, echo.encode(), echo, kind="text/plain")) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://me:hunter%202@127.0.0.1:{proxy.port}")
        transport = kit.transport(f"{scheme}://collector.invalid", tmp_path)
        await transport.open()
        result = await transport.send(kit.batch())
        shown = repr((vars(transport), vars(transport._client)))
        await transport.close()

    assert isinstance(result, (Retry, Paused))
    assert proxy.requests[0].one("Proxy-Authorization") == "Basic bWU6aHVudGVyIDI="
    for secret in secrets:
        assert secret not in result.reason
        assert secret not in caplog.text
        assert secret not in shown


async def test_c25_the_proxy_of_the_environment_is_used_with_its_credentials(
    serve, client, kit, monkeypatch
):
    async with serve(kit.reply(200, {"via": "proxy"})) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        one = await client("http://collector.invalid/base")

        result = await one.request("GET", "/x")

    assert result.json() == {"via": "proxy"}
    assert proxy.requests[0].target == "http://collector.invalid/base/x"
    assert proxy.requests[0].one("Proxy-Authorization") == "Basic bWU6cEBzcw=="
    assert proxy.requests[0].one("Authorization") == f"Bearer {kit.key}"


async def test_c25_https_asks_for_a_tunnel_without_the_key(serve, client, kit, monkeypatch):
    async with serve(kit.reply(502)) as proxy:
        monkeypatch.setenv("all_proxy", f"me:pass@127.0.0.1:{proxy.port}")
        one = await client("https://collector.invalid")

        result = await one.request("GET", "/x")

    (request,) = proxy.requests
    assert (request.method, request.target) == ("CONNECT", "collector.invalid:443")
    assert request.one("Proxy-Authorization") == "Basic bWU6cGFzcw=="
    assert kit.key not in str(request.headers)
    assert result == Retry("the proxy answered 502")


async def test_a_proxy_that_wants_credentials_pauses(serve, client, kit, monkeypatch):
    async with serve(kit.reply(407)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        one = await client("https://collector.invalid")

        result = await one.request("GET", "/x")

    assert isinstance(result, Paused)
    assert "proxy" in result.reason


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_c25_loopback_is_never_proxied(serve, client, kit, monkeypatch, host):
    async with serve() as proxy, serve() as server:
        for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        one = await client(f"http://{host}:{server.port}")

        result = await one.request("GET", "/")

    assert result.status == 200
    assert (proxy.connections, server.connections) == (0, 1)


@pytest.mark.parametrize(
    ("environment", "more"),
    [
        ({"no_proxy": "collector.invalid"}, {}),
        ({"NO_PROXY": "one.example, .invalid"}, {}),
        ({"no_proxy": "*"}, {}),
        ({}, {"use_proxy_environment": False}),
    ],
)
async def test_c25_a_proxy_can_be_ruled_out(serve, client, monkeypatch, environment, more):
    def here(_host, port, **_):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async with serve() as proxy, serve() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        one = await client(
            f"http://collector.invalid:{server.port}", resolver=ThreadResolver(here), **more
        )

        result = await one.request("GET", "/")

    assert result.status == 200
    assert (proxy.connections, server.connections) == (0, 1)


@pytest.mark.parametrize("address", ["socks5://me:secret@127.0.0.1:1080", "http://[", "://"])
async def test_a_proxy_of_another_kind_is_named_and_not_used(client, monkeypatch, caplog, address):
    monkeypatch.setenv("all_proxy", address)

    with caplog.at_level(logging.WARNING, logger="guard_agent.http"):
        one = await client("https://collector.invalid")

    assert one._proxy is None
    assert "use_proxy_environment" in caplog.text
    assert "secret" not in caplog.text

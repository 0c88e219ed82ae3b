"""What the transport says of its last attempt, for operators."""

from __future__ import annotations

import runpy
import time
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme

from guard_agent_http.answers import clock_ahead

_HELPERS = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tls_server.py"))))
NOW = 1_700_000_000.0


async def describe(server, kit, folder, batch=None, **settings):
    transport = kit.transport(server.url, folder, **settings)
    await transport.open()
    try:
        assert transport.describe() == {}
        await transport.send(batch or kit.batch())
        return transport.describe()
    finally:
        await transport.close()


async def test_the_answer_and_what_was_sent_are_described(serve, kit, tmp_path):
    ahead = formatdate(time.time() + 90, usegmt=True)
    async with serve(kit.reply(202, b"", f"Date: {ahead}")) as server:
        said = await describe(server, kit, tmp_path, kit.batch(50, size=100))

    assert said.pop("body_bytes") < 4000  # 50 records of more than 100 bytes each, compressed
    assert 85 < said.pop("clock_ahead") < 95
    assert said == {"answer": "http 202", "encoding": "gzip"}


async def test_a_body_as_it_is_has_no_encoding(serve, kit, tmp_path):
    async with serve(kit.reply(500)) as server:
        said = await describe(server, kit, tmp_path)
        (request,) = server.requests

    assert said == {"answer": "http 500", "body_bytes": len(request.body)}


async def test_without_an_answer_there_is_nothing_to_say(serve, kit, tmp_path):
    async with serve(kit.reply()) as server:
        transport = kit.transport(server.url, tmp_path)
        await transport.open()
        await transport.send(kit.batch())
    said = transport.describe()
    await transport.send(kit.batch())
    await transport.close()

    assert said["answer"] == "http 200"
    assert transport.describe() == {}


async def test_tls_and_the_end_of_the_certificate_are_described(kit, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with _HELPERS.TlsServer(_HELPERS.server_context(authority.issue_cert("localhost"))) as server:
        target = SimpleNamespace(url=f"https://localhost:{server.port}")
        said = await describe(target, kit, tmp_path, ca_file=tmp_path / "ca.pem")

    assert said["tls"] in ("TLSv1.2", "TLSv1.3")
    assert said["certificate_ends"] > time.time()


@pytest.mark.parametrize(
    ("date", "ahead"),
    [
        ("Tue, 14 Nov 2023 22:13:20 GMT", 0.0),
        ("Tue, 14 Nov 2023 22:13:21 GMT", 1.0),
        ("Tue, 14 Nov 2023 21:13:20 GMT", -3600.0),
        (None, None),
        ("", None),
        ("Tue, 99 Foo 2023 22:13:20 GMT", None),
        ("x" * 1000, None),
    ],
)
def test_the_clock_of_the_collector(date, ahead):
    assert clock_ahead(date, NOW) == ahead

"""The gzip of a body, by what is installed."""

from __future__ import annotations

import base64
import importlib
import sys
import zlib

import pytest

from guard_agent_http import compression

BODY = b",".join(b'{"event_type":"suspicious_request","number":%d}' % n for n in range(200))


@pytest.fixture(params=["isal", "zlib"])
def gzip(request, monkeypatch):
    """The function where isal is installed, and where it is not."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    module = importlib.reload(compression)
    assert (module.fast is None) == (request.param == "zlib"), "isal is one of the tools of 'make'"
    yield module.gzip
    monkeypatch.undo()
    importlib.reload(compression)


@pytest.mark.parametrize("is_base64", [False, True])
@pytest.mark.parametrize("body", [b"", b"{}", BODY], ids=["nothing", "little", "much"])
def test_anybody_can_unpack_it(gzip, body, is_base64):
    packed = gzip(body, is_base64=is_base64)

    assert zlib.decompress(packed, wbits=16 + zlib.MAX_WBITS) == body


def test_records_take_a_fraction_of_their_size(gzip):
    assert len(gzip(BODY)) < len(BODY) / 4


def test_base64_takes_little_more_than_what_it_stands_for(gzip):
    noise = b"".join(zlib.crc32(b"%d" % number).to_bytes(4, "big") for number in range(5_000))

    packed = gzip(base64.urlsafe_b64encode(noise), is_base64=True)

    assert len(packed) < 1.05 * len(noise)


def test_the_same_body_gives_the_same_bytes(gzip):
    assert gzip(BODY) == gzip(BODY)


def test_without_isal_zlib_does_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "isal", None)
    try:
        assert importlib.reload(compression).fast is None
    finally:
        monkeypatch.undo()
        importlib.reload(compression)

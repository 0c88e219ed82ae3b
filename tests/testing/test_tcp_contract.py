"""The transport of the README passes the suite, against a peer that speaks no HTTP."""

from __future__ import annotations

import re
import socket
import types
from contextlib import suppress
from pathlib import Path

import orjson

from guard_agent.testing.contracts import LocalTransportContract
from guard_agent.testing.peers import RecordsPeer

README = Path(__file__).resolve().parents[2] / "README.md"
(SOURCE,) = (
    block
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    if "class TcpTransport" in block
)
tcp = types.ModuleType("your_package_tcp")
exec(SOURCE, tcp.__dict__)


class TcpPeer(RecordsPeer):
    """A port that takes connections; what they brought is read when somebody asks."""

    def __init__(self):
        self.port = 0
        self._listener = None
        self._records = []

    def start(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        return self

    def stop(self):
        if self._listener is not None:
            self._read()
            self._listener.close()
            self._listener = None

    @property
    def records(self):
        self._read()
        return self._records

    def _read(self):
        with suppress(BlockingIOError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(10)
                with connection, connection.makefile("rb") as lines:
                    self._records += [orjson.loads(line) for line in lines]


class TestTcpContract(LocalTransportContract):
    plugin = tcp.TcpTransport
    module = tcp

    def make_peer(self):
        return TcpPeer()

    def settings(self):
        return {"host": "127.0.0.1", "port": self.peer.port}

"""The contract of a transport."""

from __future__ import annotations

from guard_agent.testing.contracts import TransportContract
from guard_agent_http import HttpTransport


class TestHttpTransportContract(TransportContract):
    plugin = HttpTransport

    def settings(self):
        return {"endpoint": self.peer.url}

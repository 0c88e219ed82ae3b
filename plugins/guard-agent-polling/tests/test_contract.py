"""The contract of a rule source."""

from __future__ import annotations

from guard_agent.testing.contracts import RuleSourceContract
from guard_agent_polling import PollingSource


class TestPollingContract(RuleSourceContract):
    plugin = PollingSource

    def settings(self):
        return {"endpoint": self.peer.url}

"""The contract of an enricher."""

from __future__ import annotations

from guard_agent.testing.contracts import EnricherContract
from guard_agent_redaction import RedactionEnricher


class TestRedactionContract(EnricherContract):
    plugin = RedactionEnricher


class TestRedactionWithPoliciesContract(EnricherContract):
    plugin = RedactionEnricher

    def settings(self):
        return {
            "fields": {"reason": "truncate:40", "metadata.note": "hash", "user_agent": "drop"},
            "hash_ip": True,
            "hash_key": "0f2a7c4e9b1d8356" * 4,
        }

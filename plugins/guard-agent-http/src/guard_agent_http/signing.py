"""The signature of a body: ``v1=<hex HMAC-SHA256 of the body before compression>``."""

from __future__ import annotations

import hmac

HEADER = "X-Payload-Signature"


def sign(secret: bytes, body: bytes) -> str:
    return f"v1={hmac.new(secret, body, 'sha256').hexdigest()}"


def is_signed(secret: bytes, body: bytes, signature: str) -> bool:
    """Whether ``signature`` is the one of ``body``; takes equally long for every wrong one."""
    return hmac.compare_digest(signature.strip().encode(), sign(secret, body).encode())

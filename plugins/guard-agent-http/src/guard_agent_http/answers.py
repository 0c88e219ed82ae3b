"""What the collector answered, and what follows from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from guard_agent import Accepted, Partial, Paused, Reject, Retry, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multidict import CIMultiDictProxy

    from guard_agent import Batch, SendResult

MAX_RETRY_AFTER = 3600.0
_EXCERPT = 200
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class Answer:
    """One complete response head and as much of the body as was read."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    complete: bool
    """False when the body is longer than the limit or broke off."""
    excerpt: str
    """Beginning of the body for people: one printable line without our own key."""

    @property
    def retry_after(self) -> float | None:
        return parse_retry_after(self.headers.getall("Retry-After", []))

    def json(self) -> Any:
        """
        Parse the body.

        Raises:
            ValueError: with a reason for people, when the body is not complete JSON.
        """
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            # Asked for as it is, so that nothing can unfold to gigabytes here.
            msg = f"the answer is encoded as {one_line(encoding, 40)!r} although that was ruled out"
            raise ValueError(msg)
        if not self.complete:
            msg = f"the answer is longer than {len(self.body)} bytes"
            raise ValueError(msg)
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in _HTML:
            msg = "a web page came back, perhaps from a proxy or a captive portal"
            raise ValueError(msg)
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            msg = "the answer is not JSON, perhaps it comes from a proxy or a captive portal"
            raise ValueError(msg) from None


def one_line(text: str, limit: int = _EXCERPT) -> str:
    """Bring foreign text to one printable line of at most ``limit`` characters."""
    printable = "".join(char if char.isprintable() else " " for char in text[: 16 * limit])
    return " ".join(printable.split())[:limit]


def parse_retry_after(values: Sequence[str], now: float | None = None) -> float | None:
    """
    Seconds to wait after the first usable Retry-After header (RFC 9110, section 10.2.3).

    Anything that is neither a number of seconds nor a date counts as absent. A date in the past is
    0, and nothing is longer than an hour.
    """
    for value in values:
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return min(float(text), MAX_RETRY_AFTER)
        if not 20 <= len(text) <= 64:
            continue  # no date is that short or that long
        try:
            date = parsedate_to_datetime(text)
            moment = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()
        # What the standard library's parser raises for the strings people send.
        except (ValueError, TypeError, IndexError, OverflowError, OSError):
            continue
        return min(max(moment - (time() if now is None else now), 0.0), MAX_RETRY_AFTER)
    return None


def describe(answer: Answer) -> str:
    """Say in one line what came back: ``503 Service Unavailable: <beginning of the body>``."""
    try:
        text = f"{answer.status} {HTTPStatus(answer.status).phrase}"
    except ValueError:
        text = str(answer.status)
    return f"{text}: {answer.excerpt}" if answer.excerpt else text


# Refusals that no change of the payload mends: a person has to act.
_PAUSING = {
    401: "the collector refused the key: check api_key",
    402: "the collector wants a plan that covers this: check the account",
    403: "the collector refused access: check api_key and project_id",
    404: "there is no such place at the collector: check endpoint",
    405: "the place does not take this method: check endpoint",
    406: "the collector cannot answer in JSON: check endpoint",
    407: "the proxy wants credentials: check the proxy settings",
    410: "the collector has given this place up: check endpoint",
    411: "something on the way wants another kind of request: check endpoint and proxies",
    415: "the collector does not take this format: check endpoint, or compression_enabled = false",
    421: "this server does not serve that name: check endpoint",
    426: "the collector wants another protocol: check endpoint",
    431: "the collector finds the headers too long: check api_key and project_id",
    451: "the collector is barred: check endpoint",
}


def clock_ahead(date: str | None, now: float) -> float | None:
    """
    Seconds by which the clock is ahead that wrote ``date`` (RFC 9110, section 6.6.1).

    None without a usable date. It has whole seconds only, so less than one counts as none.
    """
    if date is None or not 20 <= len(date) <= 64:
        return None
    try:
        moment = parsedate_to_datetime(date)
        ahead = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
    return 0.0 if -1 < ahead < 1 else round(ahead, 1)


def status_verdict(  # noqa: PLR0911 - one return per class of statuses
    answer: Answer,
) -> Retry | Paused | None:
    """
    Judge what means the same for every request.

    Returns:
        None for 2xx, and for the 4xx that blame the payload.
    """
    status = answer.status
    if 200 <= status < 300:
        return None
    if status in (429, 503):
        after = answer.retry_after
        # Without Retry-After a 503 is a server in trouble, not one that asks for less.
        throttled = status == 429 or after is not None
        return Retry(describe(answer), after=after, throttled=throttled)
    if status in (408, 425) or 500 <= status < 600:
        return Retry(describe(answer))
    if 300 <= status < 400:
        return Paused(
            f"{answer.status}: redirects{_target(answer)} are never followed: "
            "set endpoint to the final address"
        )
    if status in _PAUSING:
        return Paused(f"{_PAUSING[status]} ({describe(answer)})")
    if 400 <= status < 500:
        return None
    return Retry(f"protocol: not a valid status: {describe(answer)}")


def _target(answer: Answer) -> str:
    # Scheme and host only: path and query of a redirect may carry secrets.
    try:
        parts = urlsplit(answer.headers.get("Location", ""))
        host, port = parts.hostname, parts.port
    except ValueError:
        return ""
    if not parts.scheme or not host:
        return ""
    shown = f"[{host}]" if ":" in host else host
    return " to " + one_line(f"{parts.scheme}://{shown}" + (f":{port}" if port else ""), 100)


def delivery_verdict(  # noqa: PLR0911 - one return per kind of result
    answer: Answer, batch: Batch | None
) -> SendResult:
    """Judge the answer to a batch, or to a status report (None)."""
    verdict = status_verdict(answer)
    if verdict is not None:
        return verdict
    if answer.status == 413:
        return TooLarge(_named_limit(answer))
    if answer.status >= 400:
        return Reject(describe(answer), answer.status)
    if not answer.body and answer.complete:
        return Accepted()
    try:
        said = answer.json()
    except ValueError as error:
        return Retry(f"protocol: {error} ({describe(answer)})")
    if not isinstance(said, dict):
        return Accepted()
    return _item_verdict(said, batch, describe(answer))


def _named_limit(answer: Answer) -> int | None:
    try:
        said = answer.json()
    except ValueError:
        return None
    if isinstance(said, dict):
        for key in ("limit", "max_bytes", "max_size", "max_body_bytes"):
            value = said.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _item_verdict(said: dict[str, Any], batch: Batch | None, description: str) -> SendResult:
    """
    Read a 2xx that says more than yes.

    A record that is not mentioned was accepted, unless the answer as a whole says ``success:
    false`` or complains about something that cannot be matched to a record: then it is kept, since
    the collector knows a record that comes twice by its idempotency key.
    """
    failed = said.get("success") is False
    errors = said.get("errors")
    listed = said.get("results")
    accepted: set[int] = set()
    rejected: dict[int, str] = {}
    retry: set[int] = set()
    unmatched = False

    records = () if batch is None else batch.records
    places = {record.id: index for index, record in enumerate(records)}
    for place, state, reason in _items(listed, errors, places, len(records)):
        if state == "accepted":
            accepted.update(() if place is None else (place,))
        elif place is None:
            unmatched = True
        elif state == "rejected":
            rejected[place] = reason
        else:
            retry.add(place)

    if not failed and not errors and not rejected and not retry and not unmatched:
        return Accepted()
    if not accepted and not rejected and not retry:
        return Retry(f"the collector did not take it: {description}")
    if failed or unmatched:
        retry.update(range(len(records)))
        retry -= accepted
    retry.difference_update(rejected)
    if not rejected and not retry:
        return Accepted()
    return Partial(rejected=rejected, retry=frozenset(retry))


def _items(
    listed: Any, errors: Any, places: dict[str, int], count: int
) -> Iterator[tuple[int | None, str, str]]:
    """Yield (position or None, state, reason) of everything the answer says about single items."""
    results = listed if isinstance(listed, list) else []
    # Without any key to match by, as many results as records are meant in their order.
    positional = len(results) == count and not any(
        isinstance(item, dict) and item.keys() & {"index", "id", "idempotency_key"}
        for item in results
    )
    for number, item in enumerate(results):
        if isinstance(item, dict):
            place = number if positional else _place(item, places, count)
            state = _state(item)
            if state is not None:
                yield place, state, _reason(item)
    if isinstance(errors, dict):
        for key, reason in errors.items():
            yield places.get(key), "rejected", _text(reason)
        return
    if not isinstance(errors, list):
        errors = [errors] if errors else []
    for item in errors:
        if isinstance(item, dict):
            yield _place(item, places, count), _state(item) or "rejected", _reason(item)
        else:
            yield None, "rejected", _text(item)


def _place(item: dict[str, Any], places: dict[str, int], count: int) -> int | None:
    index = item.get("index")
    if isinstance(index, int) and not isinstance(index, bool):
        return index if 0 <= index < count else None
    for key in ("idempotency_key", "id"):
        value = item.get(key)
        if isinstance(value, str) and value in places:
            return places[value]
    return None


def _state(item: dict[str, Any]) -> str | None:
    status = item.get("status")
    if isinstance(status, str) and status.isascii() and status.isdigit() and len(status) == 3:
        status = int(status)
    if isinstance(status, int) and not isinstance(status, bool):
        if 200 <= status < 300 or status == 409:
            return "accepted"  # 409: it is there already
        return "rejected" if 400 <= status < 500 and status not in (408, 425, 429) else "retry"
    if isinstance(status, str):
        word = status.lower()
        if word in ("accepted", "ok", "created", "duplicate"):
            return "accepted"
        # A word nobody agreed on must not cost a record.
        return "rejected" if word in ("rejected", "invalid") else "retry"
    return "rejected" if item.get("error") else None


def _reason(item: dict[str, Any]) -> str:
    for key in ("error", "reason", "message", "detail"):
        if item.get(key):
            return _text(item[key])
    return _text(item.get("status"))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("message") or value.get("detail") or "rejected"
    return one_line(str(value)) or "rejected"

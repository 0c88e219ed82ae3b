"""
What follows from an answer of the collector.

The specification of OTLP calls 429, 502, 503 and 504 retryable and everything else permanent.
Permanent does not mean lost here: what no change of the payload mends makes the agent pause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard_agent import Accepted, Partial, Paused, Reject, Retry, TooLarge
from guard_agent_http import describe, status_verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from guard_agent import SendResult
    from guard_agent_http import Answer
    from guard_agent_otlp.encoding import Encoding

_RETRYABLE = (429, 502, 503, 504)
_PAUSING = {
    401: "the collector refused the credentials: check headers",
    403: "the collector refused access: check headers",
    404: "there is no such place at the collector: check endpoint, or set logs_endpoint",
    406: "the collector cannot answer in this encoding: check encoding",
    415: "the collector does not take this format: check encoding, or compression_enabled = false",
    431: "the collector finds the headers too long: check headers",
}


def verdict(
    answer: Answer, count: int, encoding: Encoding, quote: Callable[[str], str]
) -> tuple[SendResult, str]:
    """
    Judge the answer to ``count`` records.

    ``quote`` makes foreign text fit to be shown.

    Returns:
        The result, and what a collector that took everything says nevertheless, or an empty text.
    """
    refusal = _refusal(answer)
    if refusal is not None:
        return refusal, ""
    if not answer.body and answer.complete:
        return Accepted(), ""
    try:
        rejected, said = encoding.partial_success(answer)
    except ValueError as error:
        return Retry(f"protocol: {error} ({describe(answer)})"), ""
    message = quote(said)
    if rejected == 0:
        return Accepted(), message
    reason = message or "no reason given"
    if rejected >= count:
        # Nothing was taken, so nothing comes twice when the core looks for those at fault.
        return Reject(f"the collector rejected every record: {reason}"), ""
    # It is not said which, and what it took must not be sent again.
    reason = f"the collector rejected {rejected} of {count} records, not saying which: {reason}"
    return Partial(rejected=dict.fromkeys(range(count), reason)), ""


def _refusal(answer: Answer) -> SendResult | None:  # noqa: PLR0911 - one per class of statuses
    status = answer.status
    if status in _RETRYABLE:
        after = answer.retry_after
        # Without Retry-After a 503 is a server in trouble, not one that asks for less.
        throttled = status == 429 or (status == 503 and after is not None)
        return Retry(describe(answer), after=after, throttled=throttled)
    if 500 <= status < 600:
        return Paused(
            f"the collector failed in a way that is not to be retried: {describe(answer)}"
        )
    if status in _PAUSING:
        return Paused(f"{_PAUSING[status]} ({describe(answer)})")
    known = status_verdict(answer)
    if known is not None:
        return known
    if status == 413:
        return TooLarge()
    if status >= 400:
        return Reject(describe(answer), status)
    return None

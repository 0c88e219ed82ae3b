from __future__ import annotations

import pytest
from pydantic import ValidationError

from guard_agent import Stage
from guard_agent_redaction import RedactionEnricher, RedactionSettings


def test_further_names_are_redacted_in_any_spelling(enricher):
    redact = enricher(names=["Badge-Number"]).bind("event")
    assert redact({"badgeNumber": "7", "reason": "badge_number=7&x=1", "badge": "7"}) == {
        "badgeNumber": "[REDACTED]",
        "reason": "badge_number=[REDACTED]&x=1",
        "badge": "7",
    }


def test_kept_names_are_not_redacted(enricher):
    redact = enricher(keep=["page-token"]).bind("event")
    assert redact({"pageToken": "abc123", "x": "page_token=abc123", "token": "abc123"}) == {
        "pageToken": "abc123",
        "x": "page_token=abc123",
        "token": "[REDACTED]",
    }


def test_keep_is_about_names_not_shapes(enricher):
    redact = enricher(keep=["token"]).bind("event")
    assert redact({"token": "Bearer abc123"}) == {"token": "Bearer [REDACTED]"}


def test_keep_does_not_overrule_sensitive_headers(enricher):
    redact = enricher(sensitive_headers=["X-Badge", "cookie"], keep=["x_badge", "Cookie"])
    assert redact.bind("event")({"x-badge": "7", "COOKIE": "a", "r": "X-Badge: 7 8 9\nA: 1"}) == {
        "x-badge": "[REDACTED]",
        "COOKIE": "[REDACTED]",
        "r": "X-Badge: [REDACTED]\nA: 1",
    }


def test_built_in_names_hold_without_sensitive_headers(enricher):
    redact = enricher(sensitive_headers=[]).bind("event")
    assert redact({"authorization": "abc"}) == {"authorization": "[REDACTED]"}


def test_patterns_are_redacted_in_every_text(enricher):
    redact = enricher(patterns=[r"EMP-\d+", r"[A-Z]{8}"]).bind("event")
    fields = {"reason": "by EMP-1234 and EMP-5", "m": ['{"a": "EMP-77"}'], "x": "token=abc"}
    expected = {
        "reason": "by [REDACTED] and [REDACTED]",
        "m": ['{"a":"[REDACTED]"}'],
        "x": "token=[REDACTED]",
    }
    assert redact(fields) == expected
    assert redact(fields) == expected


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"patterns": ["ok", "(open"]}, "patterns", "item 1 is not a regular expression"),
        ({"patterns": ["a*"]}, "patterns", "item 0 matches the empty text"),
        ({"names": ["--"]}, "names", "item 0 holds no letter or digit"),
        ({"keep": ["a", ""]}, "keep", "item 1 holds no letter or digit"),
        ({"names": "password"}, "names", "list"),
        ({"nmaes": []}, "nmaes", "not permitted"),
    ],
)
def test_wrong_settings_name_the_field(settings, field, message):
    with pytest.raises(ValidationError) as caught:
        RedactionSettings(**settings)
    (error,) = caught.value.errors()
    assert error["loc"][0] == field
    assert message in error["msg"]


def test_its_place_is_where_secrets_are_removed():
    assert RedactionEnricher.stage is Stage.REDACT

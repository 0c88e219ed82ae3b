from __future__ import annotations

import copy

import pytest

from guard_agent.plugins.truncate import MARKER, TruncateEnricher, TruncateSettings
from guard_agent.testing.records import make_context


def bind(kind="event", max_length=5, **config):
    enricher = TruncateEnricher(TruncateSettings(max_length=max_length), make_context(**config))
    return enricher.bind(kind)


def test_a_long_text_is_cut_and_marked():
    fields = bind()({"reason": "123456", "metadata": {}})

    assert fields == {
        "reason": "12345...[TRUNCATED]",
        "metadata": {"guard.truncated": ["reason"]},
    }


def test_a_text_of_exactly_the_limit_stays():
    fields = {"reason": "12345", "metadata": {"a": ["12345"]}}
    before = copy.deepcopy(fields)

    assert bind()(fields) == before


def test_the_limit_counts_characters():
    fields = bind()({"reason": "\u00fc\U0001f6e1\u4e2d\u6587\u5b57", "endpoint": "\u00fc" * 6})

    assert fields["reason"] == "\u00fc\U0001f6e1\u4e2d\u6587\u5b57"
    assert fields["endpoint"] == "\u00fc" * 5 + MARKER


def test_nested_texts_are_cut_wherever_they_are():
    fields = bind()(
        {
            "metadata": {
                "headers": {"accept": "123456", "host": "1"},
                "list": ["1", ["123456"], {"deep": "123456"}],
                "number": 1234567,
                "nothing": None,
            }
        }
    )

    assert fields["metadata"] == {
        "headers": {"accept": "12345" + MARKER, "host": "1"},
        "list": ["1", ["12345" + MARKER], {"deep": "12345" + MARKER}],
        "number": 1234567,
        "nothing": None,
        "guard.truncated": [
            "metadata.headers.accept",
            "metadata.list.1.0",
            "metadata.list.2.deep",
        ],
    }


@pytest.mark.parametrize(
    "name", ["idempotency_key", "event_type", "metric_type", "ip_address", "method"]
)
def test_what_identifies_a_record_stays_whole(name):
    fields = {name: "x" * 50, "metadata": {}}

    assert bind()(fields) == {name: "x" * 50, "metadata": {}}


def test_the_same_name_further_down_is_no_exception():
    fields = bind()({"metadata": {"method": "123456"}})

    assert fields["metadata"]["method"] == "12345" + MARKER


def test_limit_zero_leaves_only_the_marker():
    fields = bind(max_length=0)({"reason": "x", "country": "", "metadata": {}})

    assert fields["reason"] == MARKER
    assert fields["country"] == ""


def test_the_limit_comes_from_the_setting_before_the_config():
    def reason(**options):
        return bind(**options)({"reason": "x" * 20, "metadata": {}})["reason"]

    assert reason(max_length=None, max_payload_size=10) == "x" * 10 + MARKER
    assert reason(max_length=3, max_payload_size=10) == "xxx" + MARKER


def test_a_metric_is_marked_in_its_tags():
    fields = bind("metric")({"endpoint": "/123456", "tags": {"b": "123456"}})

    assert fields["tags"] == {
        "b": "12345" + MARKER,
        "guard.truncated": "endpoint,tags.b",
    }


def test_missing_metadata_is_made_for_the_mark():
    assert bind()({"reason": "123456", "metadata": None})["metadata"] == {
        "guard.truncated": ["reason"]
    }
    assert bind("metric")({"endpoint": "123456"})["tags"] == {"guard.truncated": "endpoint"}


def test_metadata_of_another_shape_is_cut_without_a_mark():
    assert bind()({"metadata": ["123456"]}) == {"metadata": ["12345" + MARKER]}


def test_the_marks_are_bounded_in_number_and_length():
    fields = bind()({"metadata": {f"{n:03}" + "k" * 5000: "123456" for n in range(100)}})
    marks = fields["metadata"].pop("guard.truncated")

    assert len(marks) == 20
    assert max(len(mark) for mark in marks) == 100
    assert set(fields["metadata"].values()) == {"12345" + MARKER}


def test_a_record_without_long_texts_is_not_touched():
    fields = {"reason": "1", "metadata": {"headers": {"a": "1"}, "list": ["1"]}, "tags": {}}
    metadata, headers = fields["metadata"], fields["metadata"]["headers"]

    result = bind()(fields)

    assert result is fields
    assert result["metadata"] is metadata
    assert result["metadata"]["headers"] is headers
    assert "guard.truncated" not in metadata

"""What is no secret stays: measured over a corpus of realistic records."""

from __future__ import annotations

import orjson

from guard_agent import SecurityMetric
from guard_agent.core.intake.pipeline import Pipeline

AMOUNT = 5_000


def changed(pipeline, record):
    """The fields that redaction changed, with their former value."""
    kind = "metric" if isinstance(record, SecurityMetric) else "event"
    before = orjson.loads(Pipeline(()).encode(kind, record).payload)
    after = orjson.loads(pipeline.encode(kind, record).payload)
    del before["idempotency_key"], after["idempotency_key"]
    return {name: before[name] for name in before if after.get(name) != before[name]}


def test_less_than_one_in_a_hundred_benign_records_is_changed(benign, make_pipeline):
    pipeline = make_pipeline()
    corpus = benign.Corpus(7)
    records = [*corpus.events(AMOUNT), *corpus.metrics(AMOUNT // 5)]

    wrong = [difference for record in records if (difference := changed(pipeline, record))]

    assert len(wrong) <= len(records) / 100, wrong[:5]


def test_each_kind_of_benign_text_stays(benign, make_pipeline):
    """
    One text of each kind, so that a rare kind cannot hide behind the frequent ones.
    """
    pipeline = make_pipeline()
    corpus = benign.Corpus(8)
    templates = [*benign.REASONS, *benign.PATHS, *benign.AGENTS, *benign.ATTACKS]
    event = next(corpus.events(1))
    wrong = []
    for template in templates:
        record = event.model_copy(update={"reason": corpus.fill(template), "metadata": {}})
        if "reason" in changed(pipeline, record):
            wrong.append(record.reason)
    for key, template in [*benign.KEYS, *benign.HEADERS]:
        record = event.model_copy(update={"metadata": {key: corpus.fill(template)}})
        if "metadata" in changed(pipeline, record):
            wrong.append(record.metadata)

    assert wrong == []

"""
The quick way through the enrichers, for what nearly every record is.

Enrichers that treat each text for itself say so (`TextRules`). Then one walk over a record copies
it and sees whether everything in it is known: texts that stay as they are, and sets of names with
what is replaced under them. Both are remembered, because agents, paths and the names of headers
come again and again. Whatever is unusual in a record sends it the long way, which gives the same
result.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

from guard_agent.core.intake.signals import ends_the_application
from guard_agent.core.models import SecurityEvent, SecurityMetric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from guard_agent.core.interfaces import Fields, Kind, TextRules

    GlanceFunction = Callable[[dict[str, Any]], Fields | None]
    _Replaced = tuple[tuple[str, str], ...]

MAX_NAMES = 60
"""In one object."""
MAX_TEXT = 1_024
"""Characters of one text, and of all names of one object."""
MAX_DEPTH = 2
MAX_NESTED = 4
"""Objects in one object."""
MAX_UNKNOWN = 24
"""Texts of one record that have to be looked at."""

_REMEMBERED = 2_000
_REMEMBERED_TEXT = 256
_REMEMBERED_NAMES = 1_024
_MOST = 10**12
_LEAST = -(10**12)
_ZONES = frozenset({timezone, type(None)})


class Glance:
    """
    What is known of names and texts, and the functions that look at records with it.

    Remembers only what all rules leave as it is. Safe to use from several threads: what is
    remembered is only ever added to or emptied.
    """

    def __init__(self, kind: Kind, rules: Iterable[TextRules]) -> None:
        self._rules = tuple(rules)
        self._keeps = tuple(one.keeps for one in self._rules)
        self._known: set[str] = set()
        self._replaced: dict[tuple[str, ...], _Replaced] = {}
        model = SecurityEvent if kind == "event" else SecurityMetric
        usable = self._learn_names(tuple(model.model_fields)) == ()
        compiled = self._look_at_events() if kind == "event" else self._look_at_metrics()
        self.copy: GlanceFunction = compiled if usable else _pass_on
        """
        Given the ``__dict__`` of a model without extra fields: the fields as all enrichers leave
        them, or None when that takes more than a glance. The timestamp stays a plain datetime and
        the key of an event a UUID. Calls no code of foreign objects.
        """

    def _look_at_events(self) -> GlanceFunction:
        known, nested, passes = self._known, self._nested, self._pass

        def copy(values: dict[str, Any]) -> Fields | None:
            fields = values.copy()
            try:
                (
                    key,
                    moment,
                    event_type,
                    ip_address,
                    country,
                    user_agent,
                    action_taken,
                    reason,
                    endpoint,
                    method,
                    status_code,
                    response_time,
                    decorator_type,
                    rule_type,
                    pattern_matched,
                    handler_name,
                    metadata,
                ) = fields.values()
            except ValueError:  # one was deleted
                return None
            if (
                type(key) is not UUID
                or type(moment) is not datetime
                or type(moment.tzinfo) not in _ZONES
                or type(event_type) is not str
                or type(metadata) is not dict
                or (status_code is not None and type(status_code) is not int)
                or (response_time is not None and type(response_time) is not float)
                # Also false for what is not finite.
                or not _LEAST < (status_code or 0) < _MOST
                or not _LEAST < (response_time or 0) < _MOST
            ):
                return None
            unknown: list[str] = []
            for text in (
                event_type,
                ip_address,
                country,
                user_agent,
                action_taken,
                reason,
                endpoint,
                method,
                decorator_type,
                rule_type,
                pattern_matched,
                handler_name,
            ):
                if text is not None:
                    if type(text) is not str:
                        return None
                    if text not in known:
                        unknown.append(text)
            if metadata:
                inner = nested(metadata, MAX_DEPTH, unknown)
                if inner is None:
                    return None
                fields["metadata"] = inner
            return fields if not unknown or passes(unknown) else None

        return copy

    def _look_at_metrics(self) -> GlanceFunction:
        known, nested, passes = self._known, self._nested, self._pass

        def copy(values: dict[str, Any]) -> Fields | None:
            fields = values.copy()
            try:
                moment, metric_type, value, endpoint, tags = fields.values()
            except ValueError:
                return None
            if (
                type(moment) is not datetime
                or type(moment.tzinfo) not in _ZONES
                or type(metric_type) is not str
                or (type(value) is not float and type(value) is not int)
                or not _LEAST < value < _MOST
                or type(tags) is not dict
            ):
                return None
            unknown: list[str] = []
            if metric_type not in known:
                unknown.append(metric_type)
            if endpoint is not None:
                if type(endpoint) is not str:
                    return None
                if endpoint not in known:
                    unknown.append(endpoint)
            if tags:
                inner = nested(tags, MAX_DEPTH, unknown)
                if inner is None:
                    return None
                fields["tags"] = inner
            return fields if not unknown or passes(unknown) else None

        return copy

    def _nested(  # noqa: C901 - in the path of every record: a call costs as much as a text
        self, source: dict[str, Any], depth: int, unknown: list[str]
    ) -> Fields | None:
        """The copy of an object that may have ``depth - 1`` levels of objects in it."""
        if len(source) > MAX_NAMES:
            return None
        copy = source.copy()
        names = tuple(copy)
        replaced = self._replaced.get(names)
        if replaced is None:
            replaced = self._learn_names(names)
            if replaced is None:
                return None
        for name, marker in replaced:
            value = copy[name]
            if type(value) is str:
                if value:
                    copy[name] = marker
            elif value is not None and type(value) is not bool:
                return None
        known = self._known
        for value in copy.values():
            if type(value) is str:
                if value not in known:
                    unknown.append(value)
            elif value is not None:
                return self._mixed(copy, depth, unknown)
        return copy

    def _mixed(self, copy: Fields, depth: int, unknown: list[str]) -> Fields | None:
        """The rest of `_nested` for an object with other values than texts."""
        known = self._known
        objects = 0
        for name, value in copy.items():
            kind = type(value)
            if kind is str:
                if value not in known:
                    unknown.append(value)
            elif value is None or kind is bool:
                continue
            elif kind is int or kind is float:
                if not _LEAST < value < _MOST:
                    return None
            elif kind is dict and depth > 1 and objects < MAX_NESTED:
                objects += 1
                inner = self._nested(value, depth - 1, unknown)
                if inner is None:
                    return None
                copy[name] = inner
            else:
                return None
        return copy

    def _learn_names(self, names: tuple[Any, ...]) -> _Replaced | None:
        """What is replaced under which of ``names``; None when only the enrichers can tell."""
        if not all(type(name) is str for name in names) or sum(map(len, names)) > MAX_TEXT:
            return None
        replaced: dict[str, str] = {}
        try:
            for rules in self._rules:
                found: Mapping[str, str] | None = rules.replaced(names)
                if found is None:
                    return None
                for name, marker in found.items():
                    replaced.setdefault(name, marker)
        except (Exception, SystemExit):  # of a plugin; the long way reports it
            if ends_the_application():
                raise
            return None
        if replaced and not self._pass(list(replaced.values())):
            return None
        if len(self._replaced) >= _REMEMBERED_NAMES:
            self._replaced.clear()
        return self._replaced.setdefault(names, tuple(replaced.items()))

    def _pass(self, texts: list[str]) -> bool:
        """Whether all rules leave all ``texts`` as they are."""
        if len(texts) > MAX_UNKNOWN:
            return False
        size = len("".join(texts))
        if size > MAX_TEXT and max(map(len, texts)) > MAX_TEXT:
            return False
        try:
            for keeps in self._keeps:
                if not keeps(texts):
                    return False
        except (Exception, SystemExit):  # of a plugin; the long way reports it
            if ends_the_application():
                raise
            return False
        known = self._known
        if len(known) >= _REMEMBERED:
            known.clear()
        if size > MAX_TEXT:
            texts = [text for text in texts if len(text) <= _REMEMBERED_TEXT]
        known.update(texts)
        return True


def _pass_on(values: dict[str, Any]) -> Fields | None:  # noqa: ARG001 - it is not looked at
    """For kinds of which the rules say too little."""
    return None

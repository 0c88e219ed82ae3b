"""
What the owner decided about single fields, by their path.

A path is dotted, as in ``metadata.user.email``; ``*`` stands for any one name. Names compare as
everywhere in this plugin: case, separators and camel case make no difference. Lists on the way are
passed through: the path above also means the address of each of several users. A key that has
dots itself (``guard.path``) counts as the names between them. A path that is longer than another
goes before it, and a name before ``*``.

Paths are parsed once, when the agent is composed.
"""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from guard_agent_redaction.names import squash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guard_agent import Fields
    from guard_agent_redaction.pseudonyms import Pseudonyms
    from guard_agent_redaction.redactor import Redactor

MARKER = "...[TRUNCATED]"
PROTECTED = frozenset({"timestamp", "idempotency_key", "event_type", "metric_type", "value"})
"""Without these a record is none: no policy changes them, no allow-list has to name them."""

_PROTECTED_NAMES = frozenset(map(squash, PROTECTED))

_TRUNCATE = re.compile(r"truncate:([0-9]{1,6})")
_MEMO_SIZE = 2048
_MEMO_KEY = 128


class Action(Enum):
    KEEP = "keep"
    DROP = "drop"
    HASH = "hash"
    TRUNCATE = "truncate"


class Policy(NamedTuple):
    action: Action
    length: int = 0
    """Characters, for `Action.TRUNCATE`."""


def parse_policy(text: str) -> Policy:
    """
    The policy that a setting names.

    Raises:
        ValueError: naming those that there are.
    """
    if match := _TRUNCATE.fullmatch(text):
        return Policy(Action.TRUNCATE, int(match[1]))
    try:
        action = Action(text)
    except ValueError:
        action = Action.TRUNCATE
    if action is Action.TRUNCATE:
        msg = "there is no such policy; choose 'keep', 'drop', 'hash' or 'truncate:<characters>'"
        raise ValueError(msg) from None
    return Policy(action)


def parse_path(text: str) -> tuple[str, ...]:
    """
    The names in a path, in the form in which they compare.

    Raises:
        ValueError: saying what is wrong with it.
    """
    names = tuple(part if part == "*" else squash(part) for part in text.split("."))
    if "" in names:
        msg = "is no path of a field; write names with dots between them, as in metadata.user"
        raise ValueError(msg)
    return names


def check_changeable(path: str) -> None:
    """
    Refuse the path of a field that no policy can change.

    Raises:
        ValueError: naming those fields.
    """
    names = parse_path(path)
    if len(names) == 1 and names[0] in _PROTECTED_NAMES:
        msg = f"no policy can change what tells records apart: {', '.join(sorted(PROTECTED))}"
        raise ValueError(msg)


class _Node:
    """What is decided about a field and about those in it."""

    __slots__ = ("allowed", "any", "names", "policy")

    def __init__(self) -> None:
        self.names: dict[str, _Node] = {}
        self.any: _Node | None = None
        self.policy: Policy | None = None
        self.allowed = False

    def grow(self, path: Iterable[str]) -> _Node:
        node = self
        for name in path:
            if name == "*":
                node.any = node.any or _Node()
                node = node.any
            else:
                node = node.names.setdefault(name, _Node())
        return node

    @property
    def is_leaf(self) -> bool:
        return not self.names and self.any is None


class _State:
    """Where in the paths a container stands, and what is known about keys in it."""

    __slots__ = ("known", "nodes")

    def __init__(self, nodes: list[_Node]) -> None:
        self.nodes = nodes
        self.known: dict[str, _Decided] = {}


class _Decided(NamedTuple):
    policy: Policy | None
    allowed: bool
    inner: _State | None
    """For what is in the field, None when nothing is decided about that."""


_UNDECIDED = _Decided(None, allowed=False, inner=None)


class Settled:
    """A value that is decided: the redactor takes it out of here and looks no further."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Policies:
    """
    Applies policies and the allow-list to a record before the rest of it is redacted.

    ``fields`` maps paths to policies. ``allow`` are the paths that may stay, besides those with a
    policy that keeps something of them; None lets all stay.
    """

    def __init__(
        self,
        fields: Mapping[str, Policy],
        allow: Iterable[str] | None,
        pseudonyms: Pseudonyms | None,
        *,
        hash_ip: bool = False,
    ) -> None:
        root = _Node()
        self._state = _State([root])
        self._restricted = allow is not None
        self._pseudonyms = pseudonyms
        for path in allow or ():
            root.grow(parse_path(path)).allowed = True
        for path, policy in fields.items():
            node = root.grow(parse_path(path))
            node.policy = policy
            node.allowed = policy.action is not Action.DROP
        if hash_ip:
            node = root.grow(("ipaddress",))
            node.policy = node.policy or Policy(Action.HASH)

    def apply(self, fields: Fields, redactor: Redactor) -> None:
        """Change ``fields`` in place; what is decided becomes `Settled`."""
        self._dict(fields, self._state, redactor, restricted=self._restricted, top=True)

    def _dict(
        self,
        data: dict[str, Any],
        state: _State,
        redactor: Redactor,
        *,
        restricted: bool,
        top: bool = False,
    ) -> None:
        known = state.known
        for key, value in [*data.items()]:
            decided = known.get(key) or self._decide(state, key)
            if decided is _UNDECIDED and not restricted:
                continue
            if top and key in PROTECTED:
                continue
            allowed = decided.allowed or not restricted
            policy = decided.policy
            if policy is not None and policy.action is Action.DROP:
                # What a longer path keeps of it stays.
                allowed, policy = False, None
            if type(value) is dict or type(value) is list:
                if decided.inner is not None:
                    self._container(value, decided.inner, redactor, restricted=not allowed)
                elif not allowed:
                    del data[key]
                    continue
            elif not allowed:
                del data[key]
                continue
            if policy is not None:
                data[key] = self._carry_out(policy, key, value, redactor)

    def _container(
        self, value: Any, state: _State, redactor: Redactor, *, restricted: bool
    ) -> None:
        if type(value) is dict:
            self._dict(value, state, redactor, restricted=restricted)
            return
        if restricted:
            value[:] = [item for item in value if type(item) is dict or type(item) is list]
        for item in value:
            if type(item) is dict or type(item) is list:
                self._container(item, state, redactor, restricted=restricted)

    @staticmethod
    def _decide(state: _State, key: str) -> _Decided:
        """
        What holds for ``key`` and for what is in it; remembered.

        What is decided about ``guard`` also holds for the key ``guard.path``.
        """
        nodes = state.nodes
        deciding: list[_Node] = []  # the longest path first
        for name in key[:_MEMO_KEY].split("."):
            squashed = squash(name)
            named = [node.names[squashed] for node in nodes if squashed in node.names]
            nodes = [*named, *(node.any for node in nodes if node.any is not None)]
            if not nodes:
                break
            deciding = [*nodes, *deciding]
        decided = _UNDECIDED
        if deciding:
            inner = [node for node in nodes if not node.is_leaf]
            decided = _Decided(
                next((node.policy for node in deciding if node.policy), None),
                any(node.allowed for node in deciding),
                _State(inner) if inner else None,
            )
        if len(key) <= _MEMO_KEY:
            if len(state.known) >= _MEMO_SIZE:
                state.known.clear()
            state.known[key] = decided
        return decided

    def _carry_out(self, policy: Policy, key: str, value: Any, redactor: Redactor) -> Any:
        if policy.action is Action.HASH:
            value = self._hashed(value)
            # The keys of an object are still to be redacted.
            return Settled(redactor.value(value))
        if policy.action is Action.KEEP:
            return value if redactor.is_fixed(key) else Settled(redactor.value(value))
        if redactor.is_secret(key):
            return value
        return Settled(_truncated(redactor.value(value), policy.length))

    def _hashed(self, value: Any) -> Any:
        if value is None or value == "" or type(value) is Settled:
            return value
        if type(value) is dict:
            return {key: self._hashed(item) for key, item in value.items()}
        if type(value) is list:
            return [self._hashed(item) for item in value]
        if self._pseudonyms is None:  # the settings ask for a key, so this is for the type checker
            return None
        return Settled(self._pseudonyms.of(value if type(value) is str else json.dumps(value)))


def _truncated(value: Any, length: int) -> Any:
    if type(value) is str:
        return value if len(value) <= length else value[:length] + MARKER
    if type(value) is dict:
        return {key: _truncated(item, length) for key, item in value.items()}
    if type(value) is list:
        return [_truncated(item, length) for item in value]
    return value

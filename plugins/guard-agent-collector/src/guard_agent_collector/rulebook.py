"""Rules: checked as an agent checks them, published, and who has them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from datetime import datetime, timezone
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING, Any

import orjson

from guard_agent.rules import RuleChecker, RulesRefused
from guard_agent_collector.feed import Feed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guard_agent_collector.storage import Publication, Sender, Storage

MAX_DOCUMENT = 256 * 1024
DEFAULT_ID = "local"
_MAX_KNOWN = 1000


class Rulebook:
    """The rules that are out, and which agents have them. On the loop of the server."""

    def __init__(
        self, storage: Storage, writing: Callable[..., Awaitable[Any]], current: Publication | None
    ) -> None:
        self.feed = Feed()
        self.current = current
        self.watching: Counter[tuple[str, str]] = Counter()
        self._checker = RuleChecker()
        self._storage = storage
        self._writing = writing
        self._asked: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._has: OrderedDict[tuple[str, str], int] = OrderedDict()

    @property
    def etag(self) -> str:
        return self.current.etag if self.current else ""

    async def check(self, text: str, signature: str | None) -> dict[str, Any]:
        """
        Look at a document without publishing it.

        Returns:
            ``text`` as it would be published, ``left_out`` with patterns that are too slow.

        Raises:
            RulesRefused: what is wrong.
        """
        prepared, _, left_out = await self._prepared(text, signature)
        return {"text": prepared, "left_out": left_out}

    async def publish(self, text: str, signature: str | None) -> dict[str, Any]:
        """
        Publish a document, and tell everybody who watches.

        Without a signature it gets the next version, and the time as its timestamp; with one it
        goes out byte for byte.

        Raises:
            RulesRefused: what is wrong.
        """
        prepared, (rule_id, version), left_out = await self._prepared(text, signature)
        body = prepared.encode()
        digest = sha256(body).hexdigest()[:16]
        self.current = await self._writing(
            self._storage.publish, rule_id, version, f'"{version}-{digest}"', signature, body
        )
        self.feed.tell()
        return {"text": prepared, "left_out": left_out, "rule_id": rule_id, "version": version}

    async def _prepared(
        self, text: str, signature: str | None
    ) -> tuple[str, tuple[str, int], list[str]]:
        if len(text) > MAX_DOCUMENT:
            msg = f"the document is longer than {MAX_DOCUMENT} characters"
            raise RulesRefused(msg)
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            msg = f"the document is not JSON: {error}"
            raise RulesRefused(msg) from None
        if not isinstance(document, dict):
            msg = "the document is not a JSON object"
            raise RulesRefused(msg)
        if signature is None:
            document = self._numbered(document)
            text = orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
        rules, left_out = await self._checker.check(document)
        return text, (rules.rule_id, rules.version), left_out

    def _numbered(self, document: dict[str, Any]) -> dict[str, Any]:
        rule_id = document.get("rule_id", DEFAULT_ID)
        version = document.get("version", 1)
        known = self.current
        if known is not None and known.rule_id == rule_id and isinstance(version, int):
            version = max(version, known.version + 1)
        moment = datetime.now(timezone.utc).isoformat(timespec="seconds")
        head = {"rule_id": rule_id, "version": version, "timestamp": moment}
        return {**head, **{name: value for name, value in document.items() if name not in head}}

    async def fetched(self, sender: Sender) -> bool:
        """Remember that an agent has the current rules; returns whether that is news."""
        who = (sender.agent, sender.project)
        _remember(self._asked, who, time())
        if self.current is None or self._has.get(who) == self.current.id:
            return False
        _remember(self._has, who, self.current.id)
        return bool(await self._writing(self._storage.note_fetched, self.current.id, sender))

    def asked(self, agent: str, project: str) -> float | None:
        """When an agent last asked for rules."""
        return self._asked.get((agent, project))


def _remember(known: OrderedDict[tuple[str, str], Any], who: tuple[str, str], what: Any) -> None:
    known[who] = what
    known.move_to_end(who)
    while len(known) > _MAX_KNOWN:
        known.popitem(last=False)

"""
The five seams of guard-agent, each defined once.

A plugin implements one or more of `Transport`, `BufferStore`, `RuleSource`, `Enricher` and
`Aggregator`, and hands the class to the agent through a hook (`guard_agent.core.hookspecs`). The
docstrings here are the contract: a plugin can be written from them without reading the core.

Life of an instance: ``__init__`` (no I/O, any thread) → ``open`` → work → ``close``. Everything
asynchronous runs on the agent's own event loop, in the agent's own thread, never on the loop of
the host application.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

import orjson
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pathlib import Path

    from guard_agent.core.config import AgentConfig
    from guard_agent.core.host_redis import HostRedis
    from guard_agent.core.models import AgentStatus

Kind: TypeAlias = Literal["event", "metric"]
"""What a record is. Both kinds take the same path; a batch holds one kind."""

Fields: TypeAlias = dict[str, Any]
"""
The fields of one record on its way through the enrichers: plain JSON data (str, int, float, bool,
None, list, dict with str keys), besides ``timestamp`` (datetime) and ``idempotency_key`` (str).
Bounded in depth, nodes and bytes, and owned by the pipeline: an enricher may change it in place.
"""


MAX_RECORD_BYTES = 64 * 1024
"""Most bytes of one payload."""


LEASE_SHARE = 8
"""The part of a lease that is left to each lower priority that waits, as 1/n."""


class Priority(IntEnum):
    """Class of a record. The lowest is evicted first, the highest is leased first."""

    METRIC = 0
    DIAGNOSTIC = 1
    CHANGE = 2
    ATTACK = 3


class DropReason(str, Enum):
    """Why a record was given up."""

    INVALID = "invalid"
    """Not an event or metric at all."""
    FILTERED = "filtered"
    """An enricher returned None."""
    ENRICHER_FAILED = "enricher_failed"
    """A redactor or sealer raised; nothing half processed leaves."""
    UNENCODABLE = "unencodable"
    """JSON cannot carry it, also after all that is foreign was taken out."""
    TOO_LARGE = "too_large"
    """More than 64 KiB after everything that can be cut was cut."""
    OVERFLOW = "overflow"
    """A bound was reached."""
    STOPPED = "stopped"
    """Sent to an agent that was stopped."""
    INTERNAL = "internal"
    """Caused by the agent's own work, such as an instrumented HTTP client."""
    STORE_RESET = "store_reset"
    """Was in a store that lost what it held: its file was corrupt, its server was emptied."""
    SHUTDOWN = "shutdown"
    """Still in a store that does not outlive the process when the agent stopped."""


class Record(NamedTuple):
    """One encoded event or metric. Immutable; crosses every seam as it is."""

    id: str
    """Idempotency key, unique per record, also inside the payload."""
    kind: Kind
    priority: Priority
    payload: bytes
    """One JSON object in UTF-8, already redacted."""
    accepted_at: float
    """Unix time in seconds."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one kind for one attempt of one transport."""

    kind: Kind
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def id(self) -> str:
        """Derived from the ids of the records: the same records always make the same id."""
        ids = "\0".join([*[record.id for record in self.records], ""])
        return blake2b(ids.encode(), digest_size=16).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all payloads together."""
        return sum([len(record.payload) for record in self.records])

    def join(self) -> bytes:
        """The payloads with commas between them: what stands inside a JSON array."""
        return b",".join([record.payload for record in self.records])

    def decode(self) -> list[dict[str, Any]]:
        """The payloads as dictionaries, for a transport that maps fields."""
        return [orjson.loads(record.payload) for record in self.records]


# --- what an attempt can lead to ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """The collector has every record. The core acknowledges them."""


@dataclass(frozen=True, slots=True)
class Partial:
    """
    The collector answered per record; keys are positions in ``batch.records``.

    Positions in ``rejected`` (with the reason) are buried, positions in ``retry`` are kept, all
    others are acknowledged.
    """

    rejected: Mapping[int, str] = field(default_factory=dict)
    retry: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Retry:
    """
    Not now: network trouble, time-out, overload. Everything is kept.

    With ``after`` (seconds) nothing is sent to this collector before that; without it the core
    backs off with full jitter. ``throttled`` says that the collector is well and asks for less
    (429, 503 with Retry-After), which never opens the circuit breaker.
    """

    reason: str
    after: float | None = None
    throttled: bool = False


@dataclass(frozen=True, slots=True)
class Reject:
    """The payload is at fault (400, 422). The core bisects to the poison record and buries it."""

    reason: str
    status: int | None = None


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The body is too large (413). The core splits; only a single record is buried."""

    limit: int | None = None
    """Bytes the collector named, if it did."""
    asked: bool = True
    """False when the transport knew it without a request: that says nothing about the collector."""


@dataclass(frozen=True, slots=True)
class Paused:
    """
    Sending makes no sense until a person acts: key refused (401, 403), address wrong (404).

    Everything is kept; the core probes slowly with one small batch and resumes by itself.
    """

    reason: str
    stage: Literal["transport_send", "encryption"] = "transport_send"
    """What ``on_error`` is told: ``encryption`` when that is what keeps the collector from it."""


SendResult: TypeAlias = Accepted | Partial | Retry | Reject | TooLarge | Paused
"""What `Transport.send` returns: nothing else than these."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The source has nothing newer than what is known."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A rule document as the source holds it; the core validates it before anybody sees it."""

    document: Mapping[str, Any]
    """Field names as in `guard_agent.DynamicRules`."""
    validator: str | None = None
    """What to pass as ``known`` next time: an ETag, a modification time."""
    content: bytes | None = None
    """The bytes that the document was read from, which ``signature`` is for."""
    signature: str | None = None
    """
    What came along to prove who wrote it: ``v1=<hex HMAC-SHA256 of content>``, or several with
    commas. The core looks at it, and refuses a document without, when ``rules_signing_secret`` is
    set.
    """


FetchResult: TypeAlias = RuleSet | Unchanged | Retry | Paused
"""What `RuleSource.fetch` returns: nothing else than these."""


# --- plugins --------------------------------------------------------------------------------------


class PluginSettings(BaseModel):
    """Base of every plugin's settings. An unknown or misspelt setting is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class PluginContext:
    """What the agent tells a plugin at construction."""

    instance: str
    """Name in the configuration: ``http``, or ``http/eu`` for a second instance."""
    config: AgentConfig
    """The agent's own settings, resolved. A plugin setting of the same name goes before it."""
    destinations: tuple[str, ...]
    """Instance names of all transports; a store keeps a cursor for each."""
    state_dir: Path
    """Folder for files that outlive the process. May not exist yet, may not be writable."""


class Plugin:
    """
    What all kinds have in common.

    ``name`` is the word used in the configuration; it equals the entry point's name.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[PluginSettings]] = PluginSettings

    settings: PluginSettings
    context: PluginContext

    def __init__(self, settings: PluginSettings, context: PluginContext) -> None:
        """Keep the arguments. No I/O here: nothing may be opened before ``open``."""
        self.settings = settings
        self.context = context


class Resource(Plugin):
    """A plugin that lives on the agent's event loop."""

    async def open(self) -> None:
        """
        Acquire what the plugin needs.

        Called once before any other asynchronous method. An exception means "not available
        now": the agent keeps the records and calls again after a backoff.
        """

    async def close(self) -> None:
        """Release everything. Idempotent, and safe when ``open`` never ran or failed."""


class Transport(Resource, ABC):
    """Carries batches to one collector."""

    @property
    def collector(self) -> str:
        """
        Identity of the collector, such as its origin.

        Everything with the same identity shares one gate: breaker, throttling, request rate.
        """
        return self.context.instance

    @property
    def max_batch_bytes(self) -> int | None:
        """Most payload bytes that fit one request, or None when the transport does not care."""
        return None

    @property
    def status_interval(self) -> float | None:
        """Seconds between status reports that the collector asks for, or None when it does not."""
        return None

    @abstractmethod
    async def send(self, batch: Batch) -> SendResult:
        """
        Make one attempt to hand ``batch`` to the collector.

        Called from one task at a time. Retrying, splitting, pausing and counting are the core's
        job. The call may be cancelled when the agent stops, or when it takes longer than 1.25 times
        ``timeout``. What blocks belongs into a thread: until it returns, nothing else of the agent
        goes on, although the application does.

        Returns:
            What the collector said; see each result for what the core does with it.

        Any exception is a defect of the transport: it is logged once with its traceback and
        handled like `Retry`.
        """

    def describe(self) -> Mapping[str, object]:
        """
        What an operator should see of the last attempt, such as ``{"answer": "http 200"}``.

        Asked after ``send`` or ``report``, by ``guard-agent check`` and while ``GUARD_AGENT_DEBUG``
        is set. No secrets. Known to both are ``answer`` (text), ``body_bytes`` (bytes sent),
        ``encoding`` (of the body), ``clock_ahead`` (seconds by which the collector's clock is
        ahead of ours), ``tls`` (version) and ``certificate_ends`` (Unix time).
        """
        return {}

    async def report(self, status: AgentStatus) -> SendResult:  # noqa: ARG002 - for overriding
        """
        Hand over a status report. Never called at the same time as ``send``.

        A report is not kept: whatever the result, the next one replaces it. A transport without
        a place for reports leaves this as it is.
        """
        return Accepted()


@dataclass(frozen=True, slots=True)
class Lease:
    """
    Records taken for one destination until ``ttl`` seconds have passed.

    ``entries`` maps the store's own entry ids to records, in the order to send them.
    """

    id: str
    destination: str
    entries: Mapping[str, Record]


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of an append: the first ``stored`` records are in, the rest are not."""

    stored: int
    evicted: Mapping[str, int] = field(default_factory=dict)
    """Older or lower records given up to make room: destination → count."""


@dataclass(frozen=True, slots=True)
class Peeked:
    """What a look into a store saw."""

    records: Sequence[Record]
    position: str
    """For the next look, which sees what came later."""
    passed: int = 0
    """
    How many came since the last look and are gone already: delivered, buried or given up. When
    there is more to see, they are counted at the end of it. What never was for this destination,
    such as a dead letter of another one that was replayed, is not among them.
    """


@dataclass(frozen=True, slots=True)
class DestinationDepth:
    """What a store holds for one destination."""

    ready: int = 0
    """Records that can be leased, now or after their delay."""
    leased: int = 0
    buried: int = 0
    """Dead letters kept. Bounded: the oldest make room."""
    bytes: int = 0
    """Payload bytes of ready and leased records."""
    oldest: float | None = None
    """Unix time at which the oldest pending record was accepted."""

    @property
    def pending(self) -> int:
        return self.ready + self.leased


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that was given up, with the reason."""

    record: Record
    reason: str


class Level(str, Enum):
    """What survives what."""

    MEMORY = "memory"
    """Lost when the process is killed."""
    JOURNAL = "journal"
    """On disk or in Redis; at most 50 ms of records are lost when the process is killed."""


class BufferStore(Resource, ABC):
    """
    Keeps records until every destination has them.

    A record is pending for each destination of ``context.destinations`` on its own, so a dead
    transport never holds another. States per destination: ready → leased → acknowledged or buried;
    a lease that expires or is released makes the record ready again.

    Called from the agent's event loop only, possibly from several tasks; a method that awaits must
    leave a consistent state when cancelled. Any exception means "the store is not available": the
    agent keeps what it has and tries again after a backoff.
    """

    level: ClassVar[Level] = Level.MEMORY

    @classmethod
    def adopt(cls, host: HostRedis, context: PluginContext) -> BufferStore | None:  # noqa: ARG003 - for overriding
        """
        A store on the Redis that the host application handed to ``initialize_redis``.

        Asked of the plugins ``redis`` and ``handler``, in the agent's thread, when the owner has
        chosen no store. No I/O.

        Returns:
            None when this plugin does not know such a handler.

        Raises:
            GuardAgentError: it knows the handler, but cannot use it; says why.
        """
        return None

    @property
    def resets(self) -> int:
        """
        How often it found that what it had held is gone, and began anew. The agent books as lost
        what is missing then.

        When several processes share the store, only the one that found it counts.
        """
        return 0

    @property
    def capacity(self) -> tuple[int, int] | None:
        """
        Most records and payload bytes it keeps for a destination; None when it does not say.

        What is merged waits where it is counted while more than half of that is in use.
        """
        return None

    def describe(self) -> Mapping[str, object]:
        """What an operator should see in health, such as ``{"sync": "full"}``. No secrets."""
        return {}

    @abstractmethod
    async def append(self, records: Sequence[Record], *, evict: bool) -> Appended:
        """
        Take over ``records`` in order, each for all destinations.

        When full: with ``evict`` give up records that are not leased, lowest priority first,
        oldest first within it (a newcomer that would have to give up something higher is itself
        the one given up, and is counted in both ``stored`` and ``evicted``); without it take what
        fits and report how many. A returned count is a promise at the store's level.
        """

    @abstractmethod
    async def lease(
        self, destination: str, max_records: int, max_bytes: int, ttl: float
    ) -> Lease | None:
        """
        Take up to ``max_records`` ready records of at most ``max_bytes`` payload bytes.

        Highest priority first, oldest first within it. A single record larger than ``max_bytes``
        is leased alone. Nobody else gets these records for ``ttl`` seconds.

        So that a flood of one priority does not starve the others, it leaves them a share when
        ``max_records`` is 8 or more: for each lower priority of which something is ready, an eighth
        of the records and of the bytes (`LEASE_SHARE`).

        Returns:
            The lease, or None when nothing is ready now.
        """

    @abstractmethod
    async def ack(self, lease: Lease, ids: Sequence[str]) -> int:
        """
        Forget entries for the lease's destination: they are delivered.

        Idempotent and not fenced: delivered is delivered, also after the lease expired.

        Returns:
            How many were pending until now.
        """

    @abstractmethod
    async def release(self, lease: Lease, ids: Sequence[str], delay: float = 0.0) -> int:
        """
        Make entries ready again, ``delay`` seconds from now.

        Fenced: entries that this lease no longer holds are left alone.

        Returns:
            How many were released.
        """

    @abstractmethod
    async def bury(self, lease: Lease, ids: Sequence[str], reason: str) -> int:
        """
        Move entries to the bounded dead letters of the lease's destination.

        Idempotent, and fenced like ``release``.

        Returns:
            How many were buried.
        """

    @abstractmethod
    async def release_expired(self) -> int:
        """Make the entries of expired leases ready again; returns how many."""

    @abstractmethod
    async def stats(self) -> Mapping[str, DestinationDepth]:
        """Depths by destination, one entry for each of ``context.destinations``."""

    @abstractmethod
    async def dead_letters(self, destination: str) -> Sequence[DeadLetter]:
        """The dead letters kept for ``destination``, oldest first."""

    async def peek(self, destination: str, after: str | None, limit: int) -> Peeked:
        """
        Look at up to ``limit`` records that wait for ``destination``, leased or not.

        For people who look into a store that an agent uses: nothing is leased, moved or changed.
        They come in the order in which they were appended, as far as the store knows it. ``after``
        is the position of an earlier look, None to begin with the oldest. With ``limit`` 0 nothing
        is read but the present end. A store that keeps records together may show more of them.

        Raises:
            NotImplementedError: one cannot look into this store, as when this is not overridden.
        """
        msg = f"one cannot look into the store {self.context.instance!r}"
        raise NotImplementedError(msg)

    @abstractmethod
    async def replay(self, destination: str, limit: int) -> int:
        """
        Make the oldest ``limit`` dead letters of ``destination`` ready again, for it alone.

        They are the records that they were, and come behind those of their priority that wait.
        Nothing is evicted for them: what does not fit remains a dead letter.

        Returns:
            How many.
        """


class RuleSource(Resource, ABC):
    """Brings dynamic rules from somewhere. Validation and keeping are the core's job."""

    @property
    def collector(self) -> str:
        """As `Transport.collector`: the same identity shares one gate."""
        return self.context.instance

    @property
    @abstractmethod
    def interval(self) -> float:
        """Seconds between two fetches. The core adds jitter of 20 %."""

    @abstractmethod
    async def fetch(self, known: str | None) -> FetchResult:
        """
        Make one attempt to get the present rules.

        ``known`` is the `RuleSet.validator` of the last document that was accepted, or None.
        Called from one task at a time; may be cancelled. An exception is handled like `Retry`
        and logged once.
        """

    async def watch(self, changed: Callable[[], None]) -> None:
        """
        Call ``changed`` whenever the rules may have changed; the core fetches soon after.

        For sources that are told; called after ``open``. Fetching at the interval goes on all the
        same, so what is missed here comes later. Runs beside ``fetch``, in a task of its own that
        is cancelled at the end. Returns when there is nothing to watch at the moment; it is called
        again after a pause. An exception means the same, and is logged once.
        """


class Stage(IntEnum):
    """
    Where an enricher may stand. The order in the configuration must not step back.

    ``DERIVE`` may add fields from anywhere. ``REDACT`` removes secrets. ``SEAL`` sees redacted data
    only and may cut, hash or summarise it, but adds nothing that did not come from the record.
    """

    DERIVE = 1
    REDACT = 2
    SEAL = 3


EnrichFunction: TypeAlias = Callable[[Fields], Fields | None]
"""What `Enricher.bind` makes: returns the fields of the record, or None to drop it."""


@dataclass(frozen=True, slots=True)
class TextRules:
    """
    What an enricher does to a record, told text by text.

    With it a record can be copied, redacted and sealed in one walk that remembers the texts and
    names it has seen. The result must be the same as that of the function: wherever the two below
    cannot tell, the function is called. Numbers below 10 ** 12, truth values and None must be
    nothing that the enricher touches, but for numbers under a name that is replaced: there the
    function is called as well. Both are called from any thread; what they say must never change.
    """

    replaced: Callable[[tuple[str, ...]], Mapping[str, str] | None]
    """
    Given the names of one object, in their order: under which of them every text that is not empty
    is replaced, and by what. None when that cannot be told from the names.
    """
    keeps: Callable[[Sequence[str]], bool]
    """
    Whether all of these texts, at least one, stay as they are under any other name. Asked for texts
    of up to 1,024 characters, 24 at most: what is larger goes to the function.
    """


class Enricher(Plugin, ABC):
    """Changes records before they are encoded. Runs in the thread of the host application."""

    stage: ClassVar[Stage]
    adds: ClassVar[frozenset[str]] = frozenset()
    """Names of the fields it may add, dotted for nested ones: ``metadata.geo``."""

    @abstractmethod
    def bind(self, kind: Kind) -> EnrichFunction | None:
        """
        Make the function for records of ``kind``, or None when there is nothing to do for them.

        Called once per kind at startup: compile here what can be compiled. The function is
        synchronous, must not block, and is called from any thread, also from several at a time.
        It returns the fields, or None to drop the record (counted as ``filtered``).

        When it raises or returns anything else, the record is dropped and counted: nothing half
        processed leaves. Only a ``DERIVE`` enricher is left out instead, and no longer called after
        five failures; that it took more than a second is one of them, because the request of the
        application waits for it, which nothing can cut short.
        """

    def text_rules(self, kind: Kind) -> TextRules | None:  # noqa: ARG002 - for those that can tell
        """
        The same as `bind` in another form, for speed; None when it cannot be put in this form.

        Called once per kind, after `bind`.
        """
        return None


EncodeFunction: TypeAlias = "Callable[[Fields], Record | DropReason]"
"""Enriches, redacts and encodes; answers with the record, or with why there is none."""

AggregateFunction: TypeAlias = "Callable[[Fields], Record | DropReason | None]"
"""What `Aggregator.bind` makes: as `EncodeFunction`, or None for a record that it absorbed."""

AbsorbFunction: TypeAlias = "Callable[[Mapping[str, Any]], bool]"
"""What `Aggregator.bind_early` makes: whether it has absorbed the record."""


class Aggregated(NamedTuple):
    """The books of an aggregator at one moment."""

    events: int = 0
    """Events that were ever absorbed."""
    metrics: int = 0
    """Metrics that were ever absorbed."""
    open: int = 0
    """Records that `Aggregator.collect` would make of what was absorbed."""

    @property
    def absorbed(self) -> int:
        return self.events + self.metrics


class Aggregator(Plugin, ABC):
    """
    Merges records that say the same, so that fewer leave.

    Unlike an `Enricher` it makes one record of many, some time later. What it absorbs exists only
    in it until then, and is lost when the process is killed: what must not be lost it lets pass,
    and so what stands for several already.

    It sees fields that may not be redacted yet, and must not keep them nor anything made of them
    that they could be read from: what it keeps are numbers, and records as ``encode`` made them.
    A child process begins with a new instance; what the parent absorbed stays with the parent.
    """

    @property
    @abstractmethod
    def interval(self) -> float:
        """Seconds between two calls of `collect`: what was absorbed leaves after as many."""

    @abstractmethod
    def bind(self, kind: Kind, encode: EncodeFunction) -> AggregateFunction | None:
        """
        Make the function for records of ``kind``, or None when there is nothing to do for them.

        Called twice for a kind, with two ways to encode: one for fields that the enrichers have not
        seen yet, one for those that need none of them any more. What both functions are given is
        counted together.

        The function is called in the thread of the application, from several at a time; it must
        not block, nor hold a lock while it encodes. It owns the fields. It returns what ``encode``
        did, or a record that stands for this one and some that were absorbed, or None when it has
        absorbed the record.
        """

    def bind_early(self, kind: Kind) -> AbsorbFunction | None:  # noqa: ARG002 - for those that can
        """
        Make a function that absorbs records of ``kind`` before anything is done with them, or None.

        For what is only counted. The function is given the values of an event or metric as the
        application made it, which it must neither keep nor change, and of which it may only touch
        what it has seen to be of a plain type: they can be foreign objects, and are not redacted.
        One with fields that the model does not know is not shown to it. True: absorbed, and in the
        books as if the function of `bind` had done it. Whatever it does not absorb, also by an
        exception, comes to the function of `bind`. Called as that one is, once the agent runs.
        """
        return None

    @abstractmethod
    def collect(self) -> Iterator[Record]:
        """
        The records that stand for what was absorbed.

        Called in the agent's thread: every ``interval`` seconds, at a flush and at the end. A
        record counts as open until it is yielded. The iterator may be left before its end; what it
        did not yield remains open.
        """

    @abstractmethod
    def close(self) -> None:
        """Absorb nothing from now on: the last `collect` follows. Idempotent, any thread."""

    @property
    @abstractmethod
    def books(self) -> Aggregated:
        """
        What was absorbed and what is open, at one moment. Any thread.

        Every record that was absorbed is in one that is open, in one that was yielded, or in one
        that the function returned.
        """

    def describe(self) -> Mapping[str, object]:
        """What an operator should see in health."""
        return {}

    def explain(self) -> Sequence[str]:
        """What it does as configured, in sentences, for the log and ``guard-agent plan``."""
        return ()

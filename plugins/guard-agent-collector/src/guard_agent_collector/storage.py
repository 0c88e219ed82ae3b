"""
What the collector keeps: one SQLite file, bounded in bytes.

Everything here blocks, so it is called in threads: what writes in one thread, what reads in
another. A batch is one transaction, committed before it is acknowledged.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from guard_agent import GuardAgentError
from guard_agent_collector.summary import seconds_of, summarise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from guard_agent_collector.ingest import Incoming

LEAST_BYTES = 4 * 1024 * 1024
_PAGE_BYTES = 4096
_FULL = 0.85
"""Share of the bound at which the oldest records go."""
_PRUNED = 0.2
"""Share of the records that go then."""
_MAX_REQUESTS = 2000
_MAX_AGENTS = 200
_MAX_PUBLICATIONS = 100
_CHECK_EVERY = 64
_FORMAT = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT UNIQUE,
    kind TEXT NOT NULL, class TEXT NOT NULL, type TEXT NOT NULL,
    ip TEXT NOT NULL, endpoint TEXT NOT NULL, method TEXT NOT NULL, status INTEGER,
    action TEXT NOT NULL, reason TEXT NOT NULL, moment TEXT NOT NULL,
    count INTEGER NOT NULL, outcome TEXT NOT NULL, value REAL,
    received REAL NOT NULL, agent TEXT NOT NULL, project TEXT NOT NULL,
    payload BLOB NOT NULL,
    first REAL, last REAL, rollup TEXT NOT NULL DEFAULT '', rate REAL, total REAL
);
CREATE INDEX IF NOT EXISTS records_received ON records (received);
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT, received REAL NOT NULL, facts TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS agents (
    agent TEXT NOT NULL, project TEXT NOT NULL, pid INTEGER NOT NULL,
    version TEXT NOT NULL, seen REAL NOT NULL, records INTEGER NOT NULL,
    reported REAL, report TEXT, counted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (agent, project, pid)
);
CREATE TABLE IF NOT EXISTS publications (
    id INTEGER PRIMARY KEY AUTOINCREMENT, published REAL NOT NULL,
    rule_id TEXT NOT NULL, version INTEGER NOT NULL,
    etag TEXT NOT NULL, signature TEXT, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS rule_steps (
    publication INTEGER NOT NULL, agent TEXT NOT NULL, project TEXT NOT NULL,
    fetched REAL, applied REAL,
    PRIMARY KEY (publication, agent, project)
);
"""

# What format 1 did not have yet.
_TO_2 = """
BEGIN;
ALTER TABLE records ADD COLUMN first REAL;
ALTER TABLE records ADD COLUMN last REAL;
ALTER TABLE records ADD COLUMN rollup TEXT NOT NULL DEFAULT '';
ALTER TABLE records ADD COLUMN rate REAL;
ALTER TABLE records ADD COLUMN total REAL;
UPDATE records SET total = value WHERE class = 'metric' AND value BETWEEN 0 AND 1e12;
ALTER TABLE agents ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
UPDATE agents SET counted = records;
PRAGMA user_version=2;
COMMIT;
"""

_SUMMARY = (
    "id, kind, class, type, ip, endpoint, method, status, action, reason, moment, count, "
    "first, last, rollup, rate, outcome, value, total, received, agent, project"
)
_SUMMARY_NAMES = _SUMMARY.split(", ")


class StorageFullError(Exception):
    """Not even after the oldest records went is there room."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a request, as far as its headers say."""

    agent: str
    """Install id."""
    project: str
    version: str


@dataclass(frozen=True, slots=True)
class Publication:
    """One document of rules that was published."""

    id: int
    published: float
    rule_id: str
    version: int
    etag: str
    signature: str | None
    body: bytes


class Storage:
    """The file. Opening it takes a lock, so that two collectors never share one."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """
        Open or make the file.

        Raises:
            GuardAgentError: it cannot be used; says why and what to do.
        """
        self.path = path
        self._max_bytes = max(max_bytes, LEAST_BYTES)
        self._writes = 0
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._guard = _locked(path)
            try:
                self._writer = self._connected()
                self._reader = self._connected()
            except BaseException:
                os.close(self._guard)
                raise
        except (OSError, sqlite3.Error) as error:
            msg = f"cannot use the database {path}: {error}; name another with --database"
            raise GuardAgentError(msg) from error

    def _connected(self) -> sqlite3.Connection:
        new = not self.path.exists()
        connection = sqlite3.connect(
            self.path, timeout=10, isolation_level=None, check_same_thread=False
        )
        if new:
            self.path.chmod(0o600)  # what it keeps may be anything an attacker or a user sent
            connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA journal_size_limit=4194304")
        connection.execute(f"PRAGMA max_page_count={self._max_bytes // _PAGE_BYTES}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, 1, _FORMAT):
            connection.close()
            msg = f"it has format {version}, which this version does not know"
            raise OSError(msg)
        if version == 1:
            connection.executescript(_TO_2)
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version={_FORMAT}")
        return connection

    def close(self) -> None:
        with self._lock:
            self._reader.close()
            self._writer.close()
            with suppress(OSError):
                os.close(self._guard)

    # --- what comes in ----------------------------------------------------------------------------

    def add(
        self, records: Sequence[Incoming], sender: Sender, facts: dict[str, Any]
    ) -> tuple[int, int, int]:
        """
        Keep records that were not kept before, and the request that brought them.

        Returns:
            How many are new, how many were known by their key, and how many events and metrics the
            new ones stand for.

        Raises:
            StorageFullError: there is no room for them.
        """
        now = time.time()
        rows = []
        for record in records:
            brief = summarise(record)
            rows.append(
                (
                    record.fields.get("idempotency_key") or None,
                    record.kind,
                    brief.record_class,
                    brief.type,
                    brief.ip,
                    brief.endpoint,
                    brief.method,
                    brief.status,
                    brief.action,
                    brief.reason,
                    brief.moment,
                    brief.count,
                    brief.first,
                    brief.last,
                    brief.rollup,
                    brief.rate,
                    brief.outcome,
                    brief.value,
                    brief.total,
                    now,
                    sender.agent,
                    sender.project,
                    record.payload,
                )
            )
        with self._writing() as db:
            ((highest,),) = db.execute("SELECT COALESCE(MAX(id), 0) FROM records")
            db.executemany(
                "INSERT OR IGNORE INTO records (key, kind, class, type, ip, endpoint, method, "
                "status, action, reason, moment, count, first, last, rollup, rate, outcome, value, "
                "total, received, agent, project, payload) "
                "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                rows,
            )
            ((new, counted),) = db.execute(
                "SELECT COUNT(*), COALESCE(SUM(count), 0) FROM records WHERE id > ?", (highest,)
            )
            known = len(rows) - new
            self._add_request(db, now, {**facts, "records": len(rows), "duplicates": known})
            self._see(db, sender, now, new, counted)
            self._note_applied(db, records, sender, now)
        return new, known, counted

    def add_request(self, sender: Sender | None, facts: dict[str, Any]) -> None:
        """Keep a request that brought no records: a refused one, or one about rules."""
        now = time.time()
        with self._writing() as db:
            self._add_request(db, now, facts)
            if sender is not None:
                self._see(db, sender, now)

    def add_reports(
        self, reports: Sequence[tuple[dict[str, Any], Sender]], facts: dict[str, Any] | None
    ) -> None:
        """
        Keep status reports, each in place of the last one of its process.

        ``facts`` are those of the request, when it brought nothing else.
        """
        now = time.time()
        with self._writing() as db:
            if facts is not None:
                self._add_request(db, now, facts)
            for report, sender in reports:
                self._add_report(db, report, sender, now)

    def _add_report(
        self, db: sqlite3.Connection, report: dict[str, Any], sender: Sender, now: float
    ) -> None:
        pid = report.get("pid")
        self._see(db, sender, now)
        db.execute(
            "INSERT INTO agents (agent, project, pid, version, seen, records, reported, "
            "report) VALUES (?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT DO UPDATE SET "
            "version = excluded.version, seen = excluded.seen, reported = excluded.reported, "
            "report = excluded.report",
            (
                sender.agent,
                sender.project,
                pid if isinstance(pid, int) and 0 < pid < 2**31 else -1,
                sender.version,
                now,
                now,
                orjson.dumps(report).decode(),
            ),
        )
        for rules in _dicts(report.get("rules")):
            if rules.get("in_force") is True:
                self._applied(db, rules.get("rule_id"), rules.get("version"), sender, now, now)

    def _add_request(self, db: sqlite3.Connection, now: float, facts: dict[str, Any]) -> None:
        db.execute(
            "INSERT INTO requests (received, facts) VALUES (?, ?)",
            (now, orjson.dumps(facts).decode()),
        )

    def _see(
        self, db: sqlite3.Connection, sender: Sender, now: float, new: int = 0, counted: int = 0
    ) -> None:
        """Pid 0 is all processes with the install id: batches do not name theirs."""
        if not sender.agent:
            return
        db.execute(
            "INSERT INTO agents (agent, project, pid, version, seen, records, counted) "
            "VALUES (?, ?, 0, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET version = excluded.version, "
            "seen = excluded.seen, records = records + excluded.records, "
            "counted = counted + excluded.counted",
            (sender.agent, sender.project, sender.version, now, new, counted),
        )

    # --- rules ------------------------------------------------------------------------------------

    def publish(
        self, rule_id: str, version: int, etag: str, signature: str | None, body: bytes
    ) -> Publication:
        now = time.time()
        with self._writing() as db:
            cursor = db.execute(
                "INSERT INTO publications (published, rule_id, version, etag, signature, body) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (now, rule_id, version, etag, signature, body),
            )
            number = cursor.lastrowid or 0
        return Publication(number, now, rule_id, version, etag, signature, body)

    def note_fetched(self, publication: int, sender: Sender) -> bool:
        """Remember that an agent has the rules; returns whether that is news."""
        with self._writing() as db:
            cursor = db.execute(
                "INSERT INTO rule_steps (publication, agent, project, fetched) VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET fetched = excluded.fetched WHERE fetched IS NULL",
                (publication, sender.agent, sender.project, time.time()),
            )
            return cursor.rowcount > 0

    def _note_applied(
        self, db: sqlite3.Connection, records: Sequence[Incoming], sender: Sender, now: float
    ) -> None:
        """The Guard engine says by an event that it applied rules, and at which moment."""
        for record in records:
            fields = record.fields
            if fields.get("event_type") != "dynamic_rule_applied":
                continue
            told = fields.get("metadata")
            told = told if isinstance(told, dict) else fields
            moment = seconds_of(fields.get("timestamp"))
            self._applied(db, told.get("rule_id"), told.get("version"), sender, moment, now)

    def _applied(
        self,
        db: sqlite3.Connection,
        rule_id: object,
        version: object,
        sender: Sender,
        moment: float | None,
        now: float,
    ) -> None:
        if not isinstance(rule_id, str) or not isinstance(version, int) or abs(version) > 2**62:
            return
        found = db.execute(
            "SELECT id, published FROM publications WHERE rule_id = ? AND version = ? "
            "ORDER BY id DESC LIMIT 1",
            (rule_id, version),
        ).fetchone()
        if found is None:
            return
        number, published = found
        # The clock of another machine may be wrong: what cannot be counts as now.
        if moment is None or not published <= moment <= now:
            moment = now
        db.execute(
            "INSERT INTO rule_steps (publication, agent, project, applied) VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET applied = excluded.applied WHERE applied IS NULL",
            (number, sender.agent, sender.project, moment),
        )

    def last_publication(self) -> Publication | None:
        row = self._reading(
            "SELECT id, published, rule_id, version, etag, signature, body FROM publications "
            "ORDER BY id DESC LIMIT 1"
        )
        return Publication(*row[0]) if row else None

    def publications(self, limit: int) -> list[dict[str, Any]]:
        """The newest first, each with what the agents did with it; times are Unix seconds."""
        found = []
        for number, published, rule_id, version, signature, body in self._reading(
            "SELECT id, published, rule_id, version, signature, body FROM publications "
            "ORDER BY id DESC LIMIT ?",
            limit,
        ):
            steps = self._reading(
                "SELECT agent, project, fetched, applied FROM rule_steps WHERE publication = ? "
                "ORDER BY COALESCE(fetched, applied) LIMIT 100",
                number,
            )
            found.append(
                {
                    "id": number,
                    "published": published,
                    "rule_id": rule_id,
                    "version": version,
                    "signed": signature is not None,
                    "text": body.decode("utf-8", "replace"),
                    "agents": [
                        dict(zip(("agent", "project", "fetched", "applied"), step, strict=True))
                        for step in steps
                    ],
                }
            )
        return found

    # --- what the page asks for -------------------------------------------------------------------

    def ends(self) -> tuple[int, int]:
        """The highest ids of records and requests, 0 when there are none."""
        ((record,),) = self._reading("SELECT COALESCE(MAX(id), 0) FROM records")
        ((request,),) = self._reading("SELECT COALESCE(MAX(id), 0) FROM requests")
        return record, request

    def records_after(self, number: int, limit: int) -> tuple[list[dict[str, Any]], int]:
        """The newest ``limit`` records above ``number``, oldest first; how many there are more."""
        rows = self._reading(
            f"SELECT {_SUMMARY} FROM records WHERE id > ? ORDER BY id DESC LIMIT ?",  # noqa: S608 - constants
            number,
            limit,
        )
        more = 0
        if len(rows) == limit:
            ((all_,),) = self._reading("SELECT COUNT(*) FROM records WHERE id > ?", number)
            more = all_ - limit
        return [dict(zip(_SUMMARY_NAMES, row, strict=True)) for row in reversed(rows)], more

    def requests_after(self, number: int, limit: int) -> list[dict[str, Any]]:
        """The newest ``limit`` requests above ``number``, oldest first."""
        rows = self._reading(
            "SELECT id, received, facts FROM requests WHERE id > ? ORDER BY id DESC LIMIT ?",
            number,
            limit,
        )
        return [
            {**orjson.loads(facts), "id": number_, "received": received}
            for number_, received, facts in reversed(rows)
        ]

    def record(self, number: int) -> tuple[dict[str, Any], bytes] | None:
        """One record in short, and as it was received."""
        rows = self._reading(
            f"SELECT {_SUMMARY}, payload FROM records WHERE id = ?",  # noqa: S608 - constants
            number,
        )
        if not rows:
            return None
        *brief, payload = rows[0]
        return dict(zip(_SUMMARY_NAMES, brief, strict=True)), payload

    def agents(self) -> list[dict[str, Any]]:
        names = (
            *("agent", "project", "pid", "version", "seen", "records", "counted"),
            *("reported", "report"),
        )
        rows = self._reading(
            f"SELECT {', '.join(names)} FROM agents ORDER BY seen DESC LIMIT {_MAX_AGENTS}"  # noqa: S608 - constants
        )
        found = [dict(zip(names, row, strict=True)) for row in rows]
        for agent in found:
            agent["report"] = orjson.loads(agent["report"]) if agent["report"] else None
        return found

    def now(self, minutes: int) -> dict[str, Any]:
        """
        What happened in the last ``minutes`` whole minutes and the present one.

        A record counts as often as it says, so that a summary weighs what it stands for.

        Returns:
            ``minutes``: one object for each, oldest first, with counts by class; ``addresses``,
            ``endpoints`` and ``types`` of what guards reported, most frequent first; totals.
            ``response_time`` is the average in seconds and ``error_rate`` a share from 0 to 1,
            each None where no metric tells it; ``records`` is how many brought all this.
        """
        this = int(time.time() // 60)
        since = (this - minutes) * 60.0
        by_minute: dict[int, dict[str, int]] = {this - ago: {} for ago in range(minutes, -1, -1)}
        blocked = passed = 0
        for minute, name, outcome, count in self._reading(
            "SELECT CAST(received / 60 AS INTEGER), class, outcome, SUM(count) FROM records "
            "WHERE received >= ? AND class != 'metric' GROUP BY 1, 2, 3",
            since,
        ):
            counts = by_minute.setdefault(minute, {})
            counts[name] = counts.get(name, 0) + count
            if name == "attack" and outcome == "blocked":
                blocked += count
            elif name == "attack" and outcome == "passed":
                passed += count
        measured = {
            name: (total, count)
            for name, total, count in self._reading(
                "SELECT type, SUM(total), SUM(count) FROM records WHERE received >= ? AND "
                "class = 'metric' AND total IS NOT NULL AND "
                "type IN ('request_count', 'response_time', 'error_rate') GROUP BY 1",
                since,
            )
        }
        requests, _ = measured.get("request_count", (0, 0))
        seconds, timed = measured.get("response_time", (0, 0))
        ((events, metrics, records),) = self._reading(
            "SELECT COALESCE(SUM(count * (class != 'metric')), 0), "
            "COALESCE(SUM(count * (class = 'metric')), 0), COUNT(*) FROM records "
            "WHERE received >= ?",
            since,
        )
        return {
            "minutes": [
                {"at": minute * 60, "counts": counts}
                for minute, counts in sorted(by_minute.items())
            ],
            "addresses": self._top("ip", since),
            "endpoints": self._top("endpoint", since),
            "types": self._top("type", since),
            "blocked": blocked,
            "passed": passed,
            "requests": requests,
            "response_time": seconds / timed if timed else None,
            "error_rate": _share(*measured.get("error_rate", (0, 0)), requests),
            "events": events,
            "metrics": metrics,
            "records": records,
        }

    def _top(self, column: str, since: float) -> list[dict[str, Any]]:
        # A sample has nothing but the type in common: for the rest it stands for itself.
        count = "count" if column == "type" else "CASE rollup WHEN 'sample' THEN 1 ELSE count END"
        rows = self._reading(
            f"SELECT {column}, SUM({count}) AS times, "  # noqa: S608 - constants
            f"SUM({count} * (outcome = 'blocked')) FROM records "
            f"WHERE received >= ? AND class IN ('attack', 'change') AND {column} NOT IN "
            "('', 'system', 'unknown') GROUP BY 1 ORDER BY times DESC LIMIT 8",
            since,
        )
        return [dict(zip(("name", "count", "blocked"), row, strict=True)) for row in rows]

    def size(self) -> tuple[int, int]:
        """Bytes in use, and how many there may be."""
        return self._used(self._reader), self._max_bytes

    # --- how --------------------------------------------------------------------------------------

    def _reading(self, query: str, *values: object) -> list[Any]:
        return self._reader.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._writes += 1
            if self._writes % _CHECK_EVERY == 1 or self._is_nearly_full():
                self._prune()
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
                    self._drop_oldest()
                    raise StorageFullError(str(error)) from error
                raise

    def _used(self, db: sqlite3.Connection) -> int:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * _PAGE_BYTES

    def _is_nearly_full(self) -> bool:
        return self._used(self._writer) > _FULL * self._max_bytes

    def _prune(self) -> None:
        for table, limit in (("requests", _MAX_REQUESTS), ("publications", _MAX_PUBLICATIONS)):
            self._writer.execute(
                f"DELETE FROM {table} WHERE id <= (SELECT MAX(id) FROM {table}) - ?",  # noqa: S608 - constants
                (limit,),
            )
        self._writer.execute(
            "DELETE FROM rule_steps WHERE publication NOT IN (SELECT id FROM publications)"
        )
        self._writer.execute(
            "DELETE FROM agents WHERE rowid NOT IN "
            "(SELECT rowid FROM agents ORDER BY seen DESC LIMIT ?)",
            (_MAX_AGENTS,),
        )
        while self._is_nearly_full() and self._drop_oldest():
            pass

    def _drop_oldest(self) -> int:
        """Delete a share of the records, the oldest; returns how many."""
        db = self._writer
        (first, last) = db.execute("SELECT MIN(id), MAX(id) FROM records").fetchone()
        if first is None:
            return 0
        upto = first + int((last - first) * _PRUNED)
        return db.execute("DELETE FROM records WHERE id <= ?", (upto,)).rowcount


def _locked(path: Path) -> int:
    """Lock the file beside ``path`` for as long as it stays open; returns its descriptor."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        import fcntl  # noqa: PLC0415 - there is none on Windows, where nothing is locked
    except ImportError:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        msg = "another collector uses it"
        raise OSError(msg) from None
    return descriptor


def _dicts(mapping: object) -> list[dict[str, Any]]:
    values = mapping.values() if isinstance(mapping, dict) else ()
    return [value for value in values if isinstance(value, dict)]


def _share(errors: float, reports: int, requests: float) -> float | None:
    """Errors by requests; where those are not reported, or fewer, the average of the values."""
    if requests >= errors and requests:
        return errors / requests
    return min(errors / reports, 1.0) if reports else None

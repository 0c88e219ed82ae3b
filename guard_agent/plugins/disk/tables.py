"""
The tables of the disk store, and what each operation does to them.

Every function here runs inside one transaction. A call of SQLite lets other threads of Python in
and waits for its turn again, so an operation is a handful of statements over sets of records,
however many records there are: lists go in and out as one JSON array or one run of bytes.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections import deque
from secrets import token_hex
from typing import TYPE_CHECKING, NamedTuple

import orjson

from guard_agent import (
    LEASE_SHARE,
    Appended,
    DeadLetter,
    DestinationDepth,
    Lease,
    Peeked,
    Priority,
    Record,
)
from guard_agent.plugins.disk.folder import DiskStoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

APPLICATION_ID = 0x67644167
VERSION = 2

# An entry is known by its key: the rank of its priority, then its number in order of arrival. So
# the order of keys is the order of leasing.
_RANK_SHIFT = 56
_SEQ_MASK = (1 << _RANK_SHIFT) - 1
_TOP = len(Priority) - 1
_END = (_TOP << _RANK_SHIFT) | _SEQ_MASK
_LENGTH_BITS = 32
_RANK_BITS = 4
_BLOCK = 512
_SEEN_EVERY = 20.0
UNUSED_WHEN_FULL = 60.0
"""Seconds after which a destination that no process uses makes room for others."""
_PRIORITIES = tuple(Priority)

# `hold` of a pending entry: 0 is ready, n is leased by hold n, -n is kept back until hold n ends.
# A hold is valid from `since` until `until` on the clock that all processes of a running system
# share; after a restart of the system it lies in the future or is over, and so is void. `lease` is
# the number of the owner, or 0 when records are kept back.
_SCHEMA = """
CREATE TABLE meta (
    epoch TEXT NOT NULL, next INTEGER NOT NULL, records INTEGER NOT NULL, bytes INTEGER NOT NULL
);
CREATE TABLE destination (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, seen REAL NOT NULL,
    pending INTEGER NOT NULL DEFAULT 0, leased INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0, buried INTEGER NOT NULL DEFAULT 0,
    elsewhere INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE record (seq INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE pending (
    destination INTEGER NOT NULL, key INTEGER NOT NULL, size INTEGER NOT NULL,
    hold INTEGER NOT NULL, PRIMARY KEY (destination, key)
) WITHOUT ROWID;
CREATE TABLE hold (
    id INTEGER PRIMARY KEY AUTOINCREMENT, destination INTEGER NOT NULL, lease INTEGER NOT NULL,
    since REAL NOT NULL, until REAL NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    entries INTEGER NOT NULL
);
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, destination INTEGER NOT NULL, rank INTEGER NOT NULL,
    size INTEGER NOT NULL, reason TEXT NOT NULL, data BLOB NOT NULL
);
"""


# What version 1 did not have yet: how many numbers are of records that were replayed for others.
_TO_2 = "ALTER TABLE destination ADD COLUMN elsewhere INTEGER NOT NULL DEFAULT 0"

# Of a look: the last number, and how many records until then were for the destination.
_POSITION = re.compile(r"([0-9]{1,18})\+([0-9]{1,18})", re.ASCII)


class Bounds(NamedTuple):
    records: int
    bytes: int
    dead_letters: int
    dead_letter_bytes: int


class Dropped(NamedTuple):
    """A destination that was forgotten, with what was pending for it."""

    destination: str
    records: int


def _complete(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    # Another process may have been faster.
    ((version,),) = connection.execute("PRAGMA user_version")
    if version == 1:
        connection.execute(_TO_2)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def make_tables(connection: sqlite3.Connection) -> bool:
    """
    Make the tables in a new file, or complete those of an earlier version.

    Returns:
        Whether the file was new.

    Raises:
        DiskStoreError: the file belongs to something else, or to a later version.
    """
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    ((objects,),) = connection.execute("SELECT count(*) FROM sqlite_master")
    if application == APPLICATION_ID and version in (1, VERSION):
        if version == 1:
            _complete(connection)
        return False
    if objects:
        msg = (
            "the file was made by a later version of guard-agent; use that, or another folder"
            if application == APPLICATION_ID
            else "the file belongs to another application; use another folder"
        )
        raise DiskStoreError(msg)
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES (?, 1, 0, 0)", (token_hex(8),))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
    return True


class Tables:
    """The operations of one store, which has its own destinations and bounds."""

    def __init__(self, destinations: tuple[str, ...], bounds: Bounds) -> None:
        self.destinations = destinations
        self.bounds = bounds

    # --- destinations -----------------------------------------------------------------------------

    def register(self, connection: sqlite3.Connection) -> dict[str, int]:
        """
        Ids of the store's destinations, which are made when they are missing.

        A new destination begins empty: it gets what is appended from now on.
        """
        now = time.monotonic()
        known: dict[str, int] = dict(connection.execute("SELECT name, id FROM destination"))
        for name in self.destinations:
            if name not in known:
                known[name] = _inserted(
                    connection.execute(
                        "INSERT INTO destination (name, seen) VALUES (?, ?)", (name, now)
                    )
                )
        return {name: known[name] for name in self.destinations}

    def keep_alive(self, connection: sqlite3.Connection) -> None:
        """Say that the store's destinations are in use."""
        now = time.monotonic()
        connection.executemany(
            "UPDATE destination SET seen = ?2 WHERE name = ?1 AND NOT seen BETWEEN ?3 AND ?2",
            [(name, now, now - _SEEN_EVERY) for name in self.destinations],
        )

    def drop_unused(self, connection: sqlite3.Connection, after: float) -> list[Dropped]:
        """Forget destinations that no process has used for ``after`` seconds."""
        now = time.monotonic()
        # The clock began anew with the system: so does the time to wait.
        connection.execute("UPDATE destination SET seen = ?1 WHERE seen > ?1", (now,))
        unused = [
            row
            for row in connection.execute(
                "SELECT id, name, pending FROM destination WHERE seen <= ?", (now - after,)
            ).fetchall()
            if row[1] not in self.destinations
        ]
        for destination, _, _ in unused:
            _forget(connection, destination, "1", ())
            for table, column in (
                ("hold", "destination"),
                ("dead", "destination"),
                ("destination", "id"),
            ):
                connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (destination,))  # noqa: S608 - names from the line above
        return [Dropped(name, pending) for _, name, pending in unused]

    def _id(self, connection: sqlite3.Connection, name: str) -> int:
        row = connection.execute("SELECT id FROM destination WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else self.register(connection)[name]

    # --- append -----------------------------------------------------------------------------------

    def append(
        self, connection: sqlite3.Connection, records: Sequence[Record], *, evict: bool
    ) -> tuple[Appended, Sequence[Dropped], int]:
        """
        What `BufferStore.append` returns, which unused destinations made room, and the number of
        the first record that is in.
        """
        ids = self.register(connection)
        size = sum([len(record.payload) for record in records])
        number, free_records, free_bytes = self._room(connection)
        dropped: Sequence[Dropped] = ()
        if len(records) > free_records or size > free_bytes:
            dropped = self.drop_unused(connection, UNUSED_WHEN_FULL)
            number, free_records, free_bytes = self._room(connection)
        if len(records) <= free_records and size <= free_bytes:
            _insert(connection, records, size, number, ids.values())
            return Appended(len(records)), dropped, number

        room = _Room(connection, self.bounds.bytes, free_records, free_bytes)
        stored = 0
        for record in records:
            if not room.take(record, evict=evict) and not evict:
                break
            stored += 1
        given_up = dict.fromkeys(ids, room.given_up)
        if room.victims:
            names = {destination: name for name, destination in ids.items()}
            for destination, evicted in _evict(connection, room.victims, room.victim_bytes):
                # What other processes keep for destinations of their own is not in our books.
                if destination in names:
                    given_up[names[destination]] += evicted
        kept = room.kept
        size = sum([len(record.payload) for record in kept])
        _insert(connection, kept, size, number, ids.values())
        evicted_by_name = {name: evicted for name, evicted in given_up.items() if evicted}
        return Appended(stored, evicted_by_name), dropped, number

    def take_back(
        self, connection: sqlite3.Connection, number: int, records: Sequence[Record]
    ) -> None:
        """Undo an append of ``records`` from ``number`` on, if it happened: what nobody has."""
        by_id = {record.id: record for record in records}
        mine = []
        for seq, data in connection.execute(
            "SELECT seq, data FROM record WHERE seq BETWEEN ? AND ?",
            (number, number + len(records) - 1),
        ):
            record = by_id.get(_header(data.partition(b"\n")[0])[0])
            if record is not None:
                mine.append((_key(record.priority, seq), len(record.payload)))
        leased = {
            key
            for (key,) in connection.execute(
                "SELECT key FROM pending WHERE hold > 0 "
                "AND key IN (SELECT value FROM json_each(?))",
                (_json([key for key, _ in mine]),),
            )
        }
        free = [(key, size) for key, size in mine if key not in leased]
        if free:
            _evict(connection, [key for key, _ in free], sum([size for _, size in free]))

    def give_back(self, connection: sqlite3.Connection, lease: Lease, owner: int) -> None:
        """Undo a lease, if it happened: another owner may have got its number."""
        hold = _hold_of(connection, lease)
        row = connection.execute(
            "SELECT 1 FROM hold WHERE id = ? AND lease = ?", (hold, owner)
        ).fetchone()
        if row is not None:
            self.release(connection, lease, lease.entries, 0.0)

    def _room(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """Number of the next record, records and bytes that fit."""
        number, records, size = connection.execute(
            "SELECT next, records, bytes FROM meta"
        ).fetchone()
        return number, self.bounds.records - records, self.bounds.bytes - size

    # --- lease ------------------------------------------------------------------------------------

    def lease(
        self,
        connection: sqlite3.Connection,
        destination: str,
        max_records: int,
        max_bytes: int,
        ttl: float,
        owner: int,
    ) -> Lease | None:
        ident = self._id(connection, destination)
        _end_holds(connection, _KEPT_BACK, (ident,))
        runs = _first_ready(connection, ident, max_records, max_bytes)
        if not runs:
            return None
        keys = [key for run in runs for key in run]
        hold = _hold(connection, ident, keys, ttl, owner)
        # Everything ready between the first and the last of a run is what was chosen.
        for run in runs:
            connection.execute(
                "UPDATE pending SET hold = ?1 "
                "WHERE destination = ?2 AND key BETWEEN ?3 AND ?4 AND hold = 0",
                (hold, ident, run[0], run[-1]),
            )
        connection.execute(
            "UPDATE destination SET leased = leased + ?2 WHERE id = ?1", (ident, len(keys))
        )
        ((epoch,),) = connection.execute("SELECT epoch FROM meta")
        entries: dict[str, Record] = {}
        for run in runs:
            row = connection.execute(
                "SELECT json_group_array(key), json_group_array(length(data)), "
                "CAST(group_concat(data, '') AS BLOB) "
                "FROM pending CROSS JOIN record ON seq = key & ?5 "
                "WHERE destination = ?2 AND key BETWEEN ?3 AND ?4 AND hold = ?1",
                (hold, ident, run[0], run[-1], _SEQ_MASK),
            ).fetchone()
            entries |= _decode(*row)
        if len(entries) != len(keys):
            raise sqlite3.DatabaseError("database disk image is malformed: records are missing")
        return Lease(f"{epoch}-{hold}", destination, entries)

    # --- after the attempt ------------------------------------------------------------------------

    def ack(self, connection: sqlite3.Connection, lease: Lease, ids: Sequence[str]) -> int:
        hold = _hold_of(connection, lease)
        if hold is None:
            return 0
        ident = self._id(connection, lease.destination)
        keys = _json(_keys(ids))
        ((mine,),) = connection.execute(
            "SELECT count(*) FROM pending "
            "WHERE destination = ? AND key IN (SELECT value FROM json_each(?)) AND hold = ?",
            (ident, keys, hold),
        )
        _let_go(connection, hold, mine)
        return _forget(connection, ident, "key IN (SELECT value FROM json_each(?2))", (keys,))

    def release(
        self, connection: sqlite3.Connection, lease: Lease, ids: Iterable[str], delay: float
    ) -> int:
        hold = _hold_of(connection, lease)
        keys = _keys(ids)
        if hold is None or not keys:
            return 0
        ident = self._id(connection, lease.destination)
        state = 0
        if delay > 0:
            state = -_hold(connection, ident, keys, delay)
        released = connection.execute(
            "UPDATE pending SET hold = ?4 WHERE destination = ?1 "
            "AND key IN (SELECT value FROM json_each(?2)) AND hold = ?3",
            (ident, _json(keys), hold, state),
        ).rowcount
        _let_go(connection, hold, released)
        _less_leased(connection, ident, released)
        return released

    def bury(
        self, connection: sqlite3.Connection, lease: Lease, ids: Sequence[str], reason: str
    ) -> int:
        hold = _hold_of(connection, lease)
        if hold is None:
            return 0
        ident = self._id(connection, lease.destination)
        keys = _json(_keys(ids))
        buried = connection.execute(
            "INSERT INTO dead (destination, rank, size, reason, data) "
            "SELECT destination, pending.key >> ?5, size, ?4, data "
            "FROM (SELECT value, min(key) AS place FROM json_each(?2) GROUP BY value) "
            "CROSS JOIN pending ON destination = ?1 AND pending.key = value AND hold = ?3 "
            "CROSS JOIN record ON seq = value & ?6 ORDER BY place",
            (ident, keys, hold, reason, _RANK_SHIFT, _SEQ_MASK),
        ).rowcount
        _let_go(connection, hold, buried)
        _forget(
            connection,
            ident,
            "key IN (SELECT value FROM json_each(?2)) AND hold = ?3",
            (keys, hold),
        )
        self._bound_dead_letters(connection, ident)
        return buried

    def replay(self, connection: sqlite3.Connection, destination: str, limit: int) -> int:
        ident = self._id(connection, destination)
        number, free_records, free_bytes = self._room(connection)
        records: list[Record] = []
        last = None
        for letter, rank, size, data in connection.execute(
            "SELECT id, rank, size, data FROM dead WHERE destination = ? ORDER BY id LIMIT ?",
            (ident, max(min(limit, free_records), 0)),
        ):
            if size > free_bytes:
                break
            free_bytes -= size
            records.append(_record(rank, data))
            last = letter
        if records:
            size = sum([len(record.payload) for record in records])
            _insert(connection, records, size, number, (ident,))
            connection.execute(
                "UPDATE destination SET elsewhere = elsewhere + ? WHERE id <> ?",
                (len(records), ident),
            )
            connection.execute("DELETE FROM dead WHERE destination = ? AND id <= ?", (ident, last))
            connection.execute(
                "UPDATE destination SET buried = buried - ? WHERE id = ?", (len(records), ident)
            )
        return len(records)

    def _bound_dead_letters(self, connection: sqlite3.Connection, ident: int) -> None:
        connection.execute(
            "DELETE FROM dead WHERE destination = ?1 AND id <= (SELECT max(id) FROM ("
            "SELECT id, row_number() OVER (ORDER BY id DESC) AS place, "
            "sum(size) OVER (ORDER BY id DESC) AS total FROM dead WHERE destination = ?1"
            ") WHERE place > ?2 OR total > ?3)",
            (ident, self.bounds.dead_letters, self.bounds.dead_letter_bytes),
        )
        connection.execute(
            "UPDATE destination SET buried = "
            "(SELECT count(*) FROM dead WHERE destination = ?1) WHERE id = ?1",
            (ident,),
        )

    def release_expired(self, connection: sqlite3.Connection) -> int:
        return _end_holds(connection, _LEASED, ())

    def release_of(self, connection: sqlite3.Connection, owners: Sequence[int]) -> int:
        """Make ready what these owners have leased; returns how many entries."""
        return _end_holds(connection, _BY_OWNERS, (_json(owners),))

    # --- looking ----------------------------------------------------------------------------------

    def stats(self, connection: sqlite3.Connection) -> Mapping[str, DestinationDepth]:
        found = {name: DestinationDepth() for name in self.destinations}
        for name, pending, leased, buried, size, data in connection.execute(_STATS).fetchall():
            if name in found:
                found[name] = DestinationDepth(
                    ready=pending - leased,
                    leased=leased,
                    buried=buried,
                    bytes=size,
                    oldest=None if data is None else _header(data)[2],
                )
        return found

    def dead_letters(
        self, connection: sqlite3.Connection, destination: str
    ) -> Sequence[DeadLetter]:
        rows = connection.execute(
            "SELECT rank, data, reason FROM dead JOIN destination ON destination.id = destination "
            "WHERE name = ? ORDER BY dead.id",
            (destination,),
        ).fetchall()
        return tuple(DeadLetter(_record(rank, data), reason) for rank, data, reason in rows)

    def peek(
        self, connection: sqlite3.Connection, destination: str, after: str | None, limit: int
    ) -> Peeked:
        """Numbers are given out in the order of arrival, none is left out."""
        ((last, elsewhere, pending),) = connection.execute(
            "SELECT next - 1, coalesce(elsewhere, 0), coalesce(pending, 0) "
            "FROM meta LEFT JOIN destination ON name = ?",
            (destination,),
        )
        all_came = last - elsewhere
        end = f"{last}+{all_came}"
        if limit < 1:
            return Peeked((), end)
        # What the looks before came by: up to which number, and how many for this destination.
        start, came = 0, 0
        if after is None:
            came = all_came - pending
        elif (position := _POSITION.fullmatch(after)) is not None:
            start, came = map(int, position.groups())
            if start > last:  # another file: the one that was looked into is gone
                start, came = 0, 0
        rows = connection.execute(_PEEK, {"name": destination, "after": start, "limit": limit})
        found = rows.fetchall()
        came += len(found)
        passed = 0
        if len(found) < limit:
            passed = max(all_came - came, 0)
        else:
            end = f"{found[-1][0]}+{came}"
        records = tuple(_record(key >> _RANK_SHIFT, data) for _, key, data in found)
        return Peeked(records, end, passed)

    def is_empty(self, connection: sqlite3.Connection) -> bool:
        ((count,),) = connection.execute("SELECT records FROM meta")
        return bool(count == 0)


_NEVER = 1 << 62
_FIRSTS = ", ".join(
    "coalesce((SELECT key & %d FROM pending WHERE pending.destination = destination.id "  # noqa: S608, UP031 - numbers of our own, in a long text
    "AND key >= %d AND key < %d ORDER BY key LIMIT 1), %d)"
    % (_SEQ_MASK, rank << _RANK_SHIFT, (rank + 1) << _RANK_SHIFT, _NEVER)
    for rank in range(len(Priority))
)
_STATS = (
    "SELECT name, pending, leased, buried, bytes, "  # noqa: S608 - numbers of our own
    f"(SELECT substr(data, 1, instr(data, x'0a')) FROM record WHERE seq = min({_FIRSTS})) "
    "FROM destination"
)
_KEYS = " UNION ALL ".join(
    "SELECT * FROM (SELECT key FROM pending WHERE key > %d + :after AND key < %d "  # noqa: S608, UP031 - as above
    "AND destination = (SELECT id FROM destination WHERE name = :name) ORDER BY key LIMIT :limit)"
    % (rank << _RANK_SHIFT, (rank + 1) << _RANK_SHIFT)
    for rank in range(len(Priority))
)
_PEEK = (
    f"SELECT seq, key, data FROM ({_KEYS}) "  # noqa: S608 - numbers of our own
    f"JOIN record ON seq = key & {_SEQ_MASK} ORDER BY seq LIMIT :limit"
)


# --- entries --------------------------------------------------------------------------------------


def _key(priority: int, number: int) -> int:
    return (_TOP - priority) << _RANK_SHIFT | number


def _keys(ids: Iterable[str]) -> list[int]:
    """The keys of entry ids; what this store cannot have given out is left out."""
    return [int(entry) for entry in ids if entry.isascii() and entry.isdigit() and len(entry) < 19]


def _json(values: Sequence[int]) -> str:
    return orjson.dumps(values).decode()


def _insert(
    connection: sqlite3.Connection,
    records: Sequence[Record],
    size: int,
    number: int,
    destinations: Iterable[int],
) -> None:
    if not records or not destinations:
        return
    parts: list[bytes] = []
    places: list[int] = []
    states: list[int] = []
    start = 1
    for record_id, kind, priority, payload, accepted_at in records:
        header = orjson.dumps((record_id, kind, accepted_at), option=orjson.OPT_APPEND_NEWLINE)
        length = len(header) + len(payload)
        parts += (header, payload)
        places.append(start << _LENGTH_BITS | length)
        states.append(len(payload) << _RANK_BITS | (_TOP - priority))
        start += length
    connection.execute(
        "INSERT INTO record (seq, data) "
        "SELECT ?1 + key, substr(?2, value >> ?4, value & ((1 << ?4) - 1)) FROM json_each(?3)",
        (number, b"".join(parts), _json(places), _LENGTH_BITS),
    )
    for destination in destinations:
        connection.execute(
            "INSERT INTO pending (destination, key, size, hold) "
            "SELECT ?1, ((value & ((1 << ?4) - 1)) << ?5) + ?2 + key, value >> ?4, 0 "
            "FROM json_each(?3)",
            (destination, number, _json(states), _RANK_BITS, _RANK_SHIFT),
        )
        connection.execute(
            "UPDATE destination SET pending = pending + ?2, bytes = bytes + ?3 WHERE id = ?1",
            (destination, len(records), size),
        )
    connection.execute(
        "UPDATE meta SET next = next + ?1, records = records + ?1, bytes = bytes + ?2",
        (len(records), size),
    )


def _header(data: bytes) -> tuple[str, str, float]:
    try:
        record_id, kind, accepted_at = orjson.loads(data)
    except ValueError as error:
        msg = "database disk image is malformed: a record cannot be read"
        raise sqlite3.DatabaseError(msg) from error
    return record_id, kind, accepted_at


def _record(rank: int, data: bytes) -> Record:
    header, _, payload = data.partition(b"\n")
    record_id, kind, accepted_at = _header(header)
    return Record(record_id, kind, _PRIORITIES[_TOP - rank], payload, accepted_at)  # type: ignore[arg-type] # it was a Kind when it was stored


def _decode(keys: str, lengths: str, data: bytes) -> dict[str, Record]:
    """Entries in the order of their keys, which is the order of leasing."""
    entries: dict[int, Record] = {}
    start = 0
    for key, length in zip(orjson.loads(keys), orjson.loads(lengths), strict=True):
        entries[key] = _record(key >> _RANK_SHIFT, data[start : start + length])
        start += length
    return {str(key): entries[key] for key in sorted(entries)}


def _first_ready(
    connection: sqlite3.Connection, destination: int, max_records: int, max_bytes: int
) -> list[list[int]]:
    """The keys to lease, in order, as runs in which everything that is ready was chosen."""
    chosen, _, cut = _ready_between(connection, destination, (0, _END), max_records, max_bytes)
    if not chosen or not cut or max_records < LEASE_SHARE:
        return [chosen] if chosen else []
    # Not all that is ready: what waits of a lower priority gets its share.
    highest, last = (key >> _RANK_SHIFT for key in (chosen[0], chosen[-1]))
    ranks = list(range(highest, last + 1))
    while ranks[-1] < _TOP:
        below = (_of_rank(ranks[-1] + 1)[0], _END)
        found, _, _ = _ready_between(connection, destination, below, 1, max_bytes)
        if not found:
            break
        ranks.append(found[0] >> _RANK_SHIFT)
    if len(ranks) == 1:
        return [chosen]
    runs: list[list[int]] = []
    taken = size = 0
    for position, rank in enumerate(ranks, 1):
        lower = len(ranks) - position
        most = max_records - lower * (max_records // LEASE_SHARE)
        most_bytes = max_bytes - lower * (max_bytes // LEASE_SHARE)
        if taken >= most:
            continue
        run, used, _ = _ready_between(
            connection,
            destination,
            _of_rank(rank),
            most - taken,
            most_bytes - size,
            alone=not runs,
        )
        if run:
            runs.append(run)
            taken, size = taken + len(run), size + used
    return runs


def _ready_between(
    connection: sqlite3.Connection,
    destination: int,
    keys: tuple[int, int],
    max_records: int,
    max_bytes: int,
    *,
    alone: bool = True,
) -> tuple[list[int], int, bool]:
    """
    The first keys that are ready, their bytes, and whether there may be more.

    With ``alone`` the first one is there however large it is.
    """
    found, sizes = connection.execute(
        "SELECT json_group_array(key), json_group_array(size) FROM (SELECT key, size FROM pending "
        "WHERE destination = ? AND key BETWEEN ? AND ? AND hold = 0 ORDER BY key LIMIT ?)",
        (destination, *keys, max(max_records, 0)),
    ).fetchone()
    chosen: list[int] = []
    total = 0
    for key, size in sorted(zip(orjson.loads(found), orjson.loads(sizes), strict=True)):
        if total + size > max_bytes and (chosen or not alone):
            return chosen, total, True
        total += size
        chosen.append(key)
    return chosen, total, len(chosen) >= max_records


def _of_rank(rank: int) -> tuple[int, int]:
    """The keys of all records of a priority."""
    return rank << _RANK_SHIFT, (rank << _RANK_SHIFT) | _SEQ_MASK


# --- holds ----------------------------------------------------------------------------------------


def _hold(
    connection: sqlite3.Connection,
    destination: int,
    keys: Sequence[int],
    seconds: float,
    owner: int = 0,
) -> int:
    """Leased by ``owner``, or kept back from everybody when there is none."""
    now = time.monotonic()
    cursor = connection.execute(
        "INSERT INTO hold (destination, lease, since, until, first, last, entries) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (destination, owner, now, now + seconds, min(keys), max(keys), len(keys)),
    )
    return _inserted(cursor)


def _hold_of(connection: sqlite3.Connection, lease: Lease) -> int | None:
    """The hold of a lease, None when it is of another file than this."""
    epoch, _, number = lease.id.rpartition("-")
    ((current,),) = connection.execute("SELECT epoch FROM meta")
    return int(number) if epoch == current else None


def _let_go(connection: sqlite3.Connection, hold: int, entries: int) -> None:
    """Count entries less for a hold, which ends with its last, or else with its time."""
    connection.execute("UPDATE hold SET entries = entries - ? WHERE id = ?", (entries, hold))
    connection.execute("DELETE FROM hold WHERE id = ? AND entries <= 0", (hold,))


_OVER = "NOT (since <= ?1 AND ?1 < until)"
_LEASED = f"lease <> 0 AND {_OVER}"
_KEPT_BACK = f"lease = 0 AND destination = ?2 AND {_OVER}"
_BY_OWNERS = "?1 AND lease IN (SELECT value FROM json_each(?2))"


def _end_holds(connection: sqlite3.Connection, which: str, arguments: tuple[object, ...]) -> int:
    """
    Make ready what holds have that are over; returns how many entries.

    ``which`` is one of the conditions above, whose parameters, from ?2, are ``arguments``.
    """
    rows = connection.execute(
        f"SELECT id, destination, first, last, lease FROM hold WHERE {which}",  # noqa: S608 - of our own
        (time.monotonic(), *arguments),
    ).fetchall()
    total = 0
    for hold, ident, first, last, lease in rows:
        ended = connection.execute(
            "UPDATE pending SET hold = 0 "
            "WHERE destination = ? AND key BETWEEN ? AND ? AND hold = ?",
            (ident, first, last, hold if lease else -hold),
        ).rowcount
        if lease:
            _less_leased(connection, ident, ended)
        connection.execute("DELETE FROM hold WHERE id = ?", (hold,))
        total += ended
    return total


def _less_leased(connection: sqlite3.Connection, destination: int, entries: int) -> None:
    connection.execute(
        "UPDATE destination SET leased = leased - ?2 WHERE id = ?1", (destination, entries)
    )


# --- forgetting -----------------------------------------------------------------------------------

# A cross join is done in the order it is written: few destinations, one look-up for each.
_NOBODY_ELSE = (
    "NOT EXISTS (SELECT 1 FROM destination AS other CROSS JOIN pending AS theirs "
    "ON theirs.destination = other.id AND theirs.key = pending.key WHERE other.id <> ?1)"
)


def _forget(
    connection: sqlite3.Connection, destination: int, which: str, arguments: tuple[object, ...]
) -> int:
    """
    The destination is done with some entries; records nobody else waits for go with them.

    ``which`` is a condition on `pending` whose parameters, from ?2, are ``arguments``.
    """
    some = f"FROM pending WHERE destination = ?1 AND {which}"
    given = (destination, *arguments)
    sums = "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(hold > 0), 0) "
    count, size, leased = connection.execute(sums + some, given).fetchone()
    if not count:
        return 0
    last, records, freed = some, count, size
    ((destinations,),) = connection.execute("SELECT count(*) FROM destination")
    if destinations > 1:
        last = f"{some} AND {_NOBODY_ELSE}"
        records, freed, _ = connection.execute(sums + last, given).fetchone()
    connection.execute(
        f"DELETE FROM record WHERE seq IN (SELECT key & {_SEQ_MASK} {last})",  # noqa: S608 - of our own
        given,
    )
    connection.execute("DELETE " + some, given)
    connection.execute(
        "UPDATE destination SET pending = pending - ?2, bytes = bytes - ?3, leased = leased - ?4 "
        "WHERE id = ?1",
        (destination, count, size, leased),
    )
    _free(connection, records, freed)
    return int(count)


def _free(connection: sqlite3.Connection, records: int, size: int) -> None:
    connection.execute(
        "UPDATE meta SET records = records - ?1, bytes = bytes - ?2", (records, size)
    )


def _evict(
    connection: sqlite3.Connection, victims: Sequence[int], size: int
) -> list[tuple[int, int]]:
    """Give up records for all destinations; returns destination and count for each."""
    keys = _json(victims)
    some = (
        "FROM pending WHERE destination IN (SELECT id FROM destination) "
        "AND key IN (SELECT value FROM json_each(?1))"
    )
    rows = connection.execute(
        f"SELECT destination, count(*), sum(size) {some} GROUP BY destination",
        (keys,),
    ).fetchall()
    connection.execute("DELETE " + some, (keys,))
    connection.execute(
        "DELETE FROM record WHERE seq IN (SELECT value & ?2 FROM json_each(?1))",
        (keys, _SEQ_MASK),
    )
    connection.executemany(
        "UPDATE destination SET pending = pending - ?2, bytes = bytes - ?3 WHERE id = ?1", rows
    )
    _free(connection, len(victims), size)
    return [(destination, count) for destination, count, _ in rows]


class _Room:
    """
    Decides, record by record, what an append to a full store keeps and what it gives up.

    What makes room is ordered by priority, then by age; of one priority, what the store has is
    older than what comes.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        max_bytes: int,
        free_records: int,
        free_bytes: int,
    ) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        self._free_records = free_records
        self._free_bytes = free_bytes
        self._newcomers: list[Record | None] = []
        self._fresh: list[deque[tuple[int, int]]] = [deque() for _ in Priority]
        self._stored: list[deque[tuple[int, int]]] = [deque() for _ in Priority]
        # The last key that was looked at, None when there is no more.
        self._after: list[int | None] = [_key(priority, 0) for priority in Priority]
        self.victims: list[int] = []
        self.victim_bytes = 0
        self.given_up = 0

    @property
    def kept(self) -> list[Record]:
        """The newcomers that stay."""
        return [record for record in self._newcomers if record is not None]

    def take(self, record: Record, *, evict: bool) -> bool:
        size = len(record.payload)
        if self._free_records < 1 or self._free_bytes < size:
            if not evict:
                return False
            if not self._make_room(record.priority, size):
                self.given_up += 1
                return False
        self._fresh[record.priority].append((len(self._newcomers), size))
        self._newcomers.append(record)
        self._free_records -= 1
        self._free_bytes -= size
        return True

    def _make_room(self, highest: int, size: int) -> bool:
        """Evict for a newcomer; when that cannot make enough room, evict nothing."""
        if size > self._max_bytes:
            return False
        slots, excess = 1 - self._free_records, size - self._free_bytes
        chosen: list[tuple[deque[tuple[int, int]], tuple[int, int]]] = []
        for priority in range(highest + 1):
            while (slots > 0 or excess > 0) and (queue := self._next(priority)):
                chosen.append((queue, queue.popleft()))
                slots -= 1
                excess -= chosen[-1][1][1]
        if slots > 0 or excess > 0:
            for queue, candidate in reversed(chosen):
                queue.appendleft(candidate)
            return False
        for queue, (which, freed) in chosen:
            is_stored = any(queue is stored for stored in self._stored)
            if is_stored:
                self.victims.append(which)
                self.victim_bytes += freed
            else:
                self._newcomers[which] = None
                self.given_up += 1
            self._free_records += 1
            self._free_bytes += freed
        return True

    def _next(self, priority: int) -> deque[tuple[int, int]] | None:
        """The queue whose first goes next, None when there is nothing of this priority."""
        stored = self._stored[priority]
        while not stored and self._after[priority] is not None:
            self._load(priority)
        return stored or self._fresh[priority] or None

    def _load(self, priority: int) -> None:
        """Look at some more of what the store has: what nobody has leased."""
        after, end = self._after[priority], _key(priority, _SEQ_MASK)
        found: dict[int, int] = {}
        until = end
        rows = self._connection.execute("SELECT id FROM destination").fetchall()
        for (destination,) in rows:
            keys, sizes = self._connection.execute(
                "SELECT json_group_array(key), json_group_array(size) FROM ("
                "SELECT key, size FROM pending WHERE destination = ? AND key > ? AND key <= ? "
                "AND hold <= 0 ORDER BY key LIMIT ?)",
                (destination, after, end, _BLOCK),
            ).fetchone()
            block = dict(zip(orjson.loads(keys), orjson.loads(sizes), strict=True))
            found.update(block)
            if len(block) == _BLOCK:  # behind its end there may be more for this destination
                until = min(until, max(block))
        self._after[priority] = until if until < end else None
        ((leased,),) = self._connection.execute(
            "SELECT json_group_array(key) FROM pending "
            "WHERE destination IN (SELECT id FROM destination) "
            "AND key IN (SELECT value FROM json_each(?)) AND hold > 0",
            (_json(list(found)),),
        )
        skipped = set(orjson.loads(leased))
        self._stored[priority].extend(
            (key, found[key]) for key in sorted(found) if key <= until and key not in skipped
        )


def _inserted(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None  # noqa: S101 - for the type: it inserted a row
    return cursor.lastrowid

"""Whether a node of a cluster goes on with what it had, or has come back with something older.

A node that was started anew may have read an old snapshot: the last invalidations are missing in it, and what they ended would be
back. It is emptied (of our keys) before it is used. A replica that has become the master goes on.

Each node has marks, which last for `MARK_SECONDS` and are written anew now and then: how much of that time is left tells when. One that
was written since the node's process began is in no snapshot that it can have read; and one that names the process itself was
written by who had looked. Without either, the node counts as one that came back.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis import pipeline
from twistedproxy.cache.redis.keys import OURS
from twistedproxy.cache.redis.pipeline import BatchProtocol, Run
from twistedproxy.cache.redis.topology import Ranges, own_keys

MARK_SECONDS = 30 * 24 * 3600.0
MARKS = 4
"""Marks of one node: where slots move to another, hardly all of them go."""
SCANNED = 1000
"""Keys that the node looks at for one command: about a millisecond."""

_log = Logger()


def marks_of(ranges: Ranges) -> list[bytes]:
    """The marks of a node that has these slots."""
    return own_keys(b"r", ranges, MARKS)


def written(marks: Sequence[bytes], run: Run) -> list[pipeline.Command]:
    """The commands that write *marks*."""
    entries = [(mark, run.name) for mark in marks]
    return pipeline.set_entries(b"", entries, MARK_SECONDS)


async def look(connection: BatchProtocol, run: Run, ranges: Ranges, where: str) -> None:
    """Empty the node at *where* if it came back; mark it in any case. Raises `CacheUnavailable`."""
    marks = marks_of(ranges)
    if not marks or not run.name:
        return
    wire = pipeline.wire_of([*pipeline.for_each(b"GET", marks), *pipeline.for_each(b"PTTL", marks)])
    replies = await connection.send(wire, 2 * len(marks))
    if not any(_goes_on(value, left, run) for value, left in zip(replies, replies[len(marks) :])):
        await _empty(connection, run, marks[0], where)
    replies = await connection.send(pipeline.wire_of(written(marks, run)), len(marks))
    for reply in replies:
        if isinstance(reply, Exception) and not str(reply).startswith(("MOVED", "ASK")):
            raise CacheUnavailable(f"the server answered: {reply}")


def _goes_on(value: object, left: object, run: Run) -> bool:
    if not isinstance(value, bytes) or not isinstance(left, int):
        return False
    return value == run.name or 0 <= MARK_SECONDS - left / 1000 < run.seconds


async def _empty(connection: BatchProtocol, run: Run, mark: bytes, where: str) -> None:
    """Remove all our keys, unless another process does it meanwhile."""
    cursor, removed = b"0", 0
    while True:
        scan = pipeline.command(b"SCAN", cursor, b"MATCH", OURS, b"COUNT", b"%d" % SCANNED)
        found, marked = await connection.send(scan + pipeline.command(b"GET", mark), 2)
        if not isinstance(found, list):
            raise CacheUnavailable(f"the server can't be emptied: {found}")
        cursor, keys = found
        if marked == run.name:
            break
        if keys:
            await connection.send(pipeline.wire_of(pipeline.for_each(b"UNLINK", keys)), len(keys))
            removed += len(keys)
        if cursor == b"0":
            break
    if removed:
        _log.warn(
            "the cache at {where} came back with old content: {removed} keys were removed",
            event="cache_emptied",
            where=where,
            removed=removed,
        )

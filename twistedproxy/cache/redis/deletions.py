"""What is deleted on servers, for good: also where a replica takes over that had not got it.

Rules kept here:
- What was deleted lately is deleted once more, by whoever did it, over each connection that is made: a replica that has become the
  master may not have got it. However many frames that are, generations and grants are not forgotten for them. What says that an
  instance is being loaded is deleted once: the next one may be another load's.
- A generation has ended where a replica has confirmed that, if there is one (WAIT).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from twistedproxy.cache.interface import FRAME, CacheUnavailable
from twistedproxy.cache.keys import LOADING
from twistedproxy.cache.redis import pipeline
from twistedproxy.cache.redis.connection import Link
from twistedproxy.cache.redis.keys import entry_name
from twistedproxy.cache.redis.pipeline import BatchProtocol, Replies

REPEAT_SECONDS = 300.0
"""How long a deletion is repeated. A replica is promoted within seconds or a minute; by hand, within a few."""
MAX_REPEATED = 20_000
"""Keys of frames that are, and of all else: of more, the oldest are forgotten."""
WAIT_SECONDS = 0.2
"""How long a replica may take to confirm. It takes about a millisecond; other writes wait meanwhile."""

_log = Logger()


class Deletions:
    """Keys that were deleted lately."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._clock = reactor
        self._until: tuple[OrderedDict[bytes, float], ...] = (OrderedDict(), OrderedDict())

    def add(self, keys: Iterable[bytes]) -> None:
        """Remember *keys* for `REPEAT_SECONDS`."""
        until = self._clock.seconds() + REPEAT_SECONDS
        for key in keys:
            name = entry_name(key)
            if name != LOADING:
                kept = self._until[name.startswith(FRAME)]
                kept.pop(key, None)
                kept[key] = until
        for kept in self._until:
            while len(kept) > MAX_REPEATED:
                kept.popitem(last=False)

    def recent(self) -> list[bytes]:
        """Those that are to be repeated."""
        now = self._clock.seconds()
        for kept in self._until:
            while kept and next(iter(kept.values())) <= now:
                kept.popitem(last=False)
        return [*chain(*self._until)]


async def repeat(connection: BatchProtocol, keys: Sequence[bytes]) -> None:
    """Delete *keys* once more. Raises `CacheUnavailable`."""
    if keys:
        await pipeline.taken(connection, pipeline.wire_of(pipeline.for_each(b"DEL", keys)), len(keys))


async def delete_at(link: Link, keys: Sequence[bytes], confirmed: bool) -> Replies:
    """Delete *keys*; the replies. *confirmed*: see `Servers.delete`. Raises `CacheUnavailable`."""
    connection = link.connection
    if connection is None:
        raise CacheUnavailable(link.trouble)
    commands = pipeline.for_each(b"DEL" if confirmed else b"UNLINK", keys)
    if not confirmed or not link.informs:
        return await link.send(pipeline.wire_of(commands), len(keys))
    *replies, role = await link.send(pipeline.wire_of([*commands, (pipeline.command(b"ROLE"),)]), len(keys) + 1)
    if isinstance(role, list) and role[:1] == [b"master"] and len(role) > 2 and role[2]:
        # On the same connection: WAIT is about what that one wrote.
        wait = pipeline.command(b"WAIT", b"1", pipeline.milliseconds(WAIT_SECONDS))
        (count,) = await connection.send(wait, 1)
        if count == 0:
            raise CacheUnavailable("no replica has confirmed it")
        if isinstance(count, Exception):  # no right to it, or no such command
            _log.debug("cache: invalidations are not confirmed by replicas: {reason}", reason=str(count))
    return replies

"""Claims, and entries that are small and written often: a table of its own, so that they never wait for a load.

An LMDB environment: one writer at a time among all processes, readers wait for none, and what a killed process was
writing is as if it never was. Nothing is synchronized with the disk: after an unclean end of the machine the table is made
anew. Measured: a read takes 1 us, a claim 0.1 ms.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Optional, TypeVar

import lmdb

from twistedproxy.cache.keys import LOADING

NAME = "facts"
_KEY_START = 21
"""Bytes of a key before the name: the kind of key, and the digest of the instance."""

MAX_READERS = 1024
"""Threads that read at once, in all processes."""

AT_ONCE = 64
"""Writes of one transaction: the others' wait is short then."""

FULL = 0.6
"""The part of the table's size above which room is made. The rest is for pages that are being rewritten."""

MOST = 32 << 20
"""Bytes of the table at most; some 60,000 grants."""

SHARE = 16
"""One part in so many of a small cache is for the table."""

_HEAD = struct.Struct("!Qd")
"""The fence that an entry was written under (0 of a claim), and when it ends."""

_T = TypeVar("_T")


def name_of(key: bytes) -> bytes:
    """The name of the entry, or of what is claimed, whose key this is."""
    return key[_KEY_START:]


def facts_size(size: int) -> int:
    """Bytes of the table in a cache of *size* bytes."""
    return min(MOST, size // SHARE) & ~0xFFF


def open_environment(path: Path, size: int) -> lmdb.Environment:
    """The LMDB environment at *path*, of at most *size* bytes. Raises `lmdb.Error`."""
    return lmdb.open(
        str(path),
        subdir=False,
        map_size=size,
        mode=0o600,
        sync=False,
        metasync=False,
        readahead=False,
        max_readers=MAX_READERS,
        max_spare_txns=1,
    )


def in_parts(items: Iterable[_T]) -> Iterable[list[_T]]:
    """*items* in lists of `AT_ONCE`."""
    every = list(items)
    return (every[at : at + AT_ONCE] for at in range(0, len(every), AT_ONCE))


class Facts:
    """The table below *folder*. Raises `lmdb.Error` where it can't be written. *clock*: seconds since the epoch."""

    def __init__(self, folder: Path, size: int, clock: Callable[[], float]) -> None:
        self._environment = open_environment(folder / NAME, size)
        self._limit = int(size * FULL)
        self._clock = clock

    @staticmethod
    def create(folder: Path, size: int) -> None:
        """Make an empty table, at its full size, so that it can be written on a full disk."""
        for name in (NAME, NAME + "-lock"):
            (folder / name).unlink(missing_ok=True)
        open_environment(folder / NAME, size).close()
        if hasattr(os, "posix_fallocate"):
            file = os.open(folder / NAME, os.O_RDWR)
            try:
                os.posix_fallocate(file, 0, size)
            finally:
                os.close(file)

    # Entries.

    def get(self, key: bytes, fence: bytes) -> Optional[bytes]:
        """The entry of *key* that was written under *fence* or a later one, and has not ended."""
        with self._environment.begin() as transaction:
            stored = transaction.get(key)
        if stored is None:
            return None
        written, ends = _HEAD.unpack_from(stored)
        return stored[_HEAD.size :] if written.to_bytes(8, "big") >= fence and ends > self._clock() else None

    def put(self, entries: Mapping[bytes, bytes], fence: bytes, ends: float) -> None:
        """Write entries that end at *ends*."""
        head = _HEAD.pack(int.from_bytes(fence, "big"), ends)
        for part in in_parts(entries.items()):
            self._write(lambda transaction: [transaction.put(key, head + value) for key, value in part])  # noqa: B023

    def remove(self, keys: Iterable[bytes]) -> None:
        """Take entries back."""
        for part in in_parts(keys):
            self._write(lambda transaction: [transaction.delete(key) for key in part])  # noqa: B023

    # Claims.

    def claim(self, keys: Iterable[bytes], token: bytes, seconds: float) -> set[bytes]:
        """Claim for *token* those of *keys* that are free; which ones that were."""
        won: set[bytes] = set()
        now = self._clock()
        value = _HEAD.pack(0, now + seconds) + token

        def claim(transaction: lmdb.Transaction, part: list[bytes]) -> None:
            for key in part:
                held = transaction.get(key)
                if held is None or _HEAD.unpack_from(held)[1] <= now:
                    transaction.put(key, value)
                    won.add(key)

        for part in in_parts(keys):
            self._write(lambda transaction: claim(transaction, part))  # noqa: B023
        return won

    def renew(self, keys: Iterable[bytes], token: bytes, seconds: float) -> None:
        """Prolong those claims that *token* holds; 0 seconds give them back."""
        now = self._clock()
        value = _HEAD.pack(0, now + seconds) + token

        def renew(transaction: lmdb.Transaction, part: list[bytes]) -> None:
            for key in part:
                held = transaction.get(key)
                if held is None or held[_HEAD.size :] != token or _HEAD.unpack_from(held)[1] <= now:
                    continue
                if seconds:
                    transaction.put(key, value)
                else:
                    transaction.delete(key)

        for part in in_parts(keys):
            self._write(lambda transaction: renew(transaction, part))  # noqa: B023

    def left(self, key: bytes) -> Optional[float]:
        """Seconds until the claim of *key* ends; None where it is free."""
        with self._environment.begin() as transaction:
            held = transaction.get(key)
        left = _HEAD.unpack_from(held)[1] - self._clock() if held is not None else 0.0
        return left if left > 0 else None

    def claimed(self, prefix: bytes) -> list[bytes]:
        """The keys of claims that begin with *prefix*."""
        keys: list[bytes] = []
        now = self._clock()
        with self._environment.begin() as transaction:
            cursor = transaction.cursor()
            more = cursor.set_range(prefix)
            while more and cursor.key().startswith(prefix):
                if _HEAD.unpack_from(cursor.value())[1] > now:
                    keys.append(cursor.key())
                more = cursor.next()
        return keys

    # The table.

    def version(self) -> int:
        """A number that grows with each change, whichever process makes it."""
        return int(self._environment.info()["last_txnid"])

    def _write(self, change: Callable[[lmdb.Transaction], object]) -> None:
        """Do *change* in a transaction. Room is made early: in a full table nothing could be deleted either."""
        if self._used() > self._limit:
            self.check_readers()
            self._drop_ended()
            if self._used() > self._limit:
                self._drop_all()
        try:
            with self._environment.begin(write=True) as transaction:
                change(transaction)
        except (lmdb.MapFullError, lmdb.ReadersFullError):  # a killed reader held pages, or places
            self.check_readers()
            with self._environment.begin(write=True) as transaction:
                change(transaction)

    def _used(self) -> int:
        """Bytes of the pages in use."""
        stat = self._environment.stat()
        return int(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]))

    def _drop_ended(self) -> None:
        now = self._clock()
        with self._environment.begin() as transaction:
            ended = [key for key, value in transaction.cursor() if _HEAD.unpack_from(value)[1] <= now]
        for part in in_parts(ended):
            with self._environment.begin(write=True) as transaction:
                for key in part:
                    transaction.delete(key)

    def _drop_all(self) -> None:
        """All can be asked for, or claimed, again; but what says that an instance is being loaded stays."""
        with self._environment.begin(write=True) as transaction:
            kept = [(key, value) for key, value in transaction.cursor() if name_of(key) == LOADING]
            transaction.drop(self._environment.open_db(None, transaction), delete=False)
            for key, value in kept:
                transaction.put(key, value)

    def begin_anew(self) -> list[bytes]:
        """Drop all claims: who held them is gone. The keys of all entries."""
        with self._environment.begin() as transaction:
            keys = [key for key, _ in transaction.cursor()]
        self.remove(key for key in keys if key.startswith(b"c"))
        return [key for key in keys if not key.startswith(b"c")]

    def walk(self) -> None:
        """Read all of it, and begin to write: what is damaged raises, or ends the process."""
        with self._environment.begin(write=True) as transaction:
            for _, value in transaction.cursor():
                _HEAD.unpack_from(value)
            transaction.put(b"c", b"")
            transaction.abort()

    def check_readers(self) -> None:
        """Have the pages back that a killed reader held."""
        self._environment.reader_check()

    def close(self) -> None:
        """Close the table."""
        self._environment.close()

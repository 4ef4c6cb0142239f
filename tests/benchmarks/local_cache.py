"""How well the local cache uses its size: a churn of ten times the size, with readers, beside an exact LRU of the same size.

Readers look at slides as `tests.benchmarks.viewing` makes it up, one after the other and side by side; what they miss is written.
Meanwhile whole slides that nobody looks at are written. Run: ``python -m tests.benchmarks.local_cache``. Ends with 1 if the
files ever had more bytes than the size, if less than 90 % of it is used at the end, or if readers hit less than an exact LRU
lets them by more than 3 points.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measuring import table
from tests.benchmarks.viewing import Level, session
from twistedproxy.cache.local import folder as folders
from twistedproxy.cache.local import segments
from twistedproxy.cache.local.facts import facts_size
from twistedproxy.cache.local.generations import NAME as JOURNAL
from twistedproxy.cache.local.store import SegmentStore

MIB = 1 << 20
LEVELS = [Level("fine", 1, 100, 100), Level("middle", 4, 25, 25), Level("coarse", 16, 7, 7)]
LEAST_USED = 0.9
MOST_POINTS = 3.0
READERS = 4
LOOK_EVERY = 500  # requests between two looks at the marks and at the size

Step = tuple[str, bytes]
"""``read`` or ``load``, and a key."""


def steps(chance: random.Random, moves: int, loads: float) -> Iterator[Step]:
    """What readers ask for, and what is loaded meanwhile: *loads* frames for each that is asked for."""
    slide, owed, loading = 0, 0.0, iter(())
    sessions: list[Iterator[bytes]] = [iter(())] * READERS
    done = 0
    while done < moves:
        which = chance.randrange(READERS)
        key = next(sessions[which], None)
        if key is None:
            slide, done = slide + 1, done + 1
            # Half of the readers open a slide that another looked at lately.
            number = slide if chance.random() < 0.5 else max(1, slide - chance.randrange(4))
            sessions[which] = _asked(number, chance.randrange(1 << 30))
            continue
        yield "read", key
        owed += loads
        while owed >= 1:
            owed -= 1
            loaded = next(loading, None)
            if loaded is None:
                loading = iter([f"L{chance.randrange(1 << 40)}/{frame}".encode() for frame in range(5000)])  # type: ignore[assignment]
            else:
                yield "load", loaded


def _asked(slide: int, seed: int) -> Iterator[bytes]:
    for screen in session(seed, LEVELS, 60):
        for frame in screen.frames:
            yield f"S{slide}/{screen.level.name}/{frame}".encode()


class ExactLru:
    """An LRU of *size* bytes."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._held: OrderedDict[bytes, int] = OrderedDict()

    def has(self, key: bytes) -> bool:
        if key in self._held:
            self._held.move_to_end(key)
            return True
        return False

    def put(self, key: bytes, size: int) -> None:
        self._left += self._held.pop(key, 0) - size
        self._held[key] = size
        while self._left < 0:
            self._left += self._held.popitem(last=False)[1]


def used(folder: Path) -> int:
    """Bytes of all files below *folder*."""
    return sum(entry.stat().st_size for entry in os.scandir(folder) if not entry.name.endswith("-lock"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.local_cache", description=__doc__)
    parser.add_argument("--size", type=int, default=128, help="of the cache (MiB)")
    parser.add_argument("--loads", type=float, default=1.0, help="frames that are loaded for each that is asked for")
    parser.add_argument("--churn", type=float, default=10.0, help="how many times the size is written")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as path:
        return run(Path(path), options.size * MIB, options.loads, options.churn)


def run(folder: Path, size: int, loads: float, churn: float) -> int:
    """Read and write until *churn* times *size* was written."""
    folders.empty(folder, facts_size(size))
    own = facts_size(size) + (folder / JOURNAL).stat().st_size
    store = SegmentStore(folder, size - own, time.time)
    exact, chance = ExactLru(size - own), random.Random(7)
    frame = random.Random(8).randbytes(1 << 20)
    reads = hits = exact_hits = written = most = 0
    asked_for: set[segments.Place] = set()
    old_before = 0
    began = time.perf_counter()
    for count, (kind, key) in enumerate(steps(chance, 1 << 30, loads)):
        length = 7000 + hash_of(key) % 4000
        (entry,) = store.index.find((key,))
        if kind == "read":
            reads += 1
            hits += entry is not None
            exact_hit = exact.has(key)
            exact_hits += exact_hit
            if entry is not None and entry.place.segment < old_before:
                asked_for.add(entry.place)
            if not exact_hit:
                exact.put(key, length)
        else:
            exact.put(key, length)
        if entry is None:
            start = hash_of(key) % (len(frame) - length)
            store.put([(key, (frame[start : start + length],))], 0, segments.NEVER)
            written += length
        if count % LOOK_EVERY == 0:
            segments.mark(folder, asked_for)
            asked_for = set()
            living = list(store.index.segments())
            old_before = living[len(living) // 2] if living else 0
            most = max(most, used(folder))
            if written > churn * size:
                break
    counts, seconds = store.index.counts(), time.perf_counter() - began
    share = used(folder) / size
    points = (exact_hits - hits) / reads * 100
    rows = [
        ["bytes written, times the size", f"{written / size:.1f}"],
        ["most bytes of files, of the size", f"{most / size:.3f}"],
        ["used at the end, of the size", f"{share:.3f}"],
        ["frames asked for", f"{reads:,}"],
        ["hits", f"{hits / reads:.1%}"],
        ["hits of an exact LRU", f"{exact_hits / reads:.1%}"],
        ["entries evicted", f"{counts.evicted:,}"],
        ["second chances", f"{counts.second_chances:,}"],
        ["index, of the bytes", f"{store.index.size() / size:.3f}"],
        ["seconds", f"{seconds:.0f}"],
    ]
    print(table(["", ""], rows))
    store.close()
    return int(most > size or share < LEAST_USED or points > MOST_POINTS)


def hash_of(key: bytes) -> int:
    """A number that follows from *key*."""
    return int.from_bytes(key[-6:].rjust(6, b"0"), "big") * 2654435761 % (1 << 32)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

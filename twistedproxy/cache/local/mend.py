"""Looks at the index of a folder, or makes it anew from the segments: ``python -m twistedproxy.cache.local.mend``, in a process of
its own, for LMDB ends the process where its file is damaged.

What is not made anew: what was written in the last `UNSURE_SECONDS` before the machine ended, for a load that was under way then
was not known to be right; what was taken back; what has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from twistedproxy.cache.local import segments
from twistedproxy.cache.local.facts import Facts, facts_size
from twistedproxy.cache.local.folder import join
from twistedproxy.cache.local.index import EntryIndex, Indexed
from twistedproxy.cache.local.segments import EntryHeader, SegmentReader
from twistedproxy.processes.with_parent import end_with_parent

UNSURE_SECONDS = 600.0


def check(folder: Path, size: int) -> None:
    """Read all of index and facts. Raises, or ends the process, where they are damaged."""
    index, facts = EntryIndex(folder), Facts(folder, facts_size(size), time.time)
    index.walk()
    facts.walk()


def rebuild(folder: Path) -> int:
    """Put into the index what the segments have; how many entries that are."""
    index, reader = EntryIndex(folder), SegmentReader(folder)
    living = sorted(index.segments(), reverse=True)
    removed: dict[bytes, float] = {}
    last = 0.0
    for number in living:
        for header in _headers(folder, number):
            last = max(last, header.written)
            if header.ends == 0:
                removed[header.key] = max(header.written, removed.get(header.key, 0.0))
    sure, now, count = last - UNSURE_SECONDS, time.time(), 0

    def is_good(header: EntryHeader) -> bool:
        if header.written > sure or header.ends <= now or header.written <= removed.get(header.key, -1.0):
            return False
        stored = reader.read(header.place)
        return stored is not None and segments.checked(header.key, memoryview(stored)) is not None

    for number in living:
        last_first = reversed(_headers(folder, number))
        good = [(one.key, Indexed(*one.place, one.ends, one.fence)) for one in last_first if is_good(one)]
        index.put(good, replace=False)
        count += len(good)
    return count


def _headers(folder: Path, number: int) -> list[EntryHeader]:
    """Those of a segment that was there before, as they were then."""
    with segments.unwritten(folder, number) as file:
        return list(segments.headers(file, number)) if file is not None and file >= 0 else []


def main(task: str, folder: str, size: str) -> None:
    """Do *task* for the parent, and end with it."""
    if sys.platform == "linux":
        end_with_parent(signal.SIGKILL)
    os.nice(5)
    member = join(Path(folder))
    if task == "check":
        check(Path(folder), int(size))
    else:
        sys.stdout.write(f"{rebuild(Path(folder))}\n")
    os.close(member)


if __name__ == "__main__":
    main(*sys.argv[1:])

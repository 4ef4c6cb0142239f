"""Damaged frames of every codec, decoded in child processes.

Each codec has a child of its own, which is started again behind the frame that killed it. Said of each: how many
frames were refused, how many decoded all the same (leaked: with memory that was not theirs), how many killed the child (with their seeds), the slowest, and
how far the child's memory grew after its first tenth. A child may take 4 GB of address space and 20 s a frame.
Run: ``python -m tests.benchmarks.fuzz_decoders``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy

from tests.imaging.damage import codecs, damaged
from twistedproxy.imaging.decode import decode
from twistedproxy.imaging.errors import BadImage
from twistedproxy.imaging.pixel_description import PixelFacts

MAX_PIXELS = 1 << 20
ADDRESS_SPACE = 4 << 30  # bytes
FRAME_SECONDS = 20


def resident() -> int:
    """The process's memory now, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def alike(frame: bytes, syntax: str, facts: PixelFacts, scale: int) -> bool:
    """Whether decoding twice over memory that held different things gives the same: else it shows what was there."""
    results = []
    for value in (0x55, 0xAA):
        held = [numpy.full(size, value, numpy.uint8) for size in (4_096, 12_288, 24_576) * 8]
        del held
        results.append(decode(frame, syntax, facts, max_pixels=MAX_PIXELS, scale=scale))
    return bool((results[0] == results[1]).all())


def decode_damaged(name: str, seeds: range, report: Connection) -> None:
    """Say (seed, outcome, seconds, memory) after each frame; outcome is "refused", "decoded", "leaked" or an error's name."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data, syntax, facts = codecs()[name]
    for seed in seeds:
        frame = damaged(data, seed)
        start = time.perf_counter()
        try:
            outcome = "decoded" if alike(frame, syntax, facts, (1, 1, 2, 4, 8)[seed % 5]) else "leaked"
        except BadImage:
            outcome = "refused"
        except BaseException as error:
            outcome = type(error).__name__
        report.send((seed, outcome, time.perf_counter() - start, resident()))


def fuzz(name: str, first: int, frames: int) -> dict[str, Any]:
    """What became of that many damaged frames of one codec."""
    context = multiprocessing.get_context("spawn")
    place, outcomes, deaths, slowest, memory = first, {}, [], (0.0, -1), []
    while place < first + frames:
        mine, theirs = context.Pipe(duplex=False)
        child = context.Process(target=decode_damaged, args=(name, range(place, first + frames), theirs))
        child.start()
        theirs.close()
        try:
            while mine.poll(FRAME_SECONDS + (10 if not memory else 0)):
                seed, outcome, seconds, now = mine.recv()
                place = seed + 1
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                slowest = max(slowest, (seconds, seed))
                memory.append(now)
        except EOFError:
            pass
        if place < first + frames:
            child.kill()
            child.join()
            deaths.append({"seed": place, "exit": child.exitcode})
            place += 1
        child.join()
    settled = memory[len(memory) // 10 :] or [0]
    return {
        "codec": name,
        "frames": frames,
        **outcomes,
        "deaths": len(deaths),
        "killed_by": deaths[:10],
        "slowest_ms": round(slowest[0] * 1e3, 1),
        "slowest_seed": slowest[1],
        "memory_mb": round(settled[-1] / 1e6, 1),
        "grown_mb": round((settled[-1] - settled[0]) / 1e6, 1),
        "peak_mb": round(max(settled) / 1e6, 1),
    }


def main() -> None:
    """Print one line of JSON a codec."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", choices=sorted(codecs()))
    arguments = parser.parse_args()
    for name in [arguments.codec] if arguments.codec else codecs():
        print(json.dumps(fuzz(name, arguments.seed, arguments.frames)), flush=True)


if __name__ == "__main__":
    main()

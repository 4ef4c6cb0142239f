"""Sets of frame numbers as runs: pairs of a first and a last number, ascending, with a gap between two of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Run = tuple[int, int]
Runs = Sequence[Run]


def runs_of(numbers: Iterable[int]) -> list[Run]:
    """The runs of *numbers*, in any order."""
    return merged((number, number) for number in numbers)


def runs_in(mask: bytearray) -> list[Run]:
    """The runs of the places where *mask* is 1; it ends with a 0."""
    found: list[Run] = []
    first = mask.find(1)
    while first >= 0:
        behind = mask.find(0, first)
        found.append((first, behind - 1))
        first = mask.find(1, behind)
    return found


def merged(runs: Iterable[Run]) -> list[Run]:
    """All that lies in any of *runs*, which may be in any order, overlap and touch."""
    found: list[Run] = []
    for first, last in sorted(runs):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


def minus(runs: Runs, others: Runs) -> list[Run]:
    """What lies in *runs* and in none of *others*."""
    left: list[Run] = []
    at = 0
    for first, last in runs:
        start = first
        while at < len(others) and others[at][0] <= last:
            if start < others[at][0]:
                left.append((start, others[at][0] - 1))
            start = max(start, others[at][1] + 1)
            if others[at][1] > last:
                break  # it may hold a part of the next one, too
            at += 1
        if start <= last:
            left.append((start, last))
    return left

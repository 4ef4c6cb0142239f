"""How much of what was prefetched is asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from twistedproxy.dicom.resource import Instance
from twistedproxy.system.metrics import Metrics

MAX_INSTANCES = 200
"""Instances whose frames are told apart; one of 500,000 frames takes 62 kB."""

MAX_FRAMES = 1 << 24
"""Frames of an instance that are told apart: 2 MB of bits. Metadata can say any number."""


class Usefulness:
    """Counts prefetched frames that were asked for: what waste there is shows here.

    A frame counts once for each worker that serves it. Bits are kept for the instances that were asked for last.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._asked: OrderedDict[Instance, bytearray] = OrderedDict()

    def asked(self, instance: Instance, frames: int, numbers: Iterable[int]) -> list[int]:
        """Note that prefetched *numbers* (from 1) of an instance of so many *frames* were asked for. Those that were not before."""
        if frames > MAX_FRAMES:
            return []
        bits = self._asked.get(instance)
        if bits is None or len(bits) * 8 < frames:
            bits = self._asked[instance] = bytearray(frames // 8 + 1)
            if len(self._asked) > MAX_INSTANCES:
                self._asked.popitem(last=False)
        else:
            self._asked.move_to_end(instance)
        new = []
        for number in numbers:
            byte, bit = divmod(number - 1, 8)
            if not bits[byte] >> bit & 1:
                bits[byte] |= 1 << bit
                new.append(number)
        if new:
            self._metrics.count("prefetch_frames_used", (), len(new))
        return new

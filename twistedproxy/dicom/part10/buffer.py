"""What the stages of the Part 10 stream share: their errors, and chunks gathered until there are enough.

Rules that this file keeps:

- Each byte is copied at most once into a joined piece, however the stream is cut.
- A stage states how many bytes it needs before it gathers, so it can refuse a number that makes no sense.
"""

from __future__ import annotations


class BadPart10(ValueError):
    """A stream is not a DICOM file, is cut off, or contradicts itself. All frames that it gave are in doubt."""


class NotByFrame(BadPart10):
    """A DICOM file whose frames cannot be separated without decoding: 1-bit pixels, video."""


class NotAsDescribed(BadPart10):
    """A file is of another instance than expected, or its frames are not what its transfer syntax or the metadata say."""


class Gatherer:
    """Chunks that wait until they hold what is needed next."""

    def __init__(self, need: int) -> None:
        self._need = need
        self._size = 0
        self._chunks: list[bytes] = []

    @property
    def waiting(self) -> bytes:
        """What waits for more."""
        return b"".join(self._chunks)

    def add(self, chunk: bytes) -> bytes | None:
        """All that waited and *chunk*, once that is enough; None before."""
        if not self._chunks:
            if len(chunk) >= self._need:
                return chunk
            if not chunk:
                return None
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size < self._need:
            return None
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        return data

    def keep(self, data: bytes, position: int, need: int) -> None:
        """Let what follows *position* wait until there are *need* bytes from there."""
        self._need = need
        if position < len(data):
            rest = data[position:]
            self._chunks.append(rest)
            self._size = len(rest)

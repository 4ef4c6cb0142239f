"""A file of this machine as a `ByteStream`, for a process that has nothing else to do: reading blocks."""

from __future__ import annotations

from typing import BinaryIO, Optional

from twistedproxy.origin.errors import OriginError

READ_BYTES = 512 * 1024
"""How much is read at once."""


class LocalFile:
    """The bytes of the file at *path*. Not for the reactor of a server."""

    def __init__(self, path: str) -> None:
        try:
            self._file: Optional[BinaryIO] = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with the stream
        except OSError as error:
            raise OriginError(f"the stored file can't be read: {error.strerror}") from None

    async def read(self) -> bytes:
        return self._file.read(READ_BYTES) if self._file is not None else b""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

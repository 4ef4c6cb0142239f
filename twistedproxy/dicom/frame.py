"""One frame, as stored."""

from __future__ import annotations

import attrs


@attrs.frozen
class Frame:
    """The bytes of one frame exactly as stored, and the UID of their transfer syntax.

    Encapsulated frames are the bare codestream, all fragments joined; a pad byte that the
    store sent along stays. Native frames are Rows x Columns x SamplesPerPixel x BitsAllocated / 8 bytes.
    """

    data: bytes
    transfer_syntax: str

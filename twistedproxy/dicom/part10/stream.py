"""A DICOM file in, chunk by chunk; its frames out, each as soon as it is complete (PS3.10 section 7, PS3.5).

Rules that this file keeps:

- No I/O, and no waiting for more than one frame: memory does not grow with the file.
- Whatever bytes come, the end is `finish` returning (all frames were given, as many as the file says) or `BadPart10`.
- Native frames come in little endian, whatever the file has (PS3.18 section 8.7.3).
- Until `finish` returned, frames are provisional: a stream may turn out wrong at its end.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from twistedproxy.dicom import transfer_syntaxes as ts
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.dataset import (
    PIXEL_DATA,
    UNDEFINED_LENGTH,
    BadPart10,
    DataSetReader,
    FileMetaReader,
    NotAsDescribed,
    NotByFrame,
)
from twistedproxy.dicom.part10.pixels import (
    BadPixelLength,
    EncapsulatedFrames,
    NativeFrames,
    native_frame_bits,
    swapped_width,
)
from twistedproxy.dicom.sniffing import other_codec

__all__ = ["MAX_FRAME_BYTES", "BadPart10", "NotAsDescribed", "NotByFrame", "Part10Stream"]

MAX_FRAME_BYTES = 256 << 20
"""One frame. The largest real ones, single-frame mammograms and slide overviews, have about 100 MB."""
INFLATED_BYTES = 512 * 1024
"""How much of a deflated data set is inflated at once: deflate can make a thousand bytes of one."""


class Part10Stream:
    """Feed it a DICOM file.

    *expected*: the metadata of the instance that it must be, and the instance's UIDs; then each frame must begin as
    frames in its transfer syntax do, too.

    *transfer_syntax*: of the file, once its meta information was read. *uids*: its Study, Series and SOP Instance UID, as
    far as they have come. *metadata*: the facts of the instance, once the pixel data begins (of ICC profiles it knows
    nothing). *frames_given*: how many frames were given so far.
    """

    def __init__(
        self,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        expected: tuple[tuple[str, str, str], InstanceMetadata] | None = None,
    ) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._expected = expected
        self._meta: FileMetaReader | None = FileMetaReader()
        self._data_set: DataSetReader | None = None
        self._inflater: zlib._Decompress | None = None
        self._pixels: NativeFrames | EncapsulatedFrames | None = None
        self.transfer_syntax = ""
        self.metadata: InstanceMetadata | None = None
        self.frames_given = 0

    @property
    def frame_syntax(self) -> str:
        """The UID that its frames are labelled with."""
        return ts.frame_uid(self.transfer_syntax)

    @property
    def uids(self) -> tuple[str, ...]:
        return ("", "", "") if self._data_set is None else self._data_set.uids

    @property
    def complete(self) -> bool:
        """Whether all frames were given; what still comes does not matter."""
        return self._pixels is not None and self._pixels.complete

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; return the frames that they complete, in order. Raises `BadPart10`, and
        `NotByFrame` as soon as it is known that frames cannot be separated."""
        if self._pixels is not None and self._inflater is None:  # nearly every call
            return self._given(self._pixels.feed(chunk))
        return [frame for batch in self.batches(chunk) for frame in batch]

    def batches(self, chunk: bytes) -> Iterator[list[bytes]]:
        """As `feed`, but the frames of a deflated file come little by little, as they are iterated over."""
        if self._meta is not None:
            rest = self._meta.feed(chunk)
            if rest is None:
                return
            self._begin_data_set(self._meta.transfer_syntax)
            self._meta = None
            chunk = rest
        if self._inflater is None:
            yield self._take(chunk)
            return
        while not self._inflater.eof and not self.complete:
            try:
                inflated = self._inflater.decompress(chunk, INFLATED_BYTES)
            except zlib.error as error:
                raise BadPart10("the deflated data set is malformed") from error
            chunk = self._inflater.unconsumed_tail
            if not inflated and not chunk:
                return
            yield self._take(inflated)

    def finish(self) -> None:
        """The stream has ended. Raises `BadPart10` unless all frames were given."""
        if self._pixels is None:
            raise BadPart10("the stream ended before any pixel data")
        if not self._pixels.complete:
            raise BadPart10(f"the stream ended within its pixel data, after {self.frames_given} frames")

    def _begin_data_set(self, uid: str) -> None:
        syntax = ts.lookup(uid)
        if syntax is None:
            raise NotByFrame(f"the transfer syntax {uid[:64]!r} is unknown")
        self.transfer_syntax = uid
        self._data_set = DataSetReader(syntax.implicit_vr, syntax.big_endian)
        if syntax.deflated:
            self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def _take(self, chunk: bytes) -> list[bytes]:
        """Bytes of the data set, inflated."""
        if self._pixels is None:
            assert self._data_set is not None
            rest = self._data_set.feed(chunk)
            if rest is None:
                return []
            self._pixels = self._pixel_reader(self._data_set)
            chunk = rest
        return self._given(self._pixels.feed(chunk))

    def _given(self, frames: list[bytes]) -> list[bytes]:
        uid = self.transfer_syntax
        if frames and not self.frames_given and (shown := other_codec(frames[0], uid)) is not None:
            raise NotAsDescribed(f"frames are {shown}, the file's transfer syntax is {uid}")
        if self._expected is not None:
            for frame in frames:
                if frame and not ts.may_be(frame, uid):
                    raise NotAsDescribed(f"a frame begins with {frame[:16]!r}, which is not {uid}")
        self.frames_given += len(frames)
        return frames

    def _check_instance(self, found: InstanceMetadata) -> None:
        """Whether the file is of the instance that was expected."""
        if self._expected is None:
            return
        uids, known = self._expected
        if self.uids != uids:
            raise NotAsDescribed("the file is of another instance")
        if found.frames != known.frames:
            raise NotAsDescribed(f"the file has {found.frames} frames, its metadata say {known.frames}")
        if known.transfer_syntax is not None and not ts.is_as_stored(self.transfer_syntax, known.transfer_syntax):
            raise NotAsDescribed(f"the file is in {self.transfer_syntax}, stored as {known.transfer_syntax}")

    def _pixel_reader(self, data_set: DataSetReader) -> NativeFrames | EncapsulatedFrames:
        syntax = ts.lookup(self.transfer_syntax)
        assert syntax is not None
        metadata = self.metadata = data_set.metadata(self.transfer_syntax)
        self._check_instance(metadata)
        if not syntax.frames_separable:
            raise NotByFrame(f"frames in {syntax.uid} cannot be separated without decoding")
        length, offsets = metadata.frame_length, data_set.extended_offsets()
        if syntax.encapsulated and data_set.pixel_tag == PIXEL_DATA:
            whole = length if syntax.uid == ts.ENCAPSULATED_UNCOMPRESSED else None
            if data_set.pixel_length != UNDEFINED_LENGTH:
                raise BadPart10(f"pixel data of defined length in {syntax.uid}")
            return EncapsulatedFrames(metadata.frames, syntax.end_marker, self._max_frame_bytes, whole, offsets)
        if length is None:
            raise NotByFrame(
                f"{metadata.bits_allocated}-bit pixels of {metadata.rows} x {metadata.columns} "
                "are not supported frame by frame"
            )
        if data_set.pixel_length != UNDEFINED_LENGTH:
            try:
                length = native_frame_bits(metadata, data_set.pixel_length) // 8
            except BadPixelLength as error:
                raise BadPart10(str(error)) from None
        if length > self._max_frame_bytes:
            raise BadPart10(f"frames of {length} bytes, more than {self._max_frame_bytes}")
        swapped = swapped_width(data_set.pixel_vr, metadata.bits_allocated) if syntax.big_endian else 1
        return NativeFrames(data_set.pixel_length, metadata.frames, length, swapped)

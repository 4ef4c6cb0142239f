"""A render worker: ``python -m twistedproxy.rendering.child``, started by the proxy: bytes of frames in, bytes of pictures out.

- It does one call at a time, without a reactor.
- A decoder that crashes takes this process down and nothing else; one that takes too much memory gets a MemoryError.
- It ends with the proxy: when its pipe does, and, should a decoder never come back, by the kernel's signal.
- It runs at low priority: the proxy's answers from the cache come first.

Calls, each with its blobs; with a picture comes the ``digest`` of its bytes, in hexadecimal, and where frames were left
out, ``left_empty``, which says what is wrong with the first:
- ``picture`` [facts, profile, frame…], then [frame…]: frames of a picture, which the child holds by a number until the last
  of them; the profile is one of the operator's own to convert to, b"" for none;
- ``range`` [facts, frame…]: the smallest and the largest of the frames' values, as JSON, null for none;
- ``native`` [facts, frame]: a frame's pixels as Explicit VR Little Endian has them;
- ``profile`` [profile]: whether pictures can be converted to it;
- ``transcode`` [frame]: JPEG to JPEG XL or back, without loss;
- ``downsample`` [answer]: the metadata or the search's answer of a downsampled instance;
- ``describe`` [piece…], ``described`` [bulk value…]: an instance's metadata, piece by piece, then the facts in it or, if
  what is known of the instance came along, where its frames lie; or (``header``) the beginning of the stored object, then
  what metadata may leave out of it;
- ``drop``: nothing more is wanted of what goes by that number;
- ``ping``: nothing.

Nothing here trusts a frame: sizes are checked before memory is taken, and what a decoder says of it goes back as an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import attrs

from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM
from twistedproxy.imaging.codecs import SCALES
from twistedproxy.imaging.decode import decode, reduced
from twistedproxy.imaging.describe import Description, SparseDescription
from twistedproxy.imaging.downsampled_instance import downsampled_answer
from twistedproxy.imaging.encode import encode, jpeg_to_jxl, jxl_to_jpeg
from twistedproxy.imaging.errors import BadImage, BadProfile, ImageTooLarge, NotDecodable
from twistedproxy.imaging.geometry import Axis, Cut
from twistedproxy.imaging.icc import check_target, convert_colors
from twistedproxy.imaging.object_header import ObjectHeader
from twistedproxy.imaging.parameters import NO_TARGETS, Rendering, Window
from twistedproxy.imaging.pixel_description import MONOCHROME, PixelFacts
from twistedproxy.imaging.resizing import EMPTY, Canvas, averaged
from twistedproxy.imaging.windowing import range_of, to_display
from twistedproxy.processes.messages import CONTROL_IN, CONTROL_OUT, Message, MessageReader
from twistedproxy.processes.with_parent import end_with_parent
from twistedproxy.system.tuning import lower_priority, short_time_slices

MAX_HELD = 24
"""Pictures and descriptions that a child holds at once; the proxy asks for at most 18."""

_PICTURES = ("picture", "native", "transcode")
"""Operations whose result is for callers, who also get its digest: one more piece of work that is not the proxy's."""

_EXPECTED = (BadImage, BadProfile, BadMetadata)


@attrs.define(eq=False)
class _Picture:
    """A picture being made. *must_draw*: whether it is an error that none of its frames can be drawn."""

    canvas: Optional[Canvas]
    rendering: Rendering
    facts: PixelFacts
    scale: int
    max_pixels: int
    own_profile: bytes = b""
    pixels: Any = None
    must_draw: bool = True
    drawn: bool = False
    failure: Optional[BadImage] = None

    def add(self, frame: bytes, transfer_syntax: str, top: int, left: int) -> None:
        """Draw a frame. Where there is more than one, those that cannot be decoded leave their place empty; if there is
        none but those, `finish` raises why. Of a part of many all may be without a byte, as if they were not there."""
        try:
            self._draw(frame, transfer_syntax, top, left)
        except ImageTooLarge:
            raise
        except BadImage as error:
            if self.canvas is None:
                raise
            self.failure = self.failure or error
            self.must_draw = self.must_draw or bool(frame)
        else:
            self.drawn = True

    def _draw(self, frame: bytes, transfer_syntax: str, top: int, left: int) -> None:
        rows, columns = self.facts.rows, self.facts.columns
        if self.canvas is not None:  # as far as the frame lies inside of the picture's source
            rows, columns = min(rows, self.canvas.source[0] - top), min(columns, self.canvas.source[1] - left)
        sizes = ((rows, self.facts.rows), (columns, self.facts.columns))
        # A decoder that averages would mix in what an edge frame holds beyond the matrix.
        scale = self.scale if all(inside == size or inside % self.scale == 0 for inside, size in sizes) else 1
        array = decode(frame, transfer_syntax, self.facts, max_pixels=self.max_pixels, scale=scale)
        shown = to_display(array, self.facts, self.rendering.window, self.rendering.stored_values)
        if self.canvas is None:
            self.pixels = shown
        elif scale == self.scale:
            self.canvas.add(top, left, self._as_large_as_expected(shown))
        else:
            self.canvas.add(top, left, averaged(shown[:rows, :columns], self.scale))

    def _as_large_as_expected(self, shown: Any) -> Any:
        """A codec may have shrunk a frame by less than it was asked to: by a smaller one of `SCALES`."""
        left = next(left for left in SCALES if reduced(self.facts, self.scale // left) == shown.shape[:2])
        return shown if left == 1 else averaged(shown, left)

    def finish(self) -> bytes:
        """The picture's bytes. Raises BadImage where no frame of it could be drawn."""
        if self.failure is not None and self.must_draw and not self.drawn:
            raise self.failure
        pixels = self.pixels if self.canvas is None else self.canvas.finish()
        rendering, profile = self.rendering, self.facts.icc_profile
        if rendering.profile not in NO_TARGETS and pixels.ndim == 3:
            pixels, profile = convert_colors(pixels, profile, rendering.profile, self.own_profile)
        if rendering.media_type == OCTET_STREAM:
            return bytes(pixels.tobytes())
        embedded = profile if rendering.embed and pixels.ndim == 3 else None
        return encode(pixels, rendering.media_type, rendering.quality, embedded or None)


class Work:
    """Answers messages."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}  # pictures and descriptions by the numbers that the proxy gave them
        self._value: dict[str, Any] = {}  # of the present answer
        self._operations: dict[str, Callable[[Mapping[str, Any], Sequence[bytes]], bytes]] = {
            "picture": self._picture,
            "drop": self._drop,
            "range": _range,
            "native": _native,
            "profile": _profile,
            "transcode": _transcode,
            "describe": self._describe,
            "described": self._described,
            "downsample": _downsample,
            "ping": lambda _arguments, _blobs: b"",
        }

    def answer(self, message: Message) -> Message:
        """The answer to *message*; every error is one."""
        number, name, arguments = (message.head[key] for key in ("id", "call", "with"))
        try:
            self._value = {}
            made = self._operations[name](arguments, message.blobs)
            if name in _PICTURES:
                self._value["digest"] = content_digest([made]).hex()
            return Message({"answer": number, "value": self._value}, [made])
        except _EXPECTED as error:
            return _failed(number, type(error).__name__, str(error))
        except MemoryError:
            return _failed(number, "BadImage", "the picture takes more memory than a worker may have")
        except Exception as error:  # a library's own way to say that a frame is damaged
            return _failed(number, "Unexpected", f"{type(error).__name__}: {error}"[:500])

    def _picture(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
        if "rendering" in head:
            facts, own_profile, *blobs = blobs
            self._hold(head["number"], _picture_of(head, facts, own_profile))
        picture = self._held[head["number"]]
        for frame, (transfer_syntax, top, left) in zip(blobs, head["tiles"]):
            picture.add(frame, transfer_syntax, top, left)
        if not head["last"]:
            return b""
        del self._held[head["number"]]
        made: bytes = picture.finish()
        if picture.failure is not None:
            self._value["left_empty"] = str(picture.failure)
        return made

    def _drop(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
        self._held.pop(head["number"], None)
        return b""

    def _describe(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
        if head["number"] not in self._held:
            self._hold(head["number"], _description_of(head))
        for piece in blobs:
            self._held[head["number"]].feed(piece)
        return b""

    def _hold(self, number: int, what: Any) -> None:
        """Keep *what*; the oldest goes where there are too many: its proxy's end was cut off before it could be dropped."""
        while len(self._held) >= MAX_HELD:
            self._held.pop(next(iter(self._held)))
        self._held[number] = what

    def _described(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
        """What was described, and where the values are that the metadata only point to."""
        description = self._held[head["number"]]
        made, self._value["uris"] = description.packed(dict(zip(head["uris"], blobs)), head["profile"])
        return bytes(made)


def _description_of(head: Mapping[str, Any]) -> Any:
    uids, known = tuple(head["uids"]), head["metadata"]
    if head["header"]:
        return ObjectHeader()
    return SparseDescription(InstanceMetadata.from_bytes(known.encode()), uids) if known else Description(uids)


def _failed(number: int, kind: str, text: str) -> Message:
    return Message({"answer": number, "error": text, "kind": kind})


def _picture_of(head: Mapping[str, Any], facts: bytes, own_profile: bytes) -> _Picture:
    window = head["rendering"]["window"]
    rendering = Rendering(**{**head["rendering"], "window": None if window is None else Window(**window)})
    scale, values, known = head["scale"], head["cut"], PixelFacts.from_bytes(facts)
    canvas, alone = None, True
    if values is not None:
        axes = {name: Axis(**values[name]) for name in ("vertical", "horizontal")}
        cut, empty = Cut(**{**values, **axes}), _empty(head["background"], known)
        canvas = Canvas(cut, rendering.interpolation, scale, empty, head["in_grid"])
        alone = cut.vertical.source <= cut.frame_rows and cut.horizontal.source <= cut.frame_columns
    return _Picture(canvas, rendering, known, scale, head["max_pixels"], own_profile, must_draw=alone)


def _empty(background: Optional[Sequence[int]], facts: PixelFacts) -> Sequence[int]:
    """What a picture shows where frames are missing: as many samples as it has."""
    red, green, blue = background or (EMPTY,) * 3
    if facts.photometric_interpretation in MONOCHROME:
        return [round(0.299 * red + 0.587 * green + 0.114 * blue)]
    return [red, green, blue]


def _native(head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
    facts = PixelFacts.from_bytes(blobs[0])
    array = decode(blobs[1], head["transfer_syntax"], facts, max_pixels=head["max_pixels"])
    if facts.bits_allocated < 8:
        raise NotDecodable("frames of 1 bit per pixel share bytes, so they are not served one by one")
    data: bytes = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return data


def _range(head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
    """Frames that cannot be decoded, and those of one value only, do not count."""
    facts = PixelFacts.from_bytes(blobs[0])
    ends: list[float] = []
    for frame, transfer_syntax in zip(blobs[1:], head["transfer_syntaxes"]):
        with contextlib.suppress(BadImage):
            ends += range_of(decode(frame, transfer_syntax, facts, max_pixels=head["max_pixels"]), facts) or ()
    return json.dumps([min(ends), max(ends)] if ends else None).encode()


def _profile(head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
    check_target(blobs[0])
    return b""


def _transcode(head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
    return jpeg_to_jxl(blobs[0]) if head["media_type"] == "image/jxl" else jxl_to_jpeg(blobs[0])


def _downsample(head: Mapping[str, Any], blobs: Sequence[bytes]) -> bytes:
    try:
        return downsampled_answer(blobs[0], head["factor"])
    except ValueError as error:
        raise BadMetadata("the origin's response is not DICOM JSON") from error


ADDRESS_SPACE = 8 << 30
"""Bytes of address space, not of memory, that a child may take: libraries map far more than they use. A picture that
explodes in a decoder ends there."""

READ_BYTES = 256 << 10
"""What is read from the pipe at once: as much as it holds."""


def main() -> None:
    """Serve until the pipe ends."""
    end_with_parent()
    # Ctrl-C in a terminal is for the proxy, which ends its children in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    lower_priority()

    work, reader = Work(), MessageReader()
    with open(CONTROL_OUT, "wb") as target:
        while data := os.read(CONTROL_IN, READ_BYTES):
            for message in reader.feed(data):
                with short_time_slices():
                    answer = work.answer(message)
                target.writelines(answer.packed())
                target.flush()


if __name__ == "__main__":
    # a proxy that has gone leaves a pipe that is not read
    with contextlib.suppress(BrokenPipeError):
        main()
    os._exit(0)

"""Rendered frames a second on one core, beside a plain Pillow loop over the same frames.

Frames are 256 x 256 pieces of tissue. A downsampled frame is made of as many stored ones as it covers, in both loops.
Time is the thread's own processor time: other work on the machine does not count. The loops take turns; the best
turn of each counts.
Run: ``python -m tests.benchmarks.rendering``.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy
from PIL import Image, ImageCms

from tests.slides.encodings import ENCODINGS, encoded_frame
from twistedproxy.dicom import transfer_syntaxes as syntaxes
from twistedproxy.imaging.decode import decode
from twistedproxy.imaging.encode import encode
from twistedproxy.imaging.icc import convert_colors, profile_of
from twistedproxy.imaging.pixel_description import PixelFacts
from twistedproxy.imaging.windowing import to_display

SIDE = 256
QUALITY = 95
TURNS = 5
PROFILE = profile_of("adobergb")  # stands for a scanner's
JPEG = PixelFacts(SIDE, SIDE, 3, photometric_interpretation="YBR_FULL_422")
J2K = PixelFacts(SIDE, SIDE, 3, photometric_interpretation="YBR_ICT")

Make = Callable[[list[bytes]], bytes]


def ours(syntax: str, facts: PixelFacts, factor: int = 1, target: str = "") -> Make:
    """A frame as the proxy makes it."""

    def make(frames: list[bytes]) -> bytes:
        part = SIDE // factor
        if factor == 1:
            canvas = to_display(decode(frames[0], syntax, facts, max_pixels=1 << 20), facts)
        else:
            canvas = numpy.empty((SIDE, SIDE, 3), numpy.uint8)
            for index, frame in enumerate(frames):
                shown = to_display(decode(frame, syntax, facts, max_pixels=1 << 20, scale=factor), facts)
                top, left = index // factor * part, index % factor * part
                canvas[top : top + part, left : left + part] = shown
        if target:
            canvas, profile = convert_colors(canvas, PROFILE, target)
            return encode(canvas, "image/jpeg", QUALITY, profile)
        return encode(canvas, "image/jpeg", QUALITY)

    return make


def plain(factor: int = 1, target: str = "") -> Make:
    """The same with Pillow alone, as one writes it down."""
    goal = ImageCms.createProfile("sRGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(PROFILE))
    transform = ImageCms.buildTransform(source, goal, "RGB", "RGB")

    def make(frames: list[bytes]) -> bytes:
        part = SIDE // factor
        canvas = Image.new("RGB", (SIDE, SIDE))
        for index, frame in enumerate(frames):
            picture = Image.open(io.BytesIO(frame)).convert("RGB")
            if factor == 1:
                canvas = picture
            else:
                picture = picture.resize((part, part), Image.Resampling.BOX)
                canvas.paste(picture, (index % factor * part, index // factor * part))
        options = {}
        if target:
            canvas = ImageCms.applyTransform(canvas, transform) or canvas
            options["icc_profile"] = ImageCms.ImageCmsProfile(goal).tobytes()
        buffer = io.BytesIO()
        canvas.save(buffer, "JPEG", quality=QUALITY, **options)
        return buffer.getvalue()

    return make


def rate(make: Make, frames: list[bytes], seconds: float) -> float:
    """Results a second of this thread's processor time."""
    count, start = 0, time.thread_time()
    while time.thread_time() - start < seconds or not count:
        make(frames)
        count += 1
    return count / (time.thread_time() - start)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of processor time for each row and loop")
    seconds = parser.parse_args().seconds / TURNS
    jpeg, j2k = ENCODINGS["jpeg"].transfer_syntax, syntaxes.JPEG_2000
    rows = [
        ("JPEG to JPEG, downsample 2", "jpeg", 2, ours(jpeg, JPEG, 2), plain(2)),
        ("JPEG to JPEG, downsample 4", "jpeg", 4, ours(jpeg, JPEG, 4), plain(4)),
        ("JPEG to JPEG, downsample 8", "jpeg", 8, ours(jpeg, JPEG, 8), plain(8)),
        ("JPEG 2000 to JPEG, downsample 2", "jpeg2000", 2, ours(j2k, J2K, 2), plain(2)),
        ("JPEG 2000 to JPEG, downsample 4", "jpeg2000", 4, ours(j2k, J2K, 4), plain(4)),
        ("JPEG to JPEG", "jpeg", 1, ours(jpeg, JPEG), plain()),
        ("JPEG 2000 to JPEG", "jpeg2000", 1, ours(j2k, J2K), plain()),
        ("JPEG to sRGB JPEG", "jpeg", 1, ours(jpeg, JPEG, target="srgb"), plain(target="srgb")),
    ]
    print("| frames | ours/s | Pillow/s | ratio |\n|---|---|---|---|")
    for name, encoding, factor, mine, theirs in rows:
        frames = [encoded_frame(encoding, number) for number in range(1, factor * factor + 1)]
        turns = [(rate(mine, frames, seconds), rate(theirs, frames, seconds)) for _ in range(TURNS)]
        mine_best, theirs_best = (max(column) for column in zip(*turns))
        print(f"| {name} | {mine_best:.1f} | {theirs_best:.1f} | {mine_best / theirs_best:.2f} |", flush=True)


if __name__ == "__main__":
    main()

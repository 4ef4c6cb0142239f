"""Makes the sample slide: ``python -m twistedproxy.origin.sample FOLDER``.

A process of its own, because painting and encoding would hold the proxy's interpreter lock for seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from twistedproxy.origin.sample.instances import write_level
from twistedproxy.origin.sample.provider import is_complete, make
from twistedproxy.origin.sample.pyramid import make_frames
from twistedproxy.origin.sample.slide import LEVELS


def write(folder: Path) -> None:
    """Write the files of all levels into *folder*."""
    for level, frames in zip(LEVELS, make_frames()):
        write_level(folder, level, frames)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    try:
        if not is_complete(place):
            make(place, write)
    except OSError as error:
        sys.exit(error.strerror or str(error))

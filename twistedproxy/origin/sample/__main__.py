"""Makes the sample slide: ``python -m twistedproxy.origin.sample FOLDER``.

A process of its own, because painting and encoding would hold the proxy's interpreter lock for seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from twistedproxy.origin.sample.place import is_complete, make


def write(folder: Path) -> None:
    """Write the files of all levels into *folder*."""
    from twistedproxy.origin.sample.instances import write_level
    from twistedproxy.origin.sample.pyramid import make_frames
    from twistedproxy.origin.sample.slide import LEVELS

    for level, frames in zip(LEVELS, make_frames()):
        write_level(folder, level, frames)


def main(folder: Path) -> int:
    """Make the slide in *folder*, if it is not there; return the exit status."""
    if not is_complete(folder):
        try:
            make(folder, write)
        except OSError as error:
            sys.stderr.write(f"{error.strerror or error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

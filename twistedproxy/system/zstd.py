"""The zstd library, where there is one: Python 3.14 has it, and the package backports.zstd is the same for those before."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

ZSTD_LIBRARY: Any = None

for _name in ("backports.zstd", "compression.zstd"):
    with contextlib.suppress(ImportError):
        ZSTD_LIBRARY = importlib.import_module(_name)

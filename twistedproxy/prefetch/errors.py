"""How a load ends when it doesn't end well."""

from __future__ import annotations


class LoadFailed(Exception):
    """A load was given up, and what it wrote was taken back. The text says why, and holds no secrets."""


class NotTakenBack(LoadFailed):
    """A load was given up, and what it wrote may still be in the cache: the cache or the writer is gone."""

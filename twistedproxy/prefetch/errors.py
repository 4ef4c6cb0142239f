"""How a load ends when it doesn't end well."""

from __future__ import annotations


class LoadFailed(Exception):
    """A load was given up. The text says why, and holds no secrets."""


class Withdrawn(LoadFailed):
    """A load was given up after frames of it were in the cache, and may have been served.

    They were removed as far as that was possible; who hears this must see to it that nobody is given them any more.
    """

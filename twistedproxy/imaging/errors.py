"""How a picture can fail, as callers of this room see it. `str()` of each is fit for a caller's eyes."""

from __future__ import annotations


class BadImage(Exception):
    """The stored bytes are not what the instance says, are damaged, or would decode into something out of bounds."""


class ImageTooLarge(BadImage):
    """More pixels than a limit allows; raised before memory for them is taken."""


class NotDecodable(BadImage):
    """Nothing here decodes that: an unknown or a video transfer syntax, a photometric interpretation without a rule."""


class BadProfile(Exception):
    """An ICC profile that cannot be read or does not fit the picture, or a name that stands for no profile."""

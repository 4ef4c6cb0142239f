"""How a picture can fail. `str()` of each may be shown to a client."""

from __future__ import annotations


class BadImage(Exception):
    """The stored bytes do not match the instance's attributes, are damaged, or would decode into something out of bounds."""


class ImageTooLarge(BadImage):
    """More pixels than a limit allows; raised before memory for them is taken."""


class NotDecodable(BadImage):
    """Nothing here decodes that: an unknown or a video transfer syntax, a photometric interpretation without a rule."""


class BadProfile(Exception):
    """An ICC profile that cannot be read or does not fit the picture, or a name of no profile."""


class CannotRender(ValueError):
    """The picture asked for cannot be made of this instance, or not within the limits; `str()` is the reason."""


class NoSuchVirtualFrame(LookupError):
    """A frame number is past the frames that the downsampled instance has."""


class PoolError(Exception):
    """A call was not done; `str()` may be shown to a client."""


class PoolBusy(PoolError):
    """The queue is full, or no child comes up: come back later."""


class PoolTimeout(PoolError):
    """The call took too long."""


class ChildDied(PoolError):
    """The child ended in the middle of the call, most likely because of what it was given."""


class CallFailed(PoolError):
    """The child could not do the call. *kind*: the name of the error."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class PictureTooLarge(ValueError):
    """A picture has more pixels or needs more stored frames, or several together do or have more bytes, than a setting allows."""

"""The names of DICOM objects below a store: validated, immutable, hashable.

A UID has digits and dots only and at most 64 characters (DICOM PS3.5 section 9.1).
What this module accepts may be put into a URL or a log line as it is.
"""

from __future__ import annotations

import functools
import re
from typing import Optional

import attrs

MAX_UID_LENGTH = 64  # DICOM PS3.5 section 9.1
MAX_SHOWN = 80  # characters of what came

# PS3.5 forbids leading zeros in a component, yet stores hold such UIDs: only the
# alphabet and the length are checked, which is what keeps a UID safe in a URL.
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*", re.ASCII)


class InvalidUID(ValueError):
    """A text is not a UID."""


def shown(text: str | bytes) -> str:
    """What came, quoted, escaped and shortened, fit for an error's text."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def validate_uid(text: str) -> str:
    """Return *text* if it is a UID, else raise `InvalidUID` that names what came."""
    if len(text) > MAX_UID_LENGTH or not _UID.fullmatch(text):
        raise InvalidUID(f"{shown(text)} is not a UID (digits and dots, at most {MAX_UID_LENGTH} characters)")
    return text


@attrs.frozen(cache_hash=True)
class Instance:
    """One SOP instance of one store.

    *origin* is the URL that the operator gave for the store; *root* is the rest of the
    path down to ``/studies`` ("" for most stores, ``/projects/…/dicomWeb`` below Google's).
    Two that are one at the store, for origins may lie within each other, have the same `place`; a store that has its
    instances below several paths (``/wadors``, ``/stowrs``) has one `store` name all the same.
    """

    origin: str
    root: str
    study: str = attrs.field(converter=validate_uid)
    series: str = attrs.field(converter=validate_uid)
    sop: str = attrs.field(converter=validate_uid)

    @property
    def place(self) -> str:
        """The URL that ``/studies`` follows, wherever the origin's ends in it: what is kept of an instance goes by that."""
        return self.origin + self.root

    @property
    def store(self) -> str:
        """See `store_of`."""
        return store_of(self.origin)

    @property
    def path(self) -> str:
        """The DICOMweb resource below the root (DICOM PS3.18 section 10.4), no leading slash."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.sop}"

    @property
    def uids(self) -> tuple[str, str, str]:
        """Study, Series and SOP Instance UID."""
        return self.study, self.series, self.sop

    @property
    def of_series(self) -> Instance:
        """Stands for the series in the cache: what is kept of it as a whole is kept below this. It is no instance, for UIDs are
        unique; where a store has one all the same, names of entries keep them apart."""
        return known_instance(self.origin, self.root, self.study, self.series, self.series)

    @property
    def of_study(self) -> Instance:
        """The same of the study."""
        return known_instance(self.origin, self.root, self.study, self.study, self.study)

    @property
    def scope(self) -> Scope:
        """The scope that holds this instance alone."""
        return Scope(self.origin, self.root, self.study, self.series, self.sop)


@functools.lru_cache(maxsize=256)
def store_of(origin: str) -> str:
    """What invalidation takes for one store: the host and port of *origin*, a URL; a folder is its own.

    A STOW by one path of a host may replace what is read by another. UIDs are unique in the world (PS3.5 section 9):
    where a host has several stores, no more than the same objects in them are asked for again.
    """
    scheme, separator, rest = origin.partition("://")
    return rest.partition("/")[0] if separator and scheme in ("http", "https") else origin


known_instance = functools.lru_cache(maxsize=4096)(Instance)
"""An `Instance`, remembered: viewers request thousands of frames of few instances."""


@attrs.frozen
class Scope:
    """A part of a store: all below a root, one study, one series or one instance."""

    origin: str
    root: str
    study: Optional[str] = attrs.field(default=None, converter=attrs.converters.optional(validate_uid))
    series: Optional[str] = attrs.field(default=None, converter=attrs.converters.optional(validate_uid))
    sop: Optional[str] = attrs.field(default=None, converter=attrs.converters.optional(validate_uid))

    @property
    def store(self) -> str:
        """See `store_of`."""
        return store_of(self.origin)

"""How frames as stored are requested from each kind of store, and what was learned of a store.

Rules that this module keeps:

- A URL may identify a store (Google, dcm4chee); all else is learned from responses, for each DICOMweb root.
- A dialect is *proven* once an answer brought compressed frames: the store did not decompress them. Until
  then the first frame of a request is asked for alone, and a refusal or a decompressed answer leads to the next dialect.
- An answer's form may give a store away: only Orthanc puts the parts' transfer syntax inside the quotes of the type.
- No I/O here.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from typing import Optional
from urllib.parse import urlsplit

import attrs

from twistedproxy.dicom.transfer_syntaxes import media_type_of
from twistedproxy.origin.interface import Headers, first
from twistedproxy.system.recent import Recent

MAX_ROOTS = 1000  # DICOMweb roots remembered below one origin
MAX_CHECKED = 1000  # uncompressed instances remembered as such, a root
REFUSAL_SECONDS = 300.0  # what a store refused is not tried again sooner where there is another way

OCTETS = b'multipart/related; type="application/octet-stream"; transfer-syntax=*'
ANYTHING = b'multipart/related; type="*/*"'
INSTANCE = b'multipart/related; type="application/dicom"; transfer-syntax=*'
SINGLE_INSTANCE = b"application/dicom; transfer-syntax=*"


@attrs.frozen
class Dialect:
    """How to make requests of a kind of store.

    *frames*: the Accept value for frames as stored, None to name the instance's own media type and transfer syntax.
    *instances*: Accept values for a stored instance, to be tried in order. *frames_per_request*: how many are best asked
    for at once.
    """

    name: str
    frames: Optional[bytes] = OCTETS
    instances: tuple[bytes, bytes] = (INSTANCE, SINGLE_INSTANCE)
    frames_per_request: int = 10

    def frames_accept(self, transfer_syntax: Optional[str]) -> Optional[bytes]:
        """The Accept value for frames of an instance; None if it takes the transfer syntax, which is unknown."""
        if self.frames is not None:
            return self.frames
        if transfer_syntax is None:
            return None
        media_type = media_type_of(transfer_syntax)
        return f'multipart/related; type="{media_type}"; transfer-syntax={transfer_syntax}'.encode("ascii")


# Ten: a store that reads the frames of a list one after the other still sends its first bytes soon, and the
# requests of one caller spread over the slots.
STANDARD = Dialect("standard")
# A list makes Orthanc parse the whole file; one frame is read by its offset.
ORTHANC = Dialect("orthanc", frames_per_request=1)
# Walks from the first frame to those asked for: the fewer walks the better. Octet-stream makes it decompress.
DCM4CHEE = Dialect("dcm4chee", frames=ANYTHING, frames_per_request=100)
GOOGLE = Dialect("google", instances=(SINGLE_INSTANCE, INSTANCE), frames_per_request=100)
# For stores that take no star: the instance's own form by name.
EXPLICIT = Dialect("explicit", frames=None)

_ORTHANC_TYPE = re.compile(rb'type="[^";]*;\s*transfer-syntax=', re.IGNORECASE)


@attrs.define
class Store:
    """What is known of the store behind one DICOMweb root.

    *proven*: it does not decompress when asked in *dialect*. *frames_per_request*: once it was learned that it
    differs from the dialect's. *lists*: a list of frames was answered. *checked*: instances that are uncompressed, by whichever
    dialect. *by_file*: instances whose frames it refuses, and
    whose file it gives; *without_file*: those whose file was no help. Each for one credential.
    """

    dialect: Dialect = STANDARD
    proven: bool = False
    lists: bool = False
    one_a_request: bool = False
    checked: Recent[str] = attrs.field(factory=lambda: Recent(math.inf, MAX_CHECKED))
    by_file: Recent[tuple[str, bytes]] = attrs.field(factory=lambda: Recent(REFUSAL_SECONDS, MAX_CHECKED))
    without_file: Recent[tuple[str, bytes]] = attrs.field(factory=lambda: Recent(REFUSAL_SECONDS, MAX_CHECKED))

    @property
    def frames_per_request(self) -> int:
        """How many frames are best asked for at once."""
        return 1 if self.one_a_request else self.dialect.frames_per_request

    def candidates(self) -> list[Dialect]:
        """The dialects to try for frames, the likeliest first. Orthanc and Google ask as the standard does."""
        ways = {dialect.frames: dialect for dialect in (EXPLICIT, DCM4CHEE, STANDARD, self.dialect)}
        return [self.dialect, *(way for way in reversed(ways.values()) if way is not self.dialect)]

    def prove(self, dialect: Dialect) -> None:
        """Remember that the store gives frames as stored when asked in *dialect*."""
        self.dialect = dialect
        self.proven = True

    def recognize(self, headers: Headers) -> None:
        """Recognize a store by an answer's header fields."""
        content_type = first(headers, b"content-type") or b""
        if self.dialect is not ORTHANC and _ORTHANC_TYPE.search(content_type):
            self.prove(ORTHANC)
        elif not self.proven and self.dialect is STANDARD:
            server = (first(headers, b"server") or b"").lower()
            if server.startswith(b"orthanc"):
                self.dialect = ORTHANC
            elif server.startswith(b"wildfly") or b"dcm4chee" in server:
                self.dialect = DCM4CHEE


class Stores:
    """The stores behind one origin URL, by DICOMweb root."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stores: OrderedDict[str, Store] = OrderedDict()

    def at(self, root: str) -> Store:
        """What is known of the store at *root*; a new one starts with what its URL implies."""
        store = self._stores.get(root)
        if store is None:
            store = self._stores[root] = _recognized(self._url + root)
            while len(self._stores) > MAX_ROOTS:
                self._stores.popitem(last=False)
        else:
            self._stores.move_to_end(root)
        return store

    def status(self) -> dict[str, object]:
        return {
            root or "/": {
                "dialect": store.dialect.name,
                "proven": store.proven,
                "frames_per_request": store.frames_per_request,
            }
            for root, store in self._stores.items()
        }


def _recognized(url: str) -> Store:
    parts = urlsplit(url)
    if parts.hostname == "healthcare.googleapis.com":
        return Store(GOOGLE, proven=True)
    if "/dcm4chee-arc/" in parts.path:
        return Store(DCM4CHEE, proven=True)
    return Store()

"""The changes of an Orthanc, by its own REST interface, which lies beside the DICOMweb root.

As Orthanc 1.10 does it: an instance that is stored again (``OverwriteInstances``), or modified and keeps its UIDs, is a ``NewInstance``
with the ID that it had, and its older changes are gone from the list. Deletions are not in the list at all. ``Stable…`` says that
nothing came for a minute, ``Updated…`` is about attachments and metadata that users define: neither changes what DICOMweb gives.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any, Optional

from twisted.web.iweb import IPolicyForHTTPS

from twistedproxy.origin.errors import OriginBadAnswer, OriginError
from twistedproxy.origin.http.client import Transport
from twistedproxy.origin.interface import Changes, Headers, OriginRequest
from twistedproxy.settings import Settings
from twistedproxy.streams import BytesStream, StreamTooLong, read_all
from twistedproxy.system.outages import Outage

PAGE = 200
"""Changes of one page: some milliseconds of JSON."""

MAX_ANSWER = 16 << 20
"""Bytes of an answer; of a page they are a hundredth."""


class _Silent(Outage):
    """Not logged: whoever asks logs whatever goes wrong."""

    def failed(self, name: str, reason: str) -> None: ...

    def worked(self, name: str) -> None: ...


class OrthancChanges:
    """A `ChangeSource`. *url*: of the REST interface (http or https); *login*: ``user:password``, None where it needs none.

    Of *settings* it reads those that begin with ``origin_``. Raises ValueError for a bad URL.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        login: Optional[bytes],
        settings: Settings,
        policy: Optional[IPolicyForHTTPS] = None,
    ) -> None:
        timeouts = settings.origin_connect_timeout, settings.origin_timeout, settings.origin_stall_timeout
        self._transport = Transport(reactor, url, *timeouts, 1, policy, outage=_Silent(url, reactor.seconds))
        self._headers: Headers = ()
        if login is not None:
            self._headers = ((b"Authorization", b"Basic " + base64.b64encode(login)),)

    async def last(self) -> int:
        """See `ChangeSource`."""
        return _number(await self._get(b"last"), "Last")

    async def since(self, position: int) -> Changes:
        """See `ChangeSource`."""
        answer = await self._get(b"since=%d&limit=%d" % (position, PAGE))
        changes = answer.get("Changes")
        if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
            raise OriginBadAnswer("the list of changes is not Orthanc's")
        new = [_text(change, "ID") for change in changes if change.get("ChangeType") == "NewInstance"]
        return Changes(await self._uids(new), _number(answer, "Last"), bool(answer.get("Done", True)))

    async def _uids(self, new: Iterable[str]) -> list[tuple[str, str, str]]:
        """The UIDs of instances, by their IDs in Orthanc; those that are there no longer are left out."""
        instances = await self._resources("Instance", new)
        series = await self._resources("Series", [_text(one, "ParentSeries") for one in instances.values()])
        studies = await self._resources("Study", [_text(one, "ParentStudy") for one in series.values()])
        found = []
        for one in instances.values():
            of_series = series.get(_text(one, "ParentSeries"), {})
            of_study = studies.get(_text(of_series, "ParentStudy"), {})
            uids = _tag(of_study, "StudyInstanceUID"), _tag(of_series, "SeriesInstanceUID"), _tag(one, "SOPInstanceUID")
            if all(uids):
                found.append(uids)
        return found

    async def _resources(self, level: str, names: Iterable[str]) -> Mapping[str, Mapping[str, Any]]:
        """What Orthanc says of resources of a *level*, by their IDs."""
        wanted = [name for name in dict.fromkeys(names) if name]
        if not wanted:
            return {}
        body = json.dumps({"Resources": wanted, "Level": level, "Metadata": False}).encode("ascii")
        fields = ((b"Content-Type", b"application/json"), *self._headers)
        asked = OriginRequest(b"POST", b"/tools/bulk-content", b"", fields, BytesStream(body), len(body))
        answer = await self._answer(asked)
        if not isinstance(answer, list) or not all(isinstance(one, dict) for one in answer):
            raise OriginBadAnswer("the answer of /tools/bulk-content is not Orthanc's")
        return {_text(one, "ID"): one for one in answer}

    async def _get(self, query: bytes) -> Mapping[str, Any]:
        answer = await self._answer(OriginRequest(b"GET", b"/changes", query, self._headers))
        if not isinstance(answer, dict):
            raise OriginBadAnswer("the list of changes is not Orthanc's")
        return answer

    async def _answer(self, asked: OriginRequest) -> Any:
        response = await self._transport.request(asked)
        path = asked.path.decode("ascii")
        try:
            body = await read_all(response.body, MAX_ANSWER)
        except StreamTooLong:
            raise OriginBadAnswer(f"the answer of {path} is too long") from None
        if response.status != 200:
            raise OriginError(f"{path} answered {response.status}")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise OriginBadAnswer(f"the answer of {path} is not JSON") from None

    async def stop(self) -> None:
        """See `ChangeSource`."""
        await self._transport.close()


def _number(answer: Mapping[str, Any], name: str) -> int:
    number = answer.get(name)
    if type(number) is not int or number < 0:
        raise OriginBadAnswer(f"the list of changes has no {name}")
    return number


def _tag(resource: Mapping[str, Any], name: str) -> str:
    tags = resource.get("MainDicomTags")
    return _text(tags, name) if isinstance(tags, dict) else ""


def _text(resource: Mapping[str, Any], name: str) -> str:
    value = resource.get(name)
    return value if isinstance(value, str) else ""

"""What a simulated store holds and answers: no sockets, no faults, no clock."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Optional, Union

from tests.stores.dialects import Dialect
from tests.stores.http_server import Exchange, Seen
from tests.stores.instances import StoredInstance, from_file, from_part10, search
from tests.stores.replies import PIECE, Part, Reply, error, json_reply

MAX_KEPT_UPLOAD = 128 << 20  # bytes; longer uploads are counted and thrown away


class Holdings:
    """Instances, who may read them, and what is answered to a request for them.

    *tokens*: bearer tokens, and which SOP instances each may read (None: all). *users*: names and passwords of
    Basic authentication, who may read all. With neither, everybody may. *on_body*: called with each piece of a
    request's body as it arrives.
    """

    url: str
    """The DICOMweb root, no slash at its end."""

    def __init__(self, dialect: Dialect, instances: Iterable[StoredInstance | Path | str] = ()) -> None:
        self.dialect = dialect
        self.instances: dict[str, StoredInstance] = {}
        self.tokens: dict[str, Optional[set[str]]] = {}
        self.users: dict[str, str] = {}
        self.on_body: list[Callable[[Seen, bytes], None]] = []
        for instance in instances:
            self.add(instance)

    def add(self, instance: StoredInstance | Path | str) -> StoredInstance:
        """Hold one more instance, or the one in a DICOM file."""
        stored = instance if isinstance(instance, StoredInstance) else from_file(instance)
        self.instances[stored.sop] = stored
        return stored

    def allow(self, token: str, *sops: str) -> None:
        """Let callers with this bearer token read these SOP instances; none given: all. From the first `allow` on,
        who has no token is refused with 401, and who may not read an instance with 403."""
        self.tokens[token] = set(sops) or None

    async def reply(self, exchange: Exchange) -> Reply:
        """The answer to one request, whose body is read to its end."""
        seen = exchange.seen
        body = await self._body(exchange)
        if not seen.path.startswith(self.dialect.root + "/"):
            return error(404, "outside of the DICOMweb root")
        allowed = self._allowed(seen)
        if isinstance(allowed, Reply):
            return allowed
        steps = seen.path[len(self.dialect.root) + 1 :].split("/")
        if seen.method == "OPTIONS":
            return Reply(204, [("Allow", "GET, POST, DELETE, OPTIONS")])
        if seen.method in ("POST", "PUT"):
            return self._store(seen, body)
        readable = [stored for stored in self.instances.values() if allowed is None or stored.sop in allowed]
        if steps[-1] == "big":
            return _big(int(dict(seen.arguments).get("size", "0")))
        below = self._below(steps, list(self.instances.values()))
        if seen.method == "DELETE":
            for stored in below:
                del self.instances[stored.sop]
            return Reply(204) if below else error(404, "nothing there")
        if steps[-1] in ("studies", "series", "instances"):
            return self._search(seen, steps, self._below(steps[:-1], readable))
        if not below:
            return error(404, "nothing there")
        if not self._below(steps, readable):
            return error(403, "not for you")
        return self._retrieve(seen, steps, self._below(steps, readable))

    async def _body(self, exchange: Exchange) -> Optional[bytes]:
        """The request's body, or None where it was too long to keep."""
        kept: Optional[list[bytes]] = []
        while chunk := await exchange.read():
            for listener in self.on_body:
                listener(exchange.seen, chunk)
            if kept is not None:
                if exchange.seen.body_bytes > MAX_KEPT_UPLOAD:
                    kept = None
                else:
                    kept.append(chunk)
        return None if kept is None else b"".join(kept)

    def _allowed(self, seen: Seen) -> Union[set[str], Reply, None]:
        if not self.tokens and not self.users:
            return None
        scheme, _, value = seen.header("Authorization").partition(" ")
        if scheme == "Bearer" and value in self.tokens:
            return self.tokens[value]
        if scheme == "Basic":
            name, _, password = base64.b64decode(value).decode().partition(":")
            if self.users.get(name) == password:
                return None
        kind = "Bearer" if self.tokens else "Basic"
        return Reply(
            401, [("WWW-Authenticate", f'{kind} realm="store"'), ("Content-Type", "text/plain")], b"who are you?"
        )

    def _below(self, steps: list[str], instances: list[StoredInstance]) -> list[StoredInstance]:
        names = dict(zip(steps[::2], steps[1::2], strict=False))
        return [
            stored
            for stored in instances
            if names.get("studies", stored.study) == stored.study
            and names.get("series", stored.series) == stored.series
            and names.get("instances", stored.sop) == stored.sop
        ]

    def _search(self, seen: Seen, steps: list[str], instances: list[StoredInstance]) -> Reply:
        found = search(instances, steps[-1], seen.arguments, self.url)
        return json_reply(found) if found or self.dialect.empty_search != 204 else Reply(204)

    def _retrieve(self, seen: Seen, steps: list[str], instances: list[StoredInstance]) -> Reply:
        first, what = instances[0], steps[-1]
        url = f"{self.url}/{first.resource}"
        if what == "metadata":
            return json_reply([self._metadata(stored) for stored in instances])
        if ("frames" in steps and what == "rendered") or what in ("rendered", "thumbnail"):
            return Reply(200, [("Content-Type", "image/jpeg")], first.frames[0])
        if "frames" in steps:
            return self._frames(first, what, seen.header("Accept"), url)
        if "bulkdata" in steps:
            value = b"".join(first.frames) if what == "7FE00010" else first.bulk.get(what)
            if value is None:
                return error(404, "no such bulk data")
            return Reply(200, [("Content-Type", "application/octet-stream")], value)
        return self._instances(instances, seen.header("Accept"))

    def _metadata(self, stored: StoredInstance) -> dict[str, Any]:
        metadata = stored.metadata_at(f"{self.url}/{stored.resource}")
        if self.dialect.syntax_tag:
            metadata[self.dialect.syntax_tag] = {"vr": "UI", "Value": [stored.transfer_syntax]}
        for tag in self.dialect.omitted_tags:
            _remove(metadata, tag)
        return metadata

    def _frames(self, instance: StoredInstance, text: str, accept: str, url: str) -> Reply:
        if not text.replace(",", "").isdigit():
            return error(400, "no frame list")
        numbers = [int(number) for number in text.split(",")]
        form = self.dialect.choose(instance, accept)
        if isinstance(form, Reply):
            return form
        if max(numbers) > len(instance.frames) or min(numbers) < 1:
            return self.dialect.missing(instance, numbers, form, url)
        return self.dialect.present(form, instance, numbers, url)

    def _instances(self, instances: list[StoredInstance], accept: str) -> Reply:
        single = accept.startswith("application/dicom")
        if single:
            if not self.dialect.single_instance or len(instances) > 1:
                return error(400 if self.dialect.name == "orthanc" else 406, "cannot generate that")
            return Reply(
                200, [("Content-Type", "application/dicom")], instances[0].part10, framing=self.dialect.framing
            )
        parts = [
            Part([("Content-Type", "application/dicom"), ("Content-Length", str(len(stored.part10)))], stored.part10)
            for stored in instances
        ]
        reply = Reply(200, [], parts=parts, framing=self.dialect.framing)
        reply.headers = [("Content-Type", f'multipart/related; type="application/dicom"; boundary={reply.boundary}')]
        return reply

    def _store(self, seen: Seen, body: Optional[bytes]) -> Reply:
        """STOW-RS (PS3.18 section 10.5): what can be read of the parts is held from now on."""
        stored = []
        boundary = seen.header("Content-Type").partition("boundary=")[2].split(";")[0].strip('" ')
        for part in (body or b"").split(b"--" + boundary.encode()) if boundary else []:
            content = part.partition(b"\r\n\r\n")[2][:-2]
            if content[128:132] == b"DICM":
                stored.append(self.add(from_part10(content)))
        items = [
            {
                "00081150": {"vr": "UI", "Value": [instance.sop_class]},
                "00081155": {"vr": "UI", "Value": [instance.sop]},
                "00081190": {"vr": "UR", "Value": [f"{self.url}/{instance.resource}"]},
            }
            for instance in stored
        ]
        return json_reply({"00081199": {"vr": "SQ", "Value": items}})


def big_pieces(size: int) -> Iterator[bytes]:
    """*size* bytes, made as they are read; each 64 KiB start with the number of that piece."""
    filler = bytes(range(256)) * (PIECE // 256)
    for number in range(-(-size // PIECE)):
        piece = number.to_bytes(8, "big") + filler[8:]
        yield piece[: size - number * PIECE]


def _big(size: int) -> Reply:
    return Reply(200, [("Content-Type", "application/octet-stream")], pieces=big_pieces(size), length=size)


def _remove(metadata: dict[str, Any], tag: str) -> None:
    metadata.pop(tag, None)
    for element in metadata.values():
        for item in element.get("Value", []) if element.get("vr") == "SQ" else []:
            _remove(item, tag)

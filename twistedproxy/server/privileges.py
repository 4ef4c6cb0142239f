"""Dropping root privileges: twistd's ``--uid`` and ``--gid``.

- TCP ports are bound before, for only root may bind those below 1024. Unix sockets are made after, so that the new user
  owns and removes them.
- A port that cannot be bound ends the start later, with its reason, as without another user.
- Certificates are read after, by the new user, as they will be again in a reload.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

from twistedproxy.server.listening import bind, listen, listen_on

EARLY = ("tcp:", "tcp6:", "ssl:")
"""Beginnings of the endpoint descriptions that are bound as root."""


def changes_user(twistd_options: Optional[Mapping[str, Any]]) -> bool:
    """Whether twistd will go on as another user."""
    options = twistd_options or {}
    return options.get("uid") is not None or options.get("gid") is not None


def move_home() -> None:
    """HOME is still the former user's, where nothing can be kept: make it that of the user we are now."""
    with contextlib.suppress(KeyError):  # a number without a name has none
        os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir


class Ports:
    """Listens and binds as `twistedproxy.server.listening` does, on what was bound early where there is such."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._early: dict[str, Deferred[IListeningPort]] = {}

    def bind_early(self, descriptions: Sequence[str]) -> None:
        """Bind what has to be, before the reactor runs."""
        for description in dict.fromkeys(descriptions):
            if description.startswith(EARLY):
                self._early[description] = Deferred.fromCoroutine(bind(self._reactor, description))

    async def bind(self, description: str) -> IListeningPort:
        """See `twistedproxy.server.listening.bind`."""
        early = self._early.pop(description, None)
        return await (bind(self._reactor, description) if early is None else early)

    async def listen(self, description: str, factory: IProtocolFactory) -> IListeningPort:
        """See `twistedproxy.server.listening.listen`."""
        early = self._early.pop(description, None)
        if early is None:
            return await listen(self._reactor, description, factory)
        bound: Any = await early
        try:
            return await listen_on(self._reactor, description, os.dup(bound.fileno()), factory)
        finally:
            await maybeDeferred(bound.stopListening)  # the other has a descriptor of its own

    async def close(self) -> None:
        """Close the ports that were not used."""
        while self._early:
            _, early = self._early.popitem()
            with contextlib.suppress(Exception):  # not bound: logged already, or of no interest at the stop
                await maybeDeferred((await early).stopListening)

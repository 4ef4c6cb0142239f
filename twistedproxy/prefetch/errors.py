"""How a load ends when it doesn't end well, and why it is not started."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Optional

from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused

if TYPE_CHECKING:
    from twistedproxy.prefetch.jobs import Job


class LoadFailed(Exception):
    """A load was given up. The text says why, and holds no secrets."""


class NotLoadable(LoadFailed):
    """The origin does not give this instance as a file, or gives another one: the next load would end likewise."""


# How origins say that they have no instance resource, or not in any form that we know. S3 says 403 of what is not there.
NO_INSTANCE = frozenset({400, 403, 404, 405, 406, 410, 415, 501})


def is_lasting(error: Optional[BaseException]) -> bool:
    """Whether what ended a load will not pass by itself."""
    refused = isinstance(error, OriginRefused) and error.status in NO_INSTANCE
    return refused or isinstance(error, (NotLoadable, OriginBadAnswer))


class Withdrawn(LoadFailed):
    """A load was given up after frames of it were in the cache, and may have been served.

    They were removed as far as that was possible; who hears this must see to it that nobody is given them any more.
    """


class Refusal(enum.Enum):
    """Why a load that was decided on is not started. The values are stable, as those of a plan's reasons are."""

    LOADED_LATELY = "loaded-lately"
    RUNNING = "running"
    JOBS_BUSY = "jobs-busy"
    STOPPING = "stopping"
    CACHE_UNREACHABLE = "cache-unreachable"


class NotStarted(Exception):
    """A load is not started. Its text is for people.

    *reason*: the value of a `Refusal`, or of a plan's reason. *status*: of HTTP. *retry_after*: seconds after which
    it can be, None where that is not known. *running*: the load that there is already.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        text: str,
        retry_after: Optional[float] = None,
        running: Optional[Job] = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        self.running = running

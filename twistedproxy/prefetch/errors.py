"""How a load ends when it doesn't end well, and why it is not started."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from twistedproxy.prefetch.jobs import Job


class LoadFailed(Exception):
    """A load was given up. The text says why, and holds no secrets."""


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

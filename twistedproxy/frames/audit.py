"""The audit trail: who was let see which instances without the store's seeing it, and what was removed from the cache.

The events are those of DICOM PS3.15 section A.5.3: DICOM Instances Accessed, and, where all of a study is removed, DICOM Study
Deleted. Each is one event of the log, ``event=audit``: a line of JSON, or a line of text that ends with the same as a JSON object.

Rules:
- An answer with pixels is an access where it is the first by a grant: the store has seen the request that the grant came from, and
  none of those that follow. A renewed grant is the same access. Of what the store has said of a whole series, one event stands for
  all instances: a stack of 1,000 slices is one access. Each worker has its own.
- *user* is a keyed digest (HMAC, RFC 2104) of what identifies the caller: the digest of a password could be guessed without the
  key. The key follows from the secret file, so that others can be given it and not the secret, with which grants could be forged.
- What the caller identifies itself with is in no event.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Optional

import attrs
from twisted.logger import Logger, LogLevel

from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.grants import Grant, Grants
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.origin.interface import Caller
from twistedproxy.system.log_json import time_of
from twistedproxy.system.tracing import current_trace

INSTANCES_ACCESSED = ("110103", "DICOM Instances Accessed")
STUDY_DELETED = ("110105", "DICOM Study Deleted")
"""Codes and meanings of events (PS3.16 annex D, coding scheme DCM)."""

READ, DELETE = "R", "D"
"""EventActionCode."""

SUCCESS, MINOR_FAILURE = 0, 4
"""EventOutcomeIndicator."""

MAX_SERIES = 10_000
"""Callers and series whose access goes on, at most: of more, an event may come again."""

KEY_LABEL = b"twistedproxy audit"


def audit_key(secret: bytes) -> bytes:
    """The key of the digests of users, from all bytes of the secret file."""
    return hmac.digest(secret, KEY_LABEL, hashlib.sha256)


@attrs.define(eq=False)
class AuditTrail:
    """Logs audit events. *key*: see `audit_key`; *wall_clock* gives seconds since the epoch; *json*: whether events are logged as lines
    of JSON anyway."""

    key: bytes = attrs.field(repr=False)
    wall_clock: Callable[[], float]
    json: bool = False
    _series: OrderedDict[tuple[bytes, Instance], float] = attrs.field(init=False, factory=OrderedDict)
    _log = Logger()

    def watch(self, grants: Grants, invalidation: Invalidation) -> None:
        """Log the first use of each of *grants*, and each *invalidation*."""
        grants.first_use = self.accessed
        invalidation.audit = self.removed

    def accessed(self, caller: Caller, instance: Instance, grant: Grant) -> None:
        """The first answer by *grant* was given."""
        if grant.by_series and self._goes_on(caller, instance.of_series, grant.expires):
            return
        self._emit(
            INSTANCES_ACCESSED,
            READ,
            SUCCESS,
            caller,
            instance.scope,
            grant="series" if grant.by_series else "instance",
            sop_class=grant.metadata.sop_class or None,
        )

    def removed(self, scope: Scope, caller: Optional[Caller], complete: bool, why: str) -> None:
        """What was cached of *scope* was removed, on behalf of *caller* (None: the proxy itself); *complete*: everywhere, not only in
        this worker so far. *why*: see `Invalidation`."""
        event = STUDY_DELETED if scope.series is None else INSTANCES_ACCESSED
        self._emit(event, DELETE, SUCCESS if complete else MINOR_FAILURE, caller, scope, why=why)

    def _goes_on(self, caller: Caller, series: Instance, expires: float) -> bool:
        """Whether the access to *series* has been logged and still goes on, which it does until *expires* now."""
        key = caller.credential, series
        until = self._series.get(key, 0.0)
        self._series[key] = max(until, expires)
        self._series.move_to_end(key)
        if len(self._series) > MAX_SERIES:
            self._series.popitem(last=False)
        return until > self.wall_clock()

    def _emit(
        self,
        event: tuple[str, str],
        action: str,
        outcome: int,
        caller: Optional[Caller],
        scope: Scope,
        **more: Optional[str],
    ) -> None:
        trace = current_trace.get()
        fields: dict[str, object] = {
            "event": "audit",
            "event_code": event[0],
            "event_name": event[1],
            "action": action,
            "outcome": outcome,
            "user": None if caller is None else self.user(caller),
            "client": None if caller is None else caller.address or None,
            "store": scope.origin + scope.root,
            "study": scope.study,
            "series": scope.series,
            "instances": [] if scope.sop is None else [scope.sop],
            **more,
            "request_id": None if trace is None else trace.request_id,
        }
        text = event[1] if self.json else json.dumps({"time": time_of(self.wall_clock()), **fields})
        self._log.emit(LogLevel.info, "{log_text}", log_text=text, **fields)

    def user(self, caller: Caller) -> Optional[str]:
        """The digest of the first credential of *caller*: a header, else the fields of its query; None where it has none."""
        value = caller.headers[0][1] if caller.headers else caller.query
        return hmac.new(self.key, value, hashlib.sha256).hexdigest() if value else None

"""What the log says once the listeners are there: where to go, what to try, what to mind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.logger import Logger

from twistedproxy.settings import Settings
from twistedproxy.web.mounts import Mounts
from twistedproxy.web.status import is_beyond_loopback

_log = Logger(namespace="twistedproxy.service")


def announce(settings: Settings, hosts: Sequence[Any], mounts: Mounts) -> None:
    """Say where to go. *hosts*: the addresses of the listeners, in the order of the settings; an admin's comes last."""
    admin = settings.admin_listen is not None
    for host in hosts[-1:] if admin else hosts:
        if is_beyond_loopback(host):
            _log.warn(
                "/metrics and /status.json name instances, and {address} can be reached from elsewhere: "
                "--admin-listen gives them a listener of their own",
                address=str(host),
            )
    for description, host in zip(settings.listen, hosts):
        _announce_listener("https" if description.startswith("ssl:") else "http", host, mounts)


def _announce_listener(scheme: str, host: Any, mounts: Mounts) -> None:
    name = getattr(host, "name", None)
    if name is not None:
        _log.info("listening on unix:{path}", path=name.decode() if isinstance(name, bytes) else name)
        return
    address = f"[{host.host}]" if ":" in host.host else host.host
    for mount in mounts.all:
        base = f"{scheme}://{address}:{host.port}{mount.prefix}"
        _log.info("{base} stands for {origin}", base=base, origin=mount.origin.url)
        for path in mount.origin.examples():
            _log.info("try {url}", url=f"{base}/{path}")

"""What the log says once the listeners are there: where to go, what to try, what to mind. Once, however many workers."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import attrs
from twisted.logger import Logger

from twistedproxy.settings import Settings

_log = Logger(namespace="twistedproxy.service")


@attrs.frozen
class Served:
    """What is below *prefix*: an origin's URL, and paths below the prefix that are fit to be tried."""

    prefix: str
    origin: str
    examples: Sequence[str]


def announce(settings: Settings, hosts: Sequence[Any], mounts: Sequence[Served]) -> None:
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


def is_beyond_loopback(address: object) -> bool:
    """Whether others than this machine can reach a listener at *address* (its `getHost`). A unix socket: no."""
    host = getattr(address, "host", None)
    try:
        return host is not None and not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _announce_listener(scheme: str, host: Any, mounts: Sequence[Served]) -> None:
    name = getattr(host, "name", None)
    if name is not None:
        _log.info("listening on unix:{path}", path=name.decode() if isinstance(name, bytes) else name)
        return
    address = f"[{host.host}]" if ":" in host.host else host.host
    for mount in mounts:
        base = f"{scheme}://{address}:{host.port}{mount.prefix}"
        _log.info("{base} stands for {origin}", base=base, origin=mount.origin)
        for path in mount.examples:
            _log.info("try {url}", url=f"{base}/{path}")

"""The log lines at the start, once the listeners are open: URLs to use and to try, and a warning. Once for all workers."""

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
    """A mount: its URL prefix, its origin's URL, and paths below the prefix that exist and are fit to be tried."""

    prefix: str
    origin: str
    examples: Sequence[str]


def announce(settings: Settings, hosts: Sequence[Any], mounts: Sequence[Served]) -> None:
    """Log the addresses of the page, then the URLs of all mounts. *hosts*: the addresses of the listeners, in the order of the settings, the admin listener's
    last."""
    admin = settings.admin_listen is not None
    if settings.page:
        for description, host in zip([*settings.listen, settings.admin_listen or ""], hosts):
            _announce_page(description, host)
    for host in hosts[-1:] if admin else hosts:
        if is_beyond_loopback(host):
            _log.warn(
                "/metrics and /status.json, which name instances, can be read from other machines at {address}; "
                "--admin-listen moves them to a listener of their own",
                event="pages_exposed",
                address=str(host),
            )
    for description, host in zip(settings.listen, hosts):
        _announce_listener(_scheme(description), host, mounts)


def is_beyond_loopback(address: object) -> bool:
    """Whether other machines can reach a listener at *address* (its `getHost`). Not at a unix socket."""
    host = getattr(address, "host", None)
    try:
        return host is not None and not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def _scheme(description: str) -> str:
    return "https" if description.startswith("ssl:") else "http"


def _announce_page(description: str, host: Any) -> None:
    """The address to open in a browser on this machine."""
    name = getattr(host, "host", None)
    if name is None:
        return
    here = f"[{name}]" if ":" in name else name
    if ipaddress.ip_address(name).is_unspecified:
        here = "localhost"
    _log.info("open {url} in a browser", event="page", url=f"{_scheme(description)}://{here}:{host.port}/")


def _announce_listener(scheme: str, host: Any, mounts: Sequence[Served]) -> None:
    name = getattr(host, "name", None)
    if name is not None:
        _log.info(
            "listening on unix:{path}", event="listening", path=name.decode() if isinstance(name, bytes) else name
        )
        return
    address = f"[{host.host}]" if ":" in host.host else host.host
    for mount in mounts:
        base = f"{scheme}://{address}:{host.port}{mount.prefix}"
        _log.info("{base} proxies {origin}", event="mount", base=base, origin=mount.origin)
        for path in mount.examples:
            _log.info("try {url}", event="example", url=f"{base}/{path}")

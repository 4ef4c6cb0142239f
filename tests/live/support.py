"""A proxy process in front of a real store, and real clients, which block and so run in threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import requests
from dicomweb_client import DICOMwebClient  # type: ignore[import-untyped]
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.clients import client
from tests.running import Proxy
from tests.slides import Made
from tests.stores.orthanc import Orthanc
from tests.waiting import DEADLINE, within

T = TypeVar("T")
ENOUGH = 90.0  # seconds for all that a client does in one thread


class Session(requests.Session):
    """Asks without the environment's proxies and never waits for ever. *answers*: all that came, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.trust_env = False
        self.answers: list[requests.Response] = []
        self.hooks["response"].append(lambda answer, *_args, **_more: self.answers.append(answer))

    def request(self, *args: Any, **more: Any) -> requests.Response:
        return super().request(*args, **{**more, "timeout": DEADLINE})

    def frame_answers(self) -> list[tuple[int, str]]:
        """Status and Cache-Status of each answer to a request for frames."""
        found = [answer for answer in self.answers if "/frames/" in answer.request.path_url]
        return [(answer.status_code, answer.headers.get("Cache-Status", "")) for answer in found]


class LiveCase(TestCase):
    """Starts what a test needs and ends it with the test."""

    timeout = 120

    async def orthanc(self, *files: Path, **more: Any) -> Orthanc:
        """An Orthanc that holds *files*; raises `SkipTest` where Orthanc is not installed."""
        store = Orthanc(**more)
        self.addCleanup(store.stop)
        await store.started()
        await deferToThread(store.store, *files)
        return store

    async def proxy(self, *options: str) -> Proxy:
        """A ready proxy; the machine's load changes nothing of what it prefetches."""
        load = ["--whole-instance-max-cpu", "100", "--whole-instance-max-memory", "100", "--cache-memory", "64M"]
        proxy = Proxy(*load, *options)
        self.addCleanup(proxy.remove)
        self.addCleanup(deferToThread, proxy.stop)
        await deferToThread(proxy.wait_until_ready)
        return proxy

    async def status(self, proxy: Proxy) -> Any:
        """What ``/status.json`` says."""
        return (await client(self, proxy.url, persistent=False).get("/status.json")).json()

    async def jobs(self, proxy: Proxy) -> list[tuple[str, str, str]]:
        """Resource, kind and result of each job, once none runs any more."""
        jobs: dict[str, Any] = {}

        def look() -> None:
            session = Session()
            while not jobs or jobs["running"]:
                jobs.update(json.loads(session.get(f"{proxy.url}/status.json").content)["jobs"])

        await self.threaded(look)
        return [(job["instance"], job["kind"], job["result"]) for job in jobs["ended"]]

    async def threaded(self, function: Callable[..., T], *args: Any, **more: Any) -> T:
        """What *function* returns, called in a thread."""
        return await within(deferToThread(function, *args, **more), ENOUGH)

    async def http_error(self, function: Callable[..., Any], *args: Any, **more: Any) -> requests.Response:
        """The answer that made *function* raise, called in a thread."""
        try:
            await self.threaded(function, *args, **more)
        except requests.HTTPError as error:
            assert error.response is not None
            return error.response
        raise AssertionError("no error came")


def dicomweb(url: str, session: Session | None = None) -> Any:
    """A dicomweb-client that gives up at the first refusal, as its answer is what a test is about."""
    found = DICOMwebClient(url, session=session or Session())
    found.set_http_retry_params(retry=False)
    return found


def uids(made: Made) -> tuple[str, str, str]:
    """Of study, series and instance, as clients take them."""
    return made.study, made.series, made.sop

"""Values that metadata point to."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import MemoryOrigin
from twistedproxy.dicom.address import Instance
from twistedproxy.imaging.bulk_data import read_bulk_value
from twistedproxy.origin.interface import Caller


class ReadBulkValueTests(SynchronousTestCase):
    """`read_bulk_value`."""

    def test_elsewhere(self) -> None:
        """What is no URL, or one of another place, is not asked for, and the picture is made without it."""
        instance = Instance("http://store/dicom-web", "", "1", "2", "3")
        for uri in ("http://[x/studies/1", "http://other/elsewhere", "http://store/studies/../x", "é"):
            reading = read_bulk_value(MemoryOrigin(), instance, Caller(b"", ()), uri)
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(reading)), b"", uri)

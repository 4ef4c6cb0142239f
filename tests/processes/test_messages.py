"""Messages between a process and its child, as bytes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, st
from twistedproxy.processes.messages import MAX_HEAD, BadMessage, Message, MessageReader


class MessageTests(SynchronousTestCase):
    """The framing."""

    @given(st.lists(st.lists(st.binary(max_size=50), max_size=4), max_size=4), st.integers(1, 40))
    def test_any_cut(self, blobs: list[list[bytes]], size: int) -> None:
        """Messages come out as they went in, however the bytes are cut."""
        messages = [Message({"n": number, "text": "ä"}, tuple(some)) for number, some in enumerate(blobs)]
        data = b"".join(piece for message in messages for piece in message.packed())
        reader = MessageReader()
        came = [m for start in range(0, len(data), size) for m in reader.feed(data[start : start + size])]
        self.assertEqual([(m.head, tuple(m.blobs)) for m in came], [(m.head, m.blobs) for m in messages])

    def test_what_is_no_message(self) -> None:
        """A head that is too long, is no JSON or promises impossible lengths is refused before memory is taken."""
        heads = (b"{]", b"[]", b"{}", b'{"blobs":[-1]}', b'{"blobs":["1"]}', b'{"blobs":[99999999999]}')
        for data in ((MAX_HEAD + 1).to_bytes(4, "big"), *(len(head).to_bytes(4, "big") + head for head in heads)):
            with self.assertRaises(BadMessage):
                list(MessageReader().feed(data))

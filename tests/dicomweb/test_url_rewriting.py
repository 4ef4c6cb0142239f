"""Answers that name the origin's URLs name the proxy instead."""

from __future__ import annotations

import itertools
import json
import tracemalloc

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicomweb.url_rewriting import MAX_HELD, Rewriting, UrlMap, json_urls, xml_urls

ORIGIN = "http://orthanc:8042/dicom-web"
PROXY = "https://proxy.example/pacs"
URLS = UrlMap(ORIGIN, PROXY)

METADATA = json.dumps(
    [
        {
            "00080018": {"vr": "UI", "Value": ["1.2.3"]},
            "00081190": {"vr": "UR", "Value": [f"{ORIGIN}/studies/1/series/2/instances/3"]},
            "00091002": {"vr": "UN", "BulkDataURI": f"{ORIGIN}/studies/1/bulkdata/00091002"},
            "00104000": {"vr": "LT", "Value": [f'see {ORIGIN}/studies or "BulkDataURI": "{ORIGIN}/studies/1"']},
            "00204000": {"vr": "LT", "Value": [f"{ORIGIN}/studies/1", "BulkDataURI", "00081190"]},
        }
    ]
).encode()


def in_pieces(transform: Rewriting, data: bytes, *cuts: int) -> bytes:
    edges = [0, *cuts, len(data)]
    pieces = [data[start:stop] for start, stop in itertools.pairwise(edges)]
    return b"".join(map(transform.feed, pieces)) + transform.close()


def rewritten(text: str | bytes) -> bytes:
    return in_pieces(json_urls(URLS), text.encode() if isinstance(text, str) else text)


class UrlMapTests(SynchronousTestCase):
    def test_below_the_base(self) -> None:
        """What lies below the origin's URL lies below the mount's, query and all."""
        urls = UrlMap(ORIGIN, PROXY)
        cases = [
            (ORIGIN, PROXY),
            (ORIGIN + "/studies/1?a=b&c#d", PROXY + "/studies/1?a=b&c#d"),
            ("HTTP://Orthanc:8042/dicom-web/studies", PROXY + "/studies"),
            ("/dicom-web/studies/1", PROXY + "/studies/1"),
            ("http://localhost:8042/dicom-web/studies/1", PROXY + "/studies/1"),
            ("https://public.example/dicom-web/studies/1", PROXY + "/studies/1"),
            ("//orthanc:8042/dicom-web/studies/1", PROXY + "/studies/1"),
        ]
        for url, expected in cases:
            self.assertEqual(urls.rewrite(url), expected, url)

    def test_elsewhere(self) -> None:
        """What is not the origin's stays as it is, and so do relative references."""
        urls = UrlMap(ORIGIN, PROXY)
        for url in (
            "",
            "studies/1",
            "../bulkdata/1",
            "?x=1",
            "/dicom-website/studies/1",
            ORIGIN + "site/studies/1",
            "/other/studies/1",
            "https://bucket.example/dicom-web/blob",
            "https://bucket.example/studies/1",
            "ftp://orthanc:8042/dicom-web/studies/1",
            "http://[broken/dicom-web/studies",
            "http://orthanc:99999/dicom-web/studies",
        ):
            expected = PROXY + "/studies" if "99999" in url else url
            self.assertIn(urls.rewrite(url), (url, expected), url)

    def test_dot_segments(self) -> None:
        """A relative reference leads to the same at the proxy, also where it climbs above the origin's root and comes back."""
        asked = ORIGIN + "/studies/1/series/2/instances/3/metadata"
        for reference, expected in (
            ("bulkdata/1?a=b#c", "bulkdata/1?a=b#c"),
            ("../../bulkdata/1?a=b", PROXY + "/studies/1/series/2/bulkdata/1?a=b"),
            ("../../../../../../../dicom-web/studies/1?a#b", PROXY + "/studies/1?a#b"),
            ("/dicom-web/studies/9/../1", PROXY + "/studies/1"),
            ("/dicom-web/../other", "/dicom-web/../other"),
            ("../../../../../../../other", "../../../../../../../other"),
            ("//[/../dicom-web/x", "//[/../dicom-web/x"),
        ):
            self.assertEqual(UrlMap(ORIGIN, PROXY, asked).rewrite(reference), expected)

    def test_base_without_path(self) -> None:
        """Where the origin is a bare host, another host is never taken for it."""
        urls = UrlMap("http://pacs", PROXY)
        self.assertEqual(urls.rewrite("http://pacs/studies/1"), PROXY + "/studies/1")
        self.assertEqual(urls.rewrite("http://pacs:80/studies/1"), PROXY + "/studies/1")
        self.assertEqual(urls.rewrite("/studies/1"), PROXY + "/studies/1")
        for url in ("http://other/studies/1", "http://pacs.evil/studies/1", "UR", ""):
            self.assertEqual(urls.rewrite(url), url)


class JsonTests(SynchronousTestCase):
    def test_only_urls_change(self) -> None:
        """RetrieveURL and BulkDataURI change; the same text in other attributes stays."""
        before, after = json.loads(METADATA)[0], json.loads(rewritten(METADATA))[0]
        self.assertEqual(after["00081190"]["Value"], [f"{PROXY}/studies/1/series/2/instances/3"])
        self.assertEqual(after["00091002"]["BulkDataURI"], f"{PROXY}/studies/1/bulkdata/00091002")
        for tag in ("00080018", "00104000", "00204000"):
            self.assertEqual(after[tag], before[tag])

    def test_cut_anywhere(self) -> None:
        """The result is the same wherever the body is cut, and byte by byte."""
        expected = rewritten(METADATA)
        for cut in range(len(METADATA)):
            self.assertEqual(in_pieces(json_urls(URLS), METADATA, cut), expected, cut)
        self.assertEqual(in_pieces(json_urls(URLS), METADATA, *range(1, len(METADATA))), expected)

    def test_escaped_slashes(self) -> None:
        r"""URLs whose slashes are written \/ are rewritten."""
        escaped = METADATA.replace(b"/", b"\\/")
        self.assertEqual(json.loads(rewritten(escaped)), json.loads(rewritten(METADATA)))
        for cut in range(len(escaped)):
            out = in_pieces(json_urls(URLS), escaped, cut)
            self.assertEqual(out, rewritten(escaped))

    def test_spacing_and_member_order(self) -> None:
        """Spaces, line ends and a vr behind the value change nothing."""
        text = '{"00081190" :\n { "Value" : [ "%s/studies/1" ] ,\t"vr":"UR" }, "x":{"BulkDataURI"\n:\n"%s/studies/2"}}'
        self.assertEqual(rewritten(text % (ORIGIN, ORIGIN)), (text % (PROXY, PROXY)).encode())

    def test_bulk_data_inside_retrieve_url(self) -> None:
        """A RetrieveURL that is bulk data itself is rewritten once."""
        text = '{"00081190":{"vr":"UR","BulkDataURI":"%s/studies/1"},"a":1}'
        self.assertEqual(rewritten(text % ORIGIN), (text % PROXY).encode())

    def test_nothing_is_lost(self) -> None:
        """What is no JSON, broken or cut off passes as it came."""
        for text in (
            b"",
            b"<html>",
            b'"BulkDataURI"',
            b'"BulkDataURI":',
            b'{"BulkDataURI":"http://orthanc:8042/dicom-web/stu',
            b'{"BulkDataURI":null,"00081190":[]}',
            b'{"00081190":{"vr":"UR"',
            b"\xff\x00\\",
            b'{"BulkDataURI":"\\',
            b'{"BulkDataURI":"\xff/"}',
        ):
            self.assertEqual(rewritten(text), text)
            self.assertEqual(in_pieces(json_urls(URLS), text, *range(1, len(text))), text)

    def test_held_bytes_are_bounded(self) -> None:
        """A URL that never ends is let go after a bounded number of bytes, and nothing is lost."""
        transform = json_urls(URLS)
        begun = b'{"BulkDataURI":"' + b"x" * 2 * MAX_HELD
        out = transform.feed(begun)
        self.assertEqual(len(begun) - len(out), MAX_HELD)
        self.assertEqual(out + transform.feed(b"yy") + transform.close(), begun + b"yy")

    def test_beginnings_take_linear_time(self) -> None:
        """Where members begin again and again and never end, each is looked at once: all of it again would take hours."""
        for begun in (b'"00081190":{"', b'"00081190":{', b'"BulkDataURI":', b'"BulkDataURI":"', b'"BulkDataURI" \\'):
            text = begun * 1_000_000
            self.assertEqual(in_pieces(json_urls(URLS), text), text)

    def test_large_metadata_in_little_memory(self) -> None:
        """Metadata of many megabytes passes without being kept."""
        head = b'[{"00081190":{"vr":"UR","Value":["%s/studies"]},' % ORIGIN.encode()
        head += b'"52009230":{"vr":"SQ","Value":['
        item = b'{"00209113":{"vr":"SQ","Value":[{"00209157":{"vr":"UL","Value":[1,2]}}]}},' * 800
        transform = json_urls(URLS)
        tracemalloc.start()
        try:
            size, out = len(head), len(transform.feed(head))
            for _ in range(200):
                out += len(transform.feed(item))
                size += len(item)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.assertGreater(size, 10_000_000)
        self.assertLess(peak, 2_000_000)
        self.assertEqual(out + len(transform.close()), size - len(ORIGIN) + len(PROXY))


class XmlTests(SynchronousTestCase):
    XML = (
        f'<DicomAttribute tag="00081190" vr="UR"><Value number="1">{ORIGIN}/studies/1</Value></DicomAttribute>'
        f'<BulkData uri="{ORIGIN}/studies/1/bulkdata/2"/><Value>{ORIGIN}site/x</Value><Value>x{ORIGIN}/y</Value>'
        f"\r\nContent-Location: {ORIGIN}/studies/1\r\n<Value>{ORIGIN}</Value>"
    ).encode()

    def test_xml(self) -> None:
        """Values and attributes that begin with the origin's URL change, others that merely hold it don't."""
        out = in_pieces(xml_urls(URLS, parts=False), self.XML).decode()
        self.assertEqual(out.count(PROXY), 4)
        self.assertIn(f"<Value>{ORIGIN}site/x</Value><Value>x{ORIGIN}/y</Value>", out)

    def test_cut_anywhere(self) -> None:
        """The result is the same wherever the body is cut."""
        expected = in_pieces(xml_urls(URLS, parts=False), self.XML)
        for cut in range(len(self.XML)):
            self.assertEqual(in_pieces(xml_urls(URLS, parts=False), self.XML, cut), expected, cut)
        self.assertEqual(in_pieces(xml_urls(URLS, parts=False), self.XML, *range(1, len(self.XML))), expected)

    def test_parts(self) -> None:
        """The length of a part is left out of its head, wherever the body is cut; other lines stay."""
        body = (
            b"--b\r\nContent-Type: x/y\r\ncontent-length: 12 \r\nContent-Length-2: 1\r\n\r\n" + self.XML + b"\r\n--b--"
        )
        expected = in_pieces(xml_urls(URLS, parts=False), body.replace(b"\r\ncontent-length: 12 ", b""))
        for cut in range(len(body)):
            self.assertEqual(in_pieces(xml_urls(URLS, parts=True), body, cut), expected, cut)
        self.assertEqual(in_pieces(xml_urls(URLS, parts=True), body, *range(1, len(body))), expected)

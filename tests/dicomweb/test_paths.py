"""What a path below a mount is, and what never reaches an origin."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, settings, st
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.dicomweb.paths import MAX_SEGMENTS, Resource, ResourceKind, parse_frame_list, parse_resource
from twistedproxy.server.problems import Problem

INSTANCE = b"/studies/1.2/series/3.4/instances/5.6"

RESOURCES = [
    (b"", Resource(ResourceKind.CAPABILITIES)),
    (b"/", Resource(ResourceKind.CAPABILITIES)),
    (b"/studies", Resource(ResourceKind.STUDIES)),
    (b"/series", Resource(ResourceKind.SEARCH)),
    (b"/instances", Resource(ResourceKind.SEARCH)),
    (b"/studies/1.2", Resource(ResourceKind.STUDY, study="1.2")),
    (b"/studies/1.2/series", Resource(ResourceKind.SEARCH, study="1.2")),
    (b"/studies/1.2/instances", Resource(ResourceKind.SEARCH, study="1.2")),
    (b"/studies/1.2/metadata", Resource(ResourceKind.METADATA, study="1.2")),
    (b"/studies/1.2/rendered", Resource(ResourceKind.RENDERED, study="1.2")),
    (b"/studies/1.2/thumbnail", Resource(ResourceKind.THUMBNAIL, study="1.2")),
    (b"/studies/1.2/bulkdata/a%20b/c.mht", Resource(ResourceKind.BULKDATA, study="1.2")),
    (b"/studies/1.2/pixeldata", Resource(ResourceKind.PIXELDATA, study="1.2")),
    (b"/studies/1.2/series/3.4", Resource(ResourceKind.SERIES, study="1.2", series="3.4")),
    (b"/studies/1.2/series/3.4/instances", Resource(ResourceKind.SEARCH, study="1.2", series="3.4")),
    (b"/studies/1.2/series/3.4/metadata", Resource(ResourceKind.METADATA, study="1.2", series="3.4")),
    (b"/studies/1.2/series/3.4/rendered", Resource(ResourceKind.RENDERED, study="1.2", series="3.4")),
    (INSTANCE, Resource(ResourceKind.INSTANCE, "", "1.2", "3.4", "5.6")),
    (INSTANCE + b"/metadata", Resource(ResourceKind.METADATA, "", "1.2", "3.4", "5.6")),
    (INSTANCE + b"/rendered", Resource(ResourceKind.INSTANCE_RENDERED, "", "1.2", "3.4", "5.6")),
    (INSTANCE + b"/thumbnail", Resource(ResourceKind.THUMBNAIL, "", "1.2", "3.4", "5.6")),
    (INSTANCE + b"/pixeldata", Resource(ResourceKind.PIXELDATA, "", "1.2", "3.4", "5.6")),
    (INSTANCE + b"/prefetch", Resource(ResourceKind.PREFETCH, "", "1.2", "3.4", "5.6")),
    (b"/studies/1.2/series/3.4/prefetch", Resource(ResourceKind.PREFETCH, "", "1.2", "3.4")),
    (b"/studies/1.2/prefetch", Resource(ResourceKind.PREFETCH, "", "1.2")),
    (INSTANCE + b"/bulkdata", Resource(ResourceKind.BULKDATA, "", "1.2", "3.4", "5.6")),
    (INSTANCE + b"/bulkdata/00081140/1/00081199", Resource(ResourceKind.BULKDATA, "", "1.2", "3.4", "5.6")),
    (INSTANCE + b"/bulk/7fe00010", Resource(ResourceKind.BULKDATA, "", "1.2", "3.4", "5.6")),
    (INSTANCE + b"/frames/7", Resource(ResourceKind.FRAMES, "", "1.2", "3.4", "5.6", "7")),
    (INSTANCE + b"/frames/3,1,2", Resource(ResourceKind.FRAMES, "", "1.2", "3.4", "5.6", "3,1,2")),
    (INSTANCE + b"/frames/3%2C1%2c2", Resource(ResourceKind.FRAMES, "", "1.2", "3.4", "5.6", "3,1,2")),
    (INSTANCE + b"/frames/nonsense", Resource(ResourceKind.FRAMES, "", "1.2", "3.4", "5.6", "nonsense")),
    (INSTANCE + b"/frames/7/rendered", Resource(ResourceKind.FRAMES_RENDERED, "", "1.2", "3.4", "5.6", "7")),
    (INSTANCE + b"/frames/7/thumbnail", Resource(ResourceKind.THUMBNAIL, "", "1.2", "3.4", "5.6", "7")),
    (b"/studies/1.2/instances/5.6/frames/1,2", Resource(ResourceKind.FRAMES, "", "1.2", None, "5.6", "1,2")),
    (
        b"/studies/1.2/instances/5.6/frames/1/rendered",
        Resource(ResourceKind.FRAMES_RENDERED, "", "1.2", None, "5.6", "1"),
    ),
    (b"/dicom-web/studies", Resource(ResourceKind.STUDIES, "/dicom-web")),
    (b"/dicom%2Dweb/studies", Resource(ResourceKind.STUDIES, "/dicom-web")),
    (b"/pacs/series", Resource(ResourceKind.SEARCH, "/pacs")),
    (
        b"/projects/x.org:p/locations/l/datasets/d/dicomStores/s/dicomWeb" + INSTANCE + b"/frames/9",
        Resource(
            ResourceKind.FRAMES,
            "/projects/x.org:p/locations/l/datasets/d/dicomStores/s/dicomWeb",
            "1.2",
            "3.4",
            "5.6",
            "9",
        ),
    ),
    (b"/projects/studies/dicomWeb/studies/1.2", Resource(ResourceKind.STUDY, "/projects/studies/dicomWeb", "1.2")),
    (b"/workitems", Resource(ResourceKind.OTHER)),
    (b"/workitems/1.2/subscribers/AET", Resource(ResourceKind.OTHER)),
    (b"/color-palettes/1.2", Resource(ResourceKind.OTHER)),
    (b"/bulkdata/1234", Resource(ResourceKind.BULKDATA)),
]

REFUSED = [
    b"/studies/..",
    b"/../studies",
    b"/./studies",
    b"/studies/1.2/../../system",
    b"/studies/1.2/series/3.4/instances/5.6/frames/../1",
    b"/%2e%2e/studies",
    b"/%2E./studies",
    b"/%2e%2e%2fsystem/studies",
    b"/..%2fstudies",
    b"/..%5cstudies",
    b"/..\\studies",
    b"/%252e%252e/studies",
    b"/a%252fb/studies",
    b"/..;/studies",
    b"/..;x=y/studies",
    b"/a%3b/studies",
    b"/studies;x=1",
    b"//studies",
    b"/studies//1.2",
    b"/studies/",
    b"studies",
    b"/studies/1.2%00",
    b"/a\x00b/studies",
    b"/a%0d%0ab/studies",
    b"/a b/studies",
    b"/a\xc3\xa9/studies",
    b"/a%c3%a9/studies",
    b"/a%/studies",
    b"/a%zz/studies",
    b"/a%3fx/studies",
    b"/a%23x/studies",
    b"/studies/abc",
    b"/studies/1..2",
    b"/studies/1.2.",
    b"/studies/" + b"1" * 65,
    b"/studies/1.2/series/x",
    b"/studies/1.2/series/3.4/instances/x",
    b"/studies/1.2/instances/x/frames/1",
    b"/a" * (MAX_SEGMENTS + 1) + b"/studies",
]

UNKNOWN = [
    b"/system",
    b"/tools/reset",
    b"/instances/1.2",
    b"/series/1.2/instances",
    b"/patients",
    b"/dicom-web",
    b"/bulkdata",
    b"/studies/1.2/archive",
    b"/studies/1.2/frames/1",
    b"/studies/1.2/instances/5.6",
    b"/studies/1.2/instances/5.6/metadata",
    b"/workitems/1/2/3/4/5",
    INSTANCE + b"/file",
    INSTANCE + b"/frames",
    INSTANCE + b"/frames/1/file",
    INSTANCE + b"/metadata/1",
]

FRAME_NONSENSE = ["", "0", "-1", "1,", ",1", "1,,2", "1, 2", "+1", "1.0", "x", "²", "٣", "1" * 11, "1" * 5000, "1;2"]


class ResourceTests(SynchronousTestCase):
    def test_resources(self) -> None:
        """Every DICOMweb resource is recognised, with its root, UIDs and frame list."""
        for path, expected in RESOURCES:
            self.assertEqual(parse_resource(path), expected, path)

    def test_refused(self) -> None:
        """What is malformed, or could be read otherwise at the origin, is a 400."""
        for path in REFUSED:
            self.assertEqual(self.assertRaises(Problem, parse_resource, path).status, 400, path)

    def test_unknown(self) -> None:
        """What is no DICOMweb resource is a 404."""
        for path in UNKNOWN:
            self.assertEqual(self.assertRaises(Problem, parse_resource, path).status, 404, path)

    def test_parsed_again(self) -> None:
        """A path means the same the second time, from the memory of paths."""
        for path, expected in RESOURCES:
            parse_resource(path)
            self.assertEqual(parse_resource(path), expected, path)

    def test_long_frame_list(self) -> None:
        """A list that is longer than what is remembered is still parsed."""
        numbers = ",".join(map(str, range(1, 501)))
        self.assertEqual(parse_resource(INSTANCE + b"/frames/" + numbers.encode()).frame_list, numbers)

    def test_instance_and_scope(self) -> None:
        """A resource gives the address and the scope at a store."""
        resource = parse_resource(b"/root" + INSTANCE)
        self.assertEqual(resource.instance("http://o"), Instance("http://o", "/root", "1.2", "3.4", "5.6"))
        self.assertEqual(resource.scope("http://o"), Scope("http://o", "/root", "1.2", "3.4", "5.6"))
        self.assertRaises(ValueError, parse_resource(b"/studies/1.2").instance, "http://o")

    def test_methods(self) -> None:
        """Stores take POST at studies; frames are only read."""
        self.assertIn("POST", parse_resource(b"/studies").methods)
        self.assertNotIn("POST", parse_resource(INSTANCE + b"/frames/1").methods)
        self.assertIn("DELETE", parse_resource(b"/studies/1.2").methods)

    @settings(max_examples=300)
    @given(st.binary(max_size=60).map(lambda tail: b"/a/" + tail + b"/studies"))
    def test_any_bytes(self, path: bytes) -> None:
        """Any path is either refused with a 4xx or has a root without dot segments, empty ones or escapes of slashes."""
        try:
            root = parse_resource(path).root
        except Problem as problem:
            self.assertIn(problem.status, (400, 404))
            return
        segments = root.split("/")[1:]
        self.assertTrue(all(segment not in ("", ".", "..") for segment in segments), root)
        self.assertNotIn("%2f", root.lower())
        self.assertNotIn("%25", root)


class FrameListTests(SynchronousTestCase):
    def test_order_and_repeats_are_kept(self) -> None:
        """Frames come out as asked for."""
        self.assertEqual(parse_frame_list("1", 5), (1,))
        self.assertEqual(parse_frame_list("3,1,2,3", 5), (3, 1, 2, 3))
        self.assertEqual(parse_frame_list("2147483647", 1), (2147483647,))

    def test_malformed(self) -> None:
        """Anything but positive numbers is a 400."""
        for text in FRAME_NONSENSE:
            self.assertEqual(self.assertRaises(Problem, parse_frame_list, text, 5).status, 400, text)

    def test_names_what_came(self) -> None:
        """The problem shows the part that is no frame number."""
        self.assertIn("'-4'", self.assertRaises(Problem, parse_frame_list, "1,-4", 5).detail)

    def test_too_many(self) -> None:
        """More frames than the limit is a 400 that says the limit; as many as the limit are fine."""
        self.assertEqual(len(parse_frame_list("1,1,1", 3)), 3)
        problem = self.assertRaises(Problem, parse_frame_list, "1,1,1,1", 3)
        self.assertEqual(problem.status, 400)
        self.assertIn("limit is 3", problem.detail)

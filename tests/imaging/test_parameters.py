"""What a query asks of pictures."""

from __future__ import annotations

from urllib.parse import quote

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, st
from twistedproxy.imaging.parameters import (
    DESCRIBING,
    FRAMES,
    INTERPOLATIONS,
    PROFILES,
    BadParameter,
    Rendering,
    Viewport,
    Window,
    parse_query,
    without,
)


def rendering(query: str) -> Rendering:
    """What *query* asks for."""
    return parse_query(query.encode()).rendering


class ValueTests(SynchronousTestCase):
    """Values that are accepted, and that are not."""

    def test_defaults(self) -> None:
        """An empty query asks for the picture as it is."""
        self.assertEqual(rendering(""), Rendering(1.0, "area", None, None, 95, "no", False))
        self.assertTrue(rendering("").to("image/jpeg").changes_nothing)

    def test_all(self) -> None:
        """Every parameter is read, in any letter case of its name and percent-encoded or not."""
        text = "downsample=2.5&Interpolation=CUBIC&viewport=10,20&window=40,400&quality=1&iccprofile=sRGB"
        expected = Rendering(2.5, "cubic", Viewport(10, 20), Window(40.0, 400.0), 1, "srgb", True)
        self.assertEqual(rendering(text), expected)
        self.assertEqual(rendering(text.replace(",", "%2C")), expected)

    def test_viewport(self) -> None:
        """Values may be left out between commas; x and y count by their absolute values, a size below 0 flips."""
        for text, viewport in {
            "1,65536": Viewport(1, 65536),
            "512,512,,,256,128": Viewport(512, 512, 0, 0, 256, 128),
            "512,512,1.5,2": Viewport(512, 512, 1.5, 2),
            "512,512,-10,20,-30,-40.5": Viewport(512, 512, 10, 20, -30, -40.5),
            "5,6,,,,7": Viewport(5, 6, 0, 0, None, 7),
        }.items():
            self.assertEqual(rendering(f"viewport={text}").viewport, viewport, text)

    def test_window(self) -> None:
        """A window has a center, a width and a function, which clients leave out."""
        self.assertEqual(rendering("window=-600,1500,LINEAR_EXACT").window, Window(-600, 1500, "linear-exact"))
        self.assertEqual(rendering("window=1e2,.5,sigmoid").window, Window(100, 0.5, "sigmoid"))

    def test_refused(self) -> None:
        """What makes no sense is refused, with the parameter, what came, and what is accepted."""
        for name, values in {
            "downsample": ("", "0", "0.99", "-2", "nan", "inf", "1e7", "two", "1,5", "0x2", "9" * 50),
            "interpolation": ("", "bicubic", "4"),
            "quality": ("", "0", "101", "50.0", "-1", "１"),
            "iccprofile": ("", "true", "p3"),
            "embed_iccprofile": ("", "maybe"),
            "disable_caching": ("", "2"),
            "viewport": (
                "",
                "1",
                "0,1",
                "1.5,1",
                "-1,1",
                "65537,1",
                "1,1,a",
                "1,1,0,0,0,1",
                "1,1,0,0,1,1,1",
                "1,1,nan",
            ),
            "window": ("", "1", "1,0", "1,-1", "1,0.5", "1,2,cubic", "1,2,linear,3", "a,b", "1,inf"),
            "annotation": ("", "name", "patient,x"),
        }.items():
            for value in values:
                with self.assertRaises(BadParameter, msg=f"{name}={value}") as caught:
                    parse_query(f"{name}={quote(value)}".encode())
                text = str(caught.exception)
                self.assertIn(name, text)
                self.assertIn("expected", text)
                self.assertLess(len(text), 400)

    def test_twice(self) -> None:
        """A parameter that comes twice is refused: one of them would be ignored."""
        self.assertRaises(BadParameter, parse_query, b"quality=1&quality=1")

    def test_unknown(self) -> None:
        """What is not known here is ignored, also what is known elsewhere."""
        self.assertEqual(rendering("charset=utf-8&accept=image/png&x=1&quality=90"), rendering("quality=90"))
        self.assertEqual(parse_query(b"viewport=nonsense", FRAMES).rendering, Rendering())
        self.assertEqual(parse_query(b"downsample=2&quality=1000", DESCRIBING).rendering.downsample, 2.0)

    def test_beside_the_pixels(self) -> None:
        """Annotations and caching are told apart from what the picture looks like."""
        asked = parse_query(b"annotation=technique,patient&disable_caching=true")
        self.assertEqual((asked.annotations, asked.fresh), (("patient", "technique"), True))
        self.assertEqual(asked.rendering, Rendering())
        self.assertEqual(asked.given, {"annotation", "disable_caching"})

    def test_without(self) -> None:
        """What an origin is asked lacks our own parameters, and is else as it came."""
        self.assertEqual(without(b"downsample=2&limit=5&%64ownsample=3&x=%20", {"downsample"}), b"limit=5&x=%20")

    @given(st.binary(max_size=200))
    def test_any_bytes(self, query: bytes) -> None:
        """Whatever comes is read or refused."""
        try:
            parse_query(query)
        except BadParameter as error:
            self.assertLess(len(str(error)), 500)


_RENDERINGS = st.builds(
    Rendering,
    st.floats(1.0, 100.0),
    st.sampled_from(INTERPOLATIONS),
    st.none() | st.builds(Viewport, st.integers(1, 9), st.integers(1, 9), st.floats(0, 9), st.floats(0, 9)),
    st.none() | st.builds(Window, st.floats(-5, 5), st.floats(1, 5)),
    st.integers(1, 100),
    st.sampled_from(PROFILES),
    st.booleans(),
    st.sampled_from(("image/jpeg", "image/png", "image/webp")),
)


class KeyTests(SynchronousTestCase):
    """Names of pictures."""

    @given(_RENDERINGS, _RENDERINGS)
    def test_one_key_a_picture(self, one: Rendering, other: Rendering) -> None:
        """Equal values have equal keys, unequal ones unequal keys."""
        self.assertEqual(one.key() == other.key(), one == other)
        self.assertEqual(one.key(), attrs.evolve(one).key())

    def test_what_makes_no_difference(self) -> None:
        """Requests for the same picture, however they are written, have one key."""
        for one, other, media_type in (
            ("quality=10", "quality=90", "image/png"),
            ("interpolation=cubic", "", "image/jpeg"),
            ("downsample=1.0", "quality=95", "image/jpeg"),
            ("downsample=2", "downsample=+2.0e0&interpolation=area", "image/jpeg"),
            ("iccprofile=yes&embed_iccprofile=false", "iccprofile=no", "image/jpeg"),
            ("viewport=1,1,,,-1", "viewport=1,1,-0,0.0,-1.0", "image/gif"),
        ):
            keys = {rendering(query).to(media_type).key() for query in (one, other)}
            self.assertEqual(len(keys), 1, (one, other))

    def test_what_makes_one(self) -> None:
        """Pictures that differ have keys that do."""
        queries = ("", "quality=10", "downsample=2", "downsample=2&interpolation=cubic", "viewport=1,1", "window=1,2",
                   "window=1,2,sigmoid", "iccprofile=yes", "iccprofile=srgb", "iccprofile=srgb&embed_iccprofile=0")  # fmt: skip
        keys = {rendering(query).to(media).key() for query in queries for media in ("image/jpeg", "image/webp")}
        self.assertEqual(len(keys), 2 * len(queries))

    def test_changes_nothing(self) -> None:
        """A quality alone is no reason to encode again what is encoded; anything that touches pixels is."""
        for query in ("", "quality=10", "interpolation=cubic", "downsample=1"):
            self.assertTrue(rendering(query).to("image/jpeg").changes_nothing, query)
        for query in ("downsample=1.01", "viewport=9,9", "window=1,2", "iccprofile=yes", "iccprofile=srgb"):
            self.assertFalse(rendering(query).to("image/jpeg").changes_nothing, query)

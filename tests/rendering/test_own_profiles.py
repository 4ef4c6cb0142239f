"""A folder of ICC profiles of one's own: what is accepted in it, and by which names."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.running import printed
from twistedproxy.imaging.icc import profile_of
from twistedproxy.imaging.parameters import MAX_PROFILE, PROFILES, TARGETS, BadParameter, Rendering, parse_query
from twistedproxy.rendering.own_profiles import MAX_PROFILES, BadProfiles, read_profiles
from twistedproxy.rendering.planner import Planner


def profile_folder(folder: str, profiles: Mapping[str, bytes]) -> str:
    """The absolute path of *folder*, where each of *profiles* is a file from now on, and no other is."""
    path = Path(folder).absolute()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, profile in profiles.items():
        (path / f"{name}.icc").write_bytes(profile)
    return str(path)


class FolderTests(SynchronousTestCase):
    """Files and names."""

    def folder(self, **files: bytes) -> Path:
        """A folder with *files*; __ in a name stands for the dot."""
        folder = Path(self.mktemp())
        folder.mkdir()
        for name, data in files.items():
            (folder / name.replace("__", ".")).write_bytes(data)
        return folder

    def planner(self, profiles: Mapping[str, bytes]) -> Planner:
        """A planner of pictures with these profiles."""
        nothing: Any = None
        return Planner(nothing, nothing, profiles)

    def refused(self, folder: Path) -> str:
        """The error, which is one line."""
        error = str(self.assertRaises(BadProfiles, read_profiles, str(folder)))
        self.assertNotIn("\n", error)
        self.assertIn(str(folder), error)
        return error

    def test_names(self) -> None:
        """Profiles go by their files' names in lower case; other files are left alone."""
        files = {"srgb__icc": b"1", "Lab-2_b__ICM": b"2", "readme__txt": b"3", "no": b"4"}
        own = read_profiles(str(self.folder(**files)))
        self.assertEqual(own, {"srgb": b"1", "lab-2_b": b"2"})
        names = self.planner(own).profile_names
        self.assertEqual(names, (*PROFILES, "lab-2_b"))
        for name in names:
            self.assertEqual(parse_query(f"iccprofile={name}".encode(), profiles=names).rendering.profile, name)
        self.assertRaises(BadParameter, parse_query, b"iccprofile=lab-2_b")

    def test_digests(self) -> None:
        """Pictures of another profile of the same name have another name; those of other profiles keep theirs."""
        one, other = (self.planner({"srgb": profile_of(name)}) for name in ("srgb", "adobergb"))
        for target in TARGETS:
            names = {planner.name(b"whole", Rendering(profile=target)) for planner in (one, other, self.planner({}))}
            self.assertEqual(len(names), 3 if target == "srgb" else 1)

    def test_refused(self) -> None:
        """A folder that is not there or empty, names that are none or come twice, and files without or with too many
        bytes are refused by name."""
        self.assertIn("No such file", self.refused(Path(self.mktemp())))
        self.assertIn(".icc", self.refused(self.folder(readme__txt=b"1")))
        for name in ("yes", "no", "a b", "ä", "-x", "x" * 33):
            self.assertIn(f"{name}.icc", self.refused(self.folder(**{f"{name}__icc": b"1"})))
        self.assertIn("also has the name a", self.refused(self.folder(a__icc=b"1", A__icm=b"1")))
        self.assertIn("a.icc", self.refused(self.folder(a__icc=b"")))
        self.assertIn(str(MAX_PROFILE), self.refused(self.folder(a__icc=bytes(MAX_PROFILE + 1))))
        many = {f"p{number}__icc": b"1" for number in range(MAX_PROFILES + 1)}
        self.assertIn(str(MAX_PROFILES), self.refused(self.folder(**many)))
        folder = self.folder()
        (folder / "a.icc").mkdir()
        self.assertIn("directory", self.refused(folder))


class ImportTests(TestCase):
    """What the proxy loads to read them."""

    async def test_no_codec(self) -> None:
        """Codecs are the rendering children's alone: the proxy imports neither Pillow nor imagecodecs. numpy
        would take each worker 15 MB and a fifth of its start."""
        program = "import sys, twistedproxy.proxy; print({'PIL', 'imagecodecs', 'numpy'} & sys.modules.keys())"
        self.assertEqual(await printed(program), "set()\n")

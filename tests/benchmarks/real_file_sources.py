"""Real DICOM files, gathered in a folder of their own: what installed packages ship, what pip fetches by name, and what
DCMTK and Orthanc's WSI tools make of them.

Rules:

- The files that are gathered are copies; nothing where they come from is changed.
- What is not installed, or cannot be fetched, is left out, and named in `Gathered.missing`.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy
import pydicom
import wsidicom_data  # type: ignore[import-untyped]
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, UID_dictionary, generate_uid
from wsidicom_data import TestData

PACKAGES = {
    "pydicom-data": "1.0.0",
    "deid-data": "0.0.20",
    "nibabel": "5.4.2",
    "pynetdicom": "3.0.4",
}
"""What pip fetches: archives that ship DICOM files, 50 MB in all."""

TO_ENCODE = (
    "CT_small.dcm",
    "MR_small.dcm",
    "emri_small.dcm",
    "SC_rgb_2frame.dcm",
    "SC_rgb_16bit_2frame.dcm",
    "examples_palette.dcm",
    "examples_ybr_color.dcm",
    "US1_UNCR.dcm",
    "OBXXXX1A_2frame.dcm",
    "rtdose.dcm",
    "MR-SIEMENS-DICOM-WithOverlays.dcm",
    "mlut_18.dcm",
)
"""The files that DCMTK encodes anew, in each of `ENCODERS`' ways."""

ENCODERS: dict[str, Sequence[str]] = {
    "big-endian": ("dcmconv", "+tb"),
    "implicit": ("dcmconv", "+ti"),
    "deflated": ("dcmconv", "+td"),
    "rle": ("dcmcrle",),
    "rle-without-offsets": ("dcmcrle", "-ot"),
    "jpeg-lossless-sv1": ("dcmcjpeg", "+e1"),
    "jpeg-lossless": ("dcmcjpeg", "+el", "+sv", "4", "-ot"),
    "jpeg": ("dcmcjpeg", "+eb"),
    "jpeg-444": ("dcmcjpeg", "+eb", "+s4", "+fs", "8"),
    "jpeg-extended": ("dcmcjpeg", "+ee", "+bt"),
    "jpegls": ("dcmcjpls", "+el"),
    "jpegls-near": ("dcmcjpls", "+en", "+fs", "8", "-ot"),
}

SLIDES: dict[str, Sequence[str]] = {
    "raw": (
        "--compression",
        "none",
        "--tile-width",
        "256",
        "--tile-height",
        "192",
        "--pyramid",
        "1",
        "--max-size",
        "1",
    ),
    "jpeg": ("--compression", "jpeg", "--tile-width", "256", "--tile-height", "256", "--pyramid", "1"),
    "jpeg-small": ("--compression", "jpeg", "--tile-width", "64", "--tile-height", "48", "--max-size", "1"),
    "jpeg2000": ("--compression", "jpeg2000", "--tile-width", "200", "--tile-height", "120", "--pyramid", "1"),
    "jpeg2000-parts": ("--compression", "jpeg2000", "--tile-width", "128", "--tile-height", "128", "--max-size", "1"),
    "one-tile": ("--compression", "jpeg", "--tile-width", "1600", "--tile-height", "1200"),
}
"""Options of OrthancWSIDicomizer; --max-size is of an instance, in MB: a level then takes several."""

TIMEOUT = 120.0  # seconds, of each program that is started


@attrs.define
class Gathered:
    """*files*: each DICOM file, and where it is from. *missing*: what could not be had, and why."""

    files: dict[Path, str] = attrs.field(factory=dict)
    missing: list[str] = attrs.field(factory=list)


def gather(folder: Path, fetch: bool) -> Gathered:
    """Copy and make the files, below *folder*. *fetch*: whether pip may be asked for `PACKAGES`."""
    gathered = Gathered()
    _copy(gathered, "pydicom", Path(pydicom.__file__).parent / "data", folder / "pydicom")
    for name, version in PACKAGES.items() if fetch else ():
        unpacked = folder / "packages" / name
        try:
            _fetch(f"{name}=={version}", unpacked)
        except (subprocess.SubprocessError, OSError) as error:
            gathered.missing.append(f"{name}: {error}")
            continue
        _copy(gathered, name, unpacked, folder / name)
    _wrap_tiles(gathered, folder / "wsidicom-data")
    _encode(gathered, folder / "dcmtk")
    _make_slides(gathered, folder / "orthanc-wsi")
    return gathered


def read(path: Path) -> Dataset | None:
    """An instance's data set, whose pixel data is read when it is asked for; None where the file holds no instance."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True, defer_size=1 << 16)
            return dataset if all(dataset.get(f"{level}InstanceUID") for level in ("Study", "Series", "SOP")) else None
    except Exception:  # whatever a file that is none makes of pydicom
        return None


def _copy(gathered: Gathered, source: str, tree: Path, folder: Path) -> None:
    for path in sorted(tree.rglob("*")):
        if not path.is_file() or path.suffix in (".py", ".pyc", ".json", ".txt", ".md", ".icc", ".dump"):
            continue
        target = folder / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gz":
            target = target.with_suffix("")
            target.write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copyfile(path, target)
        if read(target) is not None:
            gathered.files[target] = source


def _fetch(requirement: str, folder: Path) -> None:
    archives = folder.with_name(folder.name + "-archive")
    _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(archives), requirement])
    for archive in archives.iterdir():
        if archive.suffix == ".whl":
            shutil.unpack_archive(archive, folder, "zip")
        else:
            shutil.unpack_archive(archive, folder, filter="data")


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL, capture_output=True)


def _wrap_tiles(gathered: Gathered, folder: Path) -> None:
    """wsidicom-data's encoded tiles come without a DICOM file around them: two frames, with each offset table."""
    folder.mkdir(parents=True)
    tiles = Path(wsidicom_data.__file__).parent / "data" / "encoded"
    for number, tile in enumerate(sorted(tiles.iterdir())):
        target = folder / f"{tile.stem.replace(' ', '_')}.dcm"
        _wrapped(tile, ("basic", "extended", "none")[number % 3]).save_as(target, enforce_file_format=True)
        gathered.files[target] = "wsidicom-data"


def _wrapped(tile: Path, table: str) -> Dataset:
    name, kind, bits = tile.stem.rsplit("-", 2)
    name = name.replace("_", " ").lower()
    syntax = UID(next(uid for uid, facts in UID_dictionary.items() if facts[0].lower().startswith(name)))
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.4"
    data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID = (generate_uid() for _ in range(3))
    data.PatientID, data.Modality = "TILES", "OT"
    data.Rows = data.Columns = 240
    data.NumberOfFrames = 2
    data.SamplesPerPixel, data.PhotometricInterpretation = (1, "MONOCHROME2") if kind == "GRAYSCALE" else (3, "RGB")
    if kind == "YBR" and not name.startswith("jpeg lossless"):  # those are RGB, and say so
        kinds = {".90": "YBR_RCT", ".91": "YBR_ICT"}
        data.PhotometricInterpretation = kinds.get(syntax[-3:], "YBR_FULL")
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = 8 if bits == "8" else 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = int(bits), int(bits) - 1, 0
    frame = tile.read_bytes()
    if not syntax.is_encapsulated:
        data.PixelData = frame * 2
    elif table == "extended":
        data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended([frame] * 2)
    else:
        data.PixelData = encapsulate([frame] * 2, has_bot=table == "basic", fragments_per_frame=1 + (table == "basic"))
    data["PixelData"].VR = "OB" if syntax.is_encapsulated or bits == "8" else "OW"
    return data


def _encode(gathered: Gathered, folder: Path) -> None:
    """Each of `TO_ENCODE` under a UID of its own, in DCMTK's encodings; what DCMTK refuses is left out."""
    if not shutil.which("dcmcjpeg"):
        gathered.missing.append("DCMTK is not installed (Debian: dcmtk)")
        return
    folder.mkdir(parents=True)
    sources = {path.name: path for path in gathered.files}
    for name in TO_ENCODE:
        if name not in sources:
            continue
        for kind, (program, *options) in ENCODERS.items():
            target, native = folder / f"{Path(name).stem}-{kind}.dcm", folder / "native"
            dataset = pydicom.dcmread(sources[name])
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            dataset.save_as(native)
            try:
                _run([program, *options, str(native), str(target)])
            except subprocess.SubprocessError:
                target.unlink(missing_ok=True)
                continue
            gathered.files[target] = "dcmtk"
    (folder / "native").unlink(missing_ok=True)


def _make_slides(gathered: Gathered, folder: Path) -> None:
    """Slides of a picture of tissue whose size is no multiple of a tile's."""
    if not shutil.which("OrthancWSIDicomizer"):
        gathered.missing.append("OrthancWSIDicomizer is not installed (Debian: orthanc-wsi)")
        return
    folder.mkdir(parents=True)
    picture = folder / "picture.png"
    Image.fromarray(_tissue(1100, 1500)).save(picture)
    for name, options in SLIDES.items():
        (folder / name).mkdir()
        _run(["OrthancWSIDicomizer", str(picture), "--folder", str(folder / name), *options])
        gathered.files |= dict.fromkeys(sorted((folder / name).glob("*.dcm")), "orthanc-wsi")
    picture.unlink()


def _tissue(rows: int, columns: int) -> numpy.ndarray:
    """The tile of wsidicom-data over and over, each place a bit darker than the one before it."""
    tile = numpy.asarray(TestData.rgb().convert("RGB"))
    height, width = tile.shape[:2]
    picture = numpy.empty((rows, columns, 3), numpy.uint8)
    for number, (top, left) in enumerate(_places(rows, columns, height, width)):
        part = picture[top : top + height, left : left + width]
        part[:] = (tile[: part.shape[0], : part.shape[1]] * (1 - number / 64)).astype(numpy.uint8)
    return picture


def _places(rows: int, columns: int, height: int, width: int) -> Iterator[tuple[int, int]]:
    return ((top, left) for top in range(0, rows, height) for left in range(0, columns, width))

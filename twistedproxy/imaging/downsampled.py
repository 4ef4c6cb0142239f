"""The virtual, smaller instance that ``downsample`` asks for: its sizes, and where its frames come from. Pure.

Rules:
- it has max(1, int(size / factor)) pixels a side, in frames of the stored frames' size, as TILED_FULL (DICOM PS3.3
  section C.7.6.17.3); its planes follow each other as the stored ones do; of a part of a concatenation it has the planes
  that the part holds frames of;
- its pixel t covers the source from t * size / new size on: the whole matrix, not a remainder less, so that PixelSpacing
  times matrix stays what it was;
- a virtual edge frame is filled by repeating the last row and column, which adds no edge to compress;
- frames of an instance that is not tiled are resized each by itself.
"""

from __future__ import annotations

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.imaging.errors import CannotRender, NoSuchVirtualFrame
from twistedproxy.imaging.geometry import Axis, Cut
from twistedproxy.imaging.tile_index import lies_in_order, needs_positions


@attrs.frozen
class Downsampled:
    """An instance as it looks at *factor*: the stored one itself at 1.

    *rows*, *columns*: of one frame. *total_rows*, *total_columns*: of the picture that the frames tile; of one frame
    where it is not tiled.
    """

    metadata: InstanceMetadata
    factor: float
    is_tiled: bool
    rows: int
    columns: int
    total_rows: int
    total_columns: int
    planes: int

    @classmethod
    def of(cls, metadata: InstanceMetadata, factor: float = 1.0) -> Downsampled:
        """Raises `CannotRender` where the metadata have no size, or the frames lie in no order that can be relied on."""
        if metadata.rows < 1 or metadata.columns < 1:
            raise CannotRender("the metadata do not say how large a frame is")
        if not lies_in_order(metadata):
            if factor > 1.0 and needs_positions(metadata):
                raise CannotRender("it must be known where the frames of an instance that is not TILED_FULL lie")
            rows, columns = shrunk(metadata.rows, factor), shrunk(metadata.columns, factor)
            return cls(metadata, factor, False, rows, columns, rows, columns, metadata.frames)
        assert metadata.total_rows is not None and metadata.total_columns is not None
        grid_rows, grid_columns = metadata.grid
        size = grid_rows * grid_columns
        planes = -(-(metadata.frame_offset + metadata.frames) // size) - metadata.frame_offset // size
        return cls(
            metadata,
            factor,
            True,
            metadata.rows,
            metadata.columns,
            shrunk(metadata.total_rows, factor),
            shrunk(metadata.total_columns, factor),
            planes,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of frames in one plane."""
        return -(-self.total_rows // self.rows), -(-self.total_columns // self.columns)

    @property
    def frames(self) -> int:
        """NumberOfFrames."""
        if self.factor == 1.0:
            return self.metadata.frames
        rows, columns = self.grid
        return rows * columns * self.planes

    def frame(self, number: int) -> Cut:
        """Frame *number*, from 1. Raises `NoSuchVirtualFrame`."""
        if not 1 <= number <= self.frames:
            raise NoSuchVirtualFrame(
                f"frame {number} was asked for; at downsample={self.factor:g} the instance has frames 1 to {self.frames}"
            )
        if not self.is_tiled or self.factor == 1.0:
            return self._by_itself(number)
        rows, columns = self.grid
        plane, within = divmod(number - 1, rows * columns)
        row, column = divmod(within, columns)
        top, left = row * self.rows, column * self.columns
        return self._of_plane(
            plane, top, left, min(self.rows, self.total_rows - top), min(self.columns, self.total_columns - left)
        )  # fmt: skip

    def whole(self) -> Cut:
        """All of the first plane that there are frames of as one picture; of an instance that is not tiled, one frame."""
        return self.plane(0) if self.is_tiled else self._by_itself(1)

    def plane(self, plane: int) -> Cut:
        """All of a plane, counted from the first that there are frames of, as one picture."""
        cut = self._of_plane(plane, 0, 0, self.total_rows, self.total_columns)
        return attrs.evolve(cut, rows=self.total_rows, columns=self.total_columns)

    def _by_itself(self, number: int) -> Cut:
        """A stored frame, pixel for pixel, or resized."""
        metadata = self.metadata
        vertical = Axis(metadata.rows, self.rows, 0.0, metadata.rows / self.rows)
        horizontal = Axis(metadata.columns, self.columns, 0.0, metadata.columns / self.columns)
        return Cut(
            vertical, horizontal, metadata.rows, metadata.columns, 1, number, metadata.frames, self.rows, self.columns
        )  # fmt: skip

    def _of_plane(self, plane: int, top: int, left: int, rows: int, columns: int) -> Cut:
        metadata = self.metadata
        assert metadata.total_rows is not None and metadata.total_columns is not None
        grid_rows, grid_columns = metadata.grid
        plane += metadata.frame_offset // (grid_rows * grid_columns)
        down, across = metadata.total_rows / self.total_rows, metadata.total_columns / self.total_columns
        return Cut(
            Axis(metadata.total_rows, rows, _exact(top, metadata.total_rows, self.total_rows), down),
            Axis(metadata.total_columns, columns, _exact(left, metadata.total_columns, self.total_columns), across),
            metadata.rows,
            metadata.columns,
            grid_columns,
            plane * grid_rows * grid_columns + 1 - metadata.frame_offset,
            metadata.frames,
            self.rows,
            self.columns,
        )


def _exact(at: int, source: int, target: int) -> float:
    """Where target pixel *at* begins: multiplied first, so that whole pixels come out whole."""
    return at * source / target


def shrunk(size: int, factor: float) -> int:
    """Pixels of a side at *factor*."""
    return max(1, int(size / factor))

"""Pictures of a sample: read, decoded, cropped, resized and coloured, each distinct one once."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from vla_jax import plugin
from vla_jax.data import augment as augment_lib
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import images


@dataclasses.dataclass(frozen=True)
class Pictures:
    """How the pictures of a table of episodes are shown.

    Attributes:
      where: for messages.
      episodes: the table, perhaps without some of the rows that `read` knows.
      read: of encoded or decoded images.
      kept: int64, the reader's row of each row of the table; None = the same.
      sizes: view -> (height, width).
      method: see images.resize.
      augment: see augment.Augment.
    """

    where: str
    episodes: episodes_lib.Episodes
    read: episodes_lib.FrameReader
    kept: np.ndarray | None
    sizes: dict[str, tuple[int, int]]
    method: str
    augment: augment_lib.Augment

    def recorded(self, view: str, episode: int, rows) -> list[bytes | np.ndarray]:
        """Pictures as they were recorded, at rows of the table: a FrameReader, for tools."""
        known = rows if self.kept is None else self.kept[np.asarray(rows)].tolist()
        return self.read(view, episode, known)

    def view(
        self, view: str, episode: int, rows: np.ndarray, real: np.ndarray, key: bytes
    ) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [W, height, width, 3], bool [W]) of a camera's window; absent images are zeros.

        UserError for bytes that are no image, naming episode, step and view.
        """
        shape, settings = (len(rows), *self.sizes[view], 3), self.augment.of(view)
        absent = view not in self.episodes.frames
        if absent or augment_lib.dropped(settings.image_dropout, key, view):
            return np.zeros(shape, np.uint8), np.zeros(len(rows), bool)
        # The repeated first frame is read and resized once.
        frames, repeated = np.empty(shape, np.uint8), len(rows) - int(real.sum())
        seen = self._show(view, episode, rows[repeated:], key, view, frames[repeated:])
        frames[:repeated] = frames[repeated]
        return frames, np.concatenate([np.zeros(repeated, bool), seen])

    def goal(self, view: str, episode: int, row: int, key: bytes) -> np.ndarray | None:
        """uint8 [height, width, 3]: a camera's picture at a row of the table; None where none is.

        It is cropped as the camera's window is, and coloured by a draw of its own.
        """
        if view not in self.episodes.frames:
            return None
        picture = np.empty((1, *self.sizes[view], 3), np.uint8)
        seen = self._show(view, episode, np.array([row]), key, f"goal_{view}", picture)
        return picture[0] if seen[0] else None

    def _show(
        self, view: str, episode: int, rows: np.ndarray, key: bytes, use: str, out: np.ndarray
    ) -> np.ndarray:
        """Bool [n], which rows have a picture; fills `out`, uint8 [n, height, width, 3]."""
        size, settings = self.sizes[view], self.augment.of(view)
        known = rows if self.kept is None else self.kept[rows]
        found = self.read(view, episode, known.tolist())
        shown = [
            self._decode(data, view, row) if len(data) else None
            for data, row in zip(found, rows.tolist())
        ]
        seen = np.array([image is not None for image in shown])
        if not seen.all():
            out[~seen] = 0
            shown = [image for image in shown if image is not None]
        if not shown:
            return seen
        box = augment_lib.crop(settings, key, view)
        matrix = None
        if settings.color:
            mean = np.mean([_mean(image, box) for image in shown], axis=0)
            matrix = augment_lib.color_matrix(settings, key, use, mean)
        for image, place in zip(shown, np.flatnonzero(seen).tolist()):
            # Colours are one number per pixel: they are changed where there are fewer of them.
            if matrix is None:
                images.resize(image, size, self.method, box, out[place])
            elif image.shape[0] * image.shape[1] < size[0] * size[1]:
                image = cv2.transform(image, matrix)
                images.resize(image, size, self.method, box, out[place])
            else:
                image = images.resize(image, size, self.method, box)
                cv2.transform(image, matrix, dst=out[place])
        return seen

    def _decode(self, data: bytes | np.ndarray, view: str, row: int) -> np.ndarray:
        if not isinstance(data, bytes):
            return data
        try:
            return images.decode(data, self.method)
        except plugin.UserError as error:
            place = self.episodes.place(view, row)
            raise plugin.UserError(f"{self.where}: {place}: {error}") from error


def _mean(image: np.ndarray, box: images.Box) -> np.ndarray:
    part = image if box == images.WHOLE else image[images.pixels(image.shape, box)]
    return np.asarray(cv2.mean(part)[:3])

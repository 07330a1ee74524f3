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

    def view(
        self, view: str, episode: int, rows: np.ndarray, real: np.ndarray, key: bytes
    ) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [W, height, width, 3], bool [W]) of a camera's window; absent images are zeros.

        UserError for bytes that are no image, naming episode, step and view.
        """
        frames = np.zeros((len(rows), *self.sizes[view], 3), np.uint8)
        mask, settings = np.zeros(len(rows), bool), self.augment.of(view)
        if view not in self.episodes.frames:
            return frames, mask
        if augment_lib.dropped(settings.image_dropout, key, view):
            return frames, mask
        # The repeated first frame is read and resized once.
        distinct, place = np.unique(rows, return_inverse=True)
        found = self._shown(view, episode, distinct, key, view)
        for i, image in enumerate(found):
            if image is not None:
                frames[place == i], mask[place == i] = image, True
        return frames, mask & real

    def goal(self, view: str, episode: int, row: int, key: bytes) -> np.ndarray | None:
        """uint8 [height, width, 3]: a camera's picture at a row of the table; None where none is.

        It is cropped as the camera's window is, and coloured by a draw of its own.
        """
        if view not in self.episodes.frames:
            return None
        return self._shown(view, episode, np.array([row]), key, f"goal_{view}")[0]

    def _shown(self, view: str, episode: int, rows: np.ndarray, key: bytes, use: str) -> list:
        """One uint8 [height, width, 3] per row, None where the data lack it."""
        size, settings = self.sizes[view], self.augment.of(view)
        known = rows if self.kept is None else self.kept[rows]
        found = self.read(view, episode, known.tolist())
        shown = [
            self._decode(data, view, row) if len(data) else None
            for data, row in zip(found, rows.tolist())
        ]
        real = [i for i, image in enumerate(shown) if image is not None]
        if not real:
            return shown
        box = augment_lib.crop(settings, key, view)
        matrix = None
        if settings.color:
            means = [_mean(shown[i], box) for i in real]
            matrix = augment_lib.color_matrix(settings, key, use, np.mean(means, axis=0))
        for i in real:
            # Colours are one number per pixel: they are changed where there are fewer of them.
            before = shown[i].shape[0] * shown[i].shape[1] < size[0] * size[1]
            image = shown[i]
            if matrix is not None and before:
                image = cv2.transform(image, matrix)
            image = images.resize(image, size, self.method, box)
            if matrix is not None and not before:
                image = cv2.transform(image, matrix)
            shown[i] = image
        return shown

    def _decode(self, data: bytes | np.ndarray, view: str, row: int) -> np.ndarray:
        if not isinstance(data, bytes):
            return data
        try:
            return images.decode(data, self.method)
        except plugin.UserError as error:
            episode = int(np.searchsorted(self.episodes.start, row, side="right")) - 1
            step = self.episodes.step[row]
            raise plugin.UserError(
                f"{self.where}: episode {self.episodes.ids[episode]}, step {step}, view {view}: "
                f"{error}"
            ) from error


def _mean(image: np.ndarray, box: images.Box) -> np.ndarray:
    part = image if box == images.WHOLE else image[images.pixels(image.shape, box)]
    return np.asarray(cv2.mean(part)[:3])

"""Rows of a `robot` stream from a table of episodes, whatever format it was read from.

sample (episode, t) ─ window.steps ─▶ images decoded, proprio gathered (normalized once, up front)
                    └ window.chunk ─▶ actions [W, C, A] and their mask, padded to [C_max, A_max]
language            ─ ids per distinct instruction, made once
waypoint, point     ─ the episode's last reading of a proprio group, and its place in the image
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

import numpy as np

from vla_jax import plugin
from vla_jax.data import augment as augment_lib
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import fit, images, selection, statistics, window
from vla_jax.types import SourceContext


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """How a data set's episodes become samples; the arguments that sources of robot data share.

    Attributes:
      holdout: share of the episodes kept for validation (at least one, if not 0), by a hash of
        (holdout_seed, episode id). `context.train` says which part is read. 1 = all of them, for
        a split that is kept for validation as a whole.
      episodes: only the first so many of the training episodes; None = all.
      stride: every how many of an episode's steps (with an image of each view) a sample starts.
      steps: which of those, a Python slice per episode: "[:3]", "[10:]".
      language: "required" (an episode without an instruction is an error) or "optional".
      dataset_key: the row of the normalizer; None = the data set's name.
      waypoint_group: proprio group whose last reading is the target `waypoint` [W, P].
      point_view: view in which that reading is the target `point` [W, 2].
      optional_views: views that may be absent (zeros, mask False); samples start only at steps
        with an image of each other view.
      bad_samples: "error", or "skip": broken episodes are left out and counted, and a sample that
        cannot be read gives way to the next one of its source.
      augment: see augment.Augment.make; off where `context.train` is False.
    """

    holdout: float = 0.1
    holdout_seed: int = 0
    episodes: int | None = None
    steps: str | None = None
    stride: int = 1
    language: str = "required"
    dataset_key: str | None = None
    waypoint_group: str | None = None
    point_view: str | None = None
    optional_views: tuple[str, ...] = ()
    bad_samples: str = "error"
    augment: dict | None = None

    @classmethod
    def make(cls, arguments: Mapping) -> Reading:
        """From a source's ``**reading: robot.Reading``, whose names plugin.build has checked."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})


class RobotRows:
    """An IndexedSource over a table of episodes; safe to call from threads, pickled without files.

    Args:
      context: the stream's.
      episodes: all of the split, training and held-out.
      read: of their images.
      reading: see Reading.
    """

    def __init__(
        self,
        context: SourceContext,
        episodes: episodes_lib.Episodes,
        read: episodes_lib.FrameReader,
        reading: Reading,
    ):
        self.context, self.episodes, self.read, self.reading = context, episodes, read, reading
        self.where = f"{context.stream}.{context.name} ({episodes.where})"
        self.dataset_key = reading.dataset_key or episodes.name
        self.embodiment = fit.named(
            f"{self.where}: embodiment", episodes.embodiment, context.embodiments
        )
        self.action_space = fit.named(
            f"{self.where}: action space", episodes.action_space, context.action_spaces
        )
        self.augment = augment_lib.Augment.make(
            self.where, reading.augment if context.train else {}
        )
        self.groups = _groups(context)
        fit.check(
            self.where,
            context,
            episodes,
            self.embodiment,
            self.action_space,
            reading.optional_views,
        )
        self.selected = self._split(context.train)
        required = [v for v in context.image_sizes if v not in reading.optional_views]
        self._samples = selection.starts(
            self.where, episodes, self.selected, required, reading.stride, reading.steps
        )
        self._language = _language(self)
        self._set_normalizer()
        self._waypoint, self._point = _endpoints(self)

    @property
    def fingerprint(self) -> str:
        """Changes with the data, or with how they are read."""
        return _hash(self.data_fingerprint, dataclasses.asdict(self.reading), self.context.train)

    @property
    def data_fingerprint(self) -> str:
        """Changes with the data or the held-out share: what statistics are computed on."""
        if not hasattr(self, "_data_fingerprint"):
            reading = self.reading
            parts = (reading.holdout, reading.holdout_seed, reading.episodes)
            self._data_fingerprint = _hash(self.episodes.fingerprint(), *parts)
        return self._data_fingerprint

    def __len__(self) -> int:
        return len(self._samples)

    def summary(self) -> dict:
        """Counts for the mixture's table."""
        return {
            "episodes": len(self.selected),
            "samples": len(self),
            "dataset_key": self.dataset_key,
            "action_space": self.episodes.action_space,
            "proprio": ",".join(group.name for group in self._recorded()),
            "unlabelled": int(np.sum(self.episodes.language_index[self._rows()] < 0)),
        }

    def statistics_columns(self) -> dict[str, statistics.Column]:
        """Field -> its column of the training episodes, read in blocks."""
        column = functools.partial(statistics.Column.of, self.episodes, self._split(True))
        groups = self.action_space.groups
        active = [np.full(g.size, g.quantity not in ("gripper", "terminate")) for g in groups]
        columns = {
            "action": column(
                self.episodes.action,
                active=np.concatenate(active),
                unit_scale=np.concatenate([np.full(g.size, g.scale) for g in groups]),
                chunk=self.context.action_horizon,
            )
        }
        for group in self._recorded():
            columns[f"proprio/{group.name}"] = column(
                self.episodes.proprio[group.name],
                active=np.ones(group.size, bool),
                unit_scale=np.full(group.size, group.scale),
            )
        return columns

    def with_normalizer(self, normalizer) -> RobotRows:
        """The same source under another normalizer, without reading the data again."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.context = dataclasses.replace(self.context, normalizer=normalizer)
        made._set_normalizer()
        made._waypoint, made._point = _endpoints(made)
        return made

    def sample(self, index: int, rng: np.random.Generator) -> dict:
        """Row `index`, as types.IndexedSource says. UserError for a broken image."""
        episode, t = (int(i) for i in self._samples[index])
        first, last = (int(i) for i in self.episodes.start[episode : episode + 2])
        slots, real = window.steps(t, self.context.window)
        rows = first + slots
        key = augment_lib.row_key(rng)
        targets, masks = self._targets(episode, t, first, last, real)
        views = {
            view: self._images(view, episode, rows, real, key) for view in self.context.image_sizes
        }
        proprio = {group: self._proprio_rows(group, rows, real, key) for group in self.groups}
        return {
            "observation": {
                "images": {view: pair[0] for view, pair in views.items()},
                "image_masks": {view: pair[1] for view, pair in views.items()},
                "proprio": {group: pair[0] for group, pair in proprio.items()},
                "proprio_masks": {group: pair[1] for group, pair in proprio.items()},
                "timestep_mask": real,
            },
            "task": self._task(first + t),
            "targets": targets,
            "target_masks": masks,
            "action_space": self._action_space_index,
            "dataset_key": self._key_index,
        }

    def _targets(self, episode: int, t: int, first: int, last: int, real: np.ndarray):
        context = self.context
        shape = (context.window, context.action_horizon, context.action_size)
        action, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        values, valid = window.chunk(
            self._action[first:last],
            t,
            context.window,
            context.action_horizon,
            self._hold,
            self._pad,
        )
        size = values.shape[-1]
        action[..., :size], mask[..., :size] = values, valid[..., None]
        targets, masks = {"action": action}, {"action": mask}
        if self._waypoint is not None:
            shape = (context.window, self._waypoint.shape[1])
            targets["waypoint"] = np.broadcast_to(self._waypoint[episode], shape)
            masks["waypoint"] = real
        if self._point is not None:
            point = self._point[episode]
            seen = bool(np.all((point >= 0) & (point <= 1)))
            targets["point"] = np.broadcast_to(
                point if seen else np.float32(0.5), (context.window, 2)
            )
            masks["point"] = real & seen
        return targets, masks

    def _images(self, view: str, episode: int, rows: np.ndarray, real: np.ndarray, key: bytes):
        frames = np.zeros((len(rows), *self.context.image_sizes[view], 3), np.uint8)
        mask = np.zeros(len(rows), bool)
        if view in self.episodes.frames:
            # The repeated first frame is read and decoded once.
            distinct, place = np.unique(rows, return_inverse=True)
            found = self.read(view, episode, distinct.tolist())
            for i, data in enumerate(found):
                if len(data):
                    frames[place == i] = self._decode(data, view, int(distinct[i]))
                    mask[place == i] = True
        if self.augment.color and mask.any():
            frames[mask] = augment_lib.jitter(self.augment, key, view, frames[mask])
        return frames, mask & real

    def _proprio_rows(self, group: str, rows: np.ndarray, real: np.ndarray, key: bytes):
        size = self.groups[group]
        if group not in self._proprio:
            return np.zeros((len(rows), size), np.float32), np.zeros(len(rows), bool)
        values = self._proprio[group][rows]
        if self.augment.proprio_noise:
            values = values + augment_lib.noise(self.augment, key, group, values.shape)
        if values.shape[1] < size:
            values = np.pad(values, ((0, 0), (0, size - values.shape[1])))
        return values, real

    def _task(self, row: int) -> dict:
        if self._language is None:
            return {"values": {}, "masks": {}}
        ids, mask = self._language
        place = self.episodes.language_index[row]  # -1, no instruction: the last row, all padding
        return {"values": {"language": ids[place]}, "masks": {"language": mask[place]}}

    def _set_normalizer(self) -> None:
        normalizer, key = self.context.normalizer, self.dataset_key
        groups = self.action_space.groups
        self._hold = np.concatenate([np.full(g.size, g.padding == "hold") for g in groups])
        self._action_space_index = np.int32(
            [space.name for space in self.context.action_spaces].index(self.action_space.name)
        )
        proprio = {group.name: self.episodes.proprio[group.name] for group in self._recorded()}
        if normalizer is None:  # statistics are being computed: raw numbers
            self._key_index, self._proprio = np.int32(-1), proprio
            self._action, self._pad = (
                self.episodes.action,
                np.zeros(self.action_space.size, np.float32),
            )
            return
        self._key_index = np.int32(normalizer.index(key))
        self._action = normalizer.forward(key, "action", self.episodes.action)
        self._pad = normalizer.forward(key, "action", np.zeros(self.action_space.size))
        self._proprio = {
            name: normalizer.forward(key, f"proprio/{name}", values)
            for name, values in proprio.items()
        }

    def _split(self, train: bool) -> np.ndarray:
        reading = self.reading
        part = selection.split(
            self.where, self.episodes.ids, reading.holdout, reading.holdout_seed, train
        )
        if not train or reading.episodes is None:
            return part
        if not 1 <= reading.episodes <= len(part):
            raise plugin.UserError(
                f"{self.where}: episodes={reading.episodes}, expected 1 to {len(part)}, the number "
                "of training episodes"
            )
        return part[: reading.episodes]

    def _recorded(self):
        """The body's proprio groups that these data have."""
        return [g for g in self.embodiment.proprio if g.name in self.episodes.proprio]

    def _rows(self) -> np.ndarray:
        return selection.rows(self.episodes, self.selected)

    def _decode(self, data: bytes | np.ndarray, view: str, row: int) -> np.ndarray:
        size, method = self.context.image_sizes[view], self.context.resize
        try:
            image = images.decode(data, method) if isinstance(data, bytes) else data
        except plugin.UserError as error:
            raise plugin.UserError(f"{self._at(view, row)}: {error}") from error
        return images.resize(image, size, method)

    def _at(self, view: str, row: int) -> str:
        episode = int(np.searchsorted(self.episodes.start, row, side="right")) - 1
        step = self.episodes.step[row]
        return f"{self.where}: episode {self.episodes.ids[episode]}, step {step}, view {view}"


def project(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """float32 [..., 2]: world points [..., 3] (m) in image fractions (x right, y down).

    NaN behind the camera. `camera` is [..., 3, 4].
    """
    ones = np.ones_like(points[..., :1])
    seen = np.einsum("...ij,...j->...i", camera, np.concatenate([points, ones], axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        place = seen[..., :2] / seen[..., 2:]
    return np.where(seen[..., 2:] > 0, place, np.nan).astype(np.float32)


def _language(source: RobotRows):
    reading, episodes, tokenizer = source.reading, source.episodes, source.context.text_tokenizer
    if reading.language not in ("required", "optional"):
        raise plugin.UserError(
            plugin.unknown(f"{source.where}: language", reading.language, ("required", "optional"))
        )
    if tokenizer is None:
        return None
    rows = source._rows()
    missing = rows[episodes.language_index[rows] < 0]
    if len(missing) and reading.language == "required":
        episode = int(np.searchsorted(episodes.start, missing[0], side="right")) - 1
        raise plugin.UserError(
            f"{source.where}: {len(missing)} of {len(rows)} steps have no instruction ("
            f"episode {episodes.ids[episode]}); set language='optional' to train without one"
        )
    pairs = [tokenizer.instruction(text, source.context.max_tokens) for text in episodes.language]
    pairs.append(tokenizer.no_text(source.context.max_tokens))
    return np.stack([ids for ids, _ in pairs]), np.stack([mask for _, mask in pairs])


def _endpoints(source: RobotRows) -> tuple[np.ndarray | None, np.ndarray | None]:
    reading, episodes = source.reading, source.episodes
    group, view = reading.waypoint_group, reading.point_view
    if group is None:
        if view is not None:
            raise plugin.UserError(
                f"{source.where}: point_view={view!r} needs waypoint_group, the group whose last "
                "reading is projected"
            )
        return None, None
    if group not in source._proprio:
        raise plugin.UserError(
            plugin.unknown(f"{source.where}: waypoint_group", group, source._proprio)
        )
    last = episodes.start[1:] - 1
    waypoint = source._proprio[group][last]
    if view is None:
        return waypoint, None
    if view not in episodes.cameras:
        raise plugin.UserError(
            f"{source.where}: point_view={view!r}: the episodes have cameras of "
            f"{sorted(episodes.cameras)} (episode_metadata/camera/<view>), expected this view's "
            "3x4 projection; leave point_view out or collect the data again"
        )
    scale = next(g.scale for g in source.embodiment.proprio if g.name == group)
    place = episodes.proprio[group][last, :3] * np.float32(scale)
    return waypoint, np.nan_to_num(project(episodes.cameras[view], place), nan=-1.0)


def _groups(context: SourceContext) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for embodiment in context.embodiments:
        for group in embodiment.proprio:
            sizes[group.name] = max(sizes.get(group.name, 0), group.size)
    return sizes


def _hash(*parts) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

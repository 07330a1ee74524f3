"""Rows of a `robot` stream from a table of episodes, whatever format it was read from.

sample (episode, t) ─ window.steps ─▶ pictures (frames.py), proprio gathered and normalized
                    └ window.chunk ─▶ actions [W, C, A] and their mask, padded to [C_max, A_max]
goals.draw          ─ a later step's pictures as goal_VIEW; actions count up to it
asked.draw          ─ what the row shows of instruction and goal, in which words
waypoint, point     ─ the episode's last reading of a proprio group, and its place in the image

All that is random is folded from the row's own key (augment.row_key).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

from vla_jax import plugin
from vla_jax.data import action_space as action_space_lib
from vla_jax.data import (
    asked,
    augment,
    cache,
    endpoints,
    filters,
    fit,
    looks,
    mapped,
    selection,
    statistics,
    window,
)
from vla_jax.data import episodes as episodes_lib
from vla_jax.data import goals as goals_lib
from vla_jax.data import runs as runs_lib
from vla_jax.data.endpoints import project
from vla_jax.data.frames import Pictures
from vla_jax.data.reading import Reading
from vla_jax.types import SourceContext

__all__ = ["Reading", "RobotRows", "project"]
CHUNKINGS = ("recorded", "octo")


class RobotRows:
    """An IndexedSource over a table of episodes; safe to call from threads, pickled without files.

    Args:
      context: the stream's.
      episodes: all of the split, training and held-out.
      read: of their images.
      reading: see Reading.

    Raises:
      UserError: what does not fit the embodiment, the stream or the settings; see fit.check,
        filters.keep, selection.starts and the others.
    """

    def __init__(
        self,
        context: SourceContext,
        episodes: episodes_lib.Episodes,
        read: episodes_lib.FrameReader,
        reading: Reading,
    ):
        self.context, self.reading, episodes = context, reading, reading.named(episodes)
        self.where = f"{context.stream}.{context.name} ({episodes.where})"
        self.dataset_key = reading.dataset_key or episodes.name
        self.embodiment = fit.named(
            f"{self.where}: embodiment", episodes.embodiment, context.embodiments
        )
        self.action_space = fit.named(
            f"{self.where}: action space", episodes.action_space, context.action_spaces
        )
        recorded, space = episodes, self.action_space
        if reading.convert is not None:
            episodes, self.action_space = action_space_lib.converted(
                f"{self.where}: convert", episodes, self.embodiment, space, reading.convert
            )
        self.episodes, self.groups = episodes, fit.proprio_sizes(context)
        fit.check(
            self.where,
            context,
            episodes,
            self.embodiment,
            self.action_space,
            reading.optional_views,
        )
        fit.one_of(f"{self.where}: chunking", reading.chunking, CHUNKINGS)
        self._augment = augment.Augment.make(self.where, reading.augment if context.train else {})
        self._hash_of_episodes, self.idle, kept = recorded.fingerprint(), 0, None
        if space != self.action_space:
            # Not of the numbers made: on another processor their last bits may be others.
            made_by = (action_space_lib.RECIPE, space, self.action_space, self.embodiment.proprio)
            self._hash_of_episodes = _hash(self._hash_of_episodes, *made_by)
        self._parts: dict[bool, tuple[np.ndarray, int]] = {}
        read = looks.decoded(read, context.resize)
        if reading.cache is not None:
            read = cache.resized(self.where, reading.cache, context, episodes, read, self.skips)
        if reading.noop_threshold is not None:
            idle = selection.noops(recorded, space, reading.noop_threshold)
            self.episodes, kept = selection.without(episodes, idle)
            self.idle = int(idle.sum())
        self.selected, self.filtered = self._split(context.train)
        self._samples = selection.starts(
            self.where,
            self.episodes,
            self.selected,
            self._required(context.image_sizes),
            reading.stride,
            reading.steps,
            reading.samples_per_episode,
            reading.holdout_seed,
        )
        self._open(episodes, read, kept)
        self._set_tasks()
        self._set_normalizer()

    def _open(self, episodes: episodes_lib.Episodes, read, kept: np.ndarray | None) -> None:
        """Sets how pictures of the samples are read; `episodes` is the table that `read` knows."""
        self.runs, read = runs_lib.make(
            self.where, episodes, self._samples, list(self.context.image_sizes), read, self.reading
        )
        self._samples = mapped.shared(self._samples)
        sizes, method = dict(self.context.image_sizes), self.context.resize
        self._pictures = Pictures(
            self.where, self.episodes, read, kept, sizes, method, self._augment
        )
        self.read = self._pictures.recorded

    def _required(self, views) -> list[str]:
        return [view for view in views if view not in self.reading.optional_views]

    @property
    def fingerprint(self) -> str:
        """Changes with the data, or with how they are read."""
        read = (self.reading.described(), self._wordings, self.context.train)
        return _hash(self.data_fingerprint, *read)

    @property
    def data_fingerprint(self) -> str:
        """Changes with the data or the held-out share: what statistics are computed on."""
        if not hasattr(self, "_data_fingerprint"):
            reading = self.reading
            parts = (
                reading.holdout,
                reading.holdout_seed,
                reading.episodes,
                reading.noop_threshold,
            )
            train = (
                self._split(True)[0].tolist() if reading.filter else ()
            )  # also: a function's answer
            self._data_fingerprint = _hash(self._hash_of_episodes, *parts, train)
        return self._data_fingerprint

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def skips(self) -> bool:
        """Whether a sample that cannot be read gives way to the next; see Mixture.sample."""
        return self.reading.bad_samples == "skip"

    def summary(self) -> dict:
        """Counts for the mixture's table.

        `filtered` and `skipped` (broken) are episodes, `idle` are steps of all episodes.
        """
        counts = {
            "episodes": len(self.selected),
            "samples": len(self),
            "dataset_key": self.dataset_key,
            "action_space": self.episodes.action_space,
            "proprio": ",".join(group.name for group in self._recorded()),
            "unlabelled": int(np.sum(self.episodes.language_index[self._rows()] < 0)),
        }
        if self.skips:
            counts["skipped"] = len(self.episodes.skipped)
        if self.reading.filter:
            counts["filtered"] = self.filtered
        if self.reading.noop_threshold is not None:
            counts["idle"] = self.idle
        return counts

    def statistics_columns(self) -> dict[str, statistics.Column]:
        """Field -> its column of the training episodes, read in blocks."""
        column = functools.partial(statistics.Column.of, self.episodes, self._split(True)[0])
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
        return made

    def sample(self, index: int, rng: np.random.Generator) -> dict:
        """Row `index`, as types.IndexedSource says. UserError for a broken image."""
        episode, t = (int(i) for i in self._samples[index])
        first, last = (int(i) for i in self.episodes.start[episode : episode + 2])
        slots, real = window.steps(t, self.context.window)
        rows = first + slots
        key = augment.row_key(rng)
        task, goal = self._task(episode, t, first, last, key)
        targets, masks = self._targets(episode, t, first, last, real, goal)
        views = {
            view: self._pictures.view(view, episode, rows, real, key)
            for view in self.context.image_sizes
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
            "task": task,
            "targets": targets,
            "target_masks": masks,
            "action_space": self._action_space_index,
            "dataset_key": self._key_index,
        }

    def _targets(self, episode: int, t: int, first: int, last: int, real: np.ndarray, goal):
        context, octo = self.context, self.reading.chunking == "octo"
        shape = (context.window, context.action_horizon, context.action_size)
        action, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        values, valid = window.chunk(
            self._action[first:last],
            t,
            context.window,
            context.action_horizon,
            self._hold | octo,  # Octo repeats the last action, whatever it means
            self._pad,
            None if octo else goal,
        )
        if octo:
            end = last - first - 1 if goal is None else goal
            valid = window.octo_mask(t, *shape[:2], end) & real[:, None]
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

    def _proprio_rows(self, group: str, rows: np.ndarray, real: np.ndarray, key: bytes):
        size = self.groups[group]
        if group not in self._proprio:
            return np.zeros((len(rows), size), np.float32), np.zeros(len(rows), bool)
        values = self._proprio[group][rows]
        if augment.dropped(self._augment.proprio_dropout, key, group):
            return np.zeros((len(rows), size), np.float32), np.zeros(len(rows), bool)
        if self._augment.proprio_noise:
            values = values + augment.noise(self._augment, key, group, values.shape)
        if values.shape[1] < size:
            values = np.pad(values, ((0, 0), (0, size - values.shape[1])))
        return values, real

    def _task(self, episode: int, t: int, first: int, last: int, key: bytes):
        """(values and masks of the row's task, step of the goal that is shown or None)."""
        values, masks = {}, {}
        index = int(self.episodes.language_index[first + t])
        language = self._instructions is not None and index >= 0
        step = None
        if self._goals is not None:
            seen = np.flatnonzero(self._goal_seen[first:last])
            if len(seen):
                chance = augment.uniform(key, "goal")
                step = self._goals.draw(t, seen, last - first - 1, chance)
        language, goal = asked.draw(self._ways, language, step is not None, key)
        if self._instructions is not None:
            ids, mask = self._instructions.draw(index if language else -1, key)
            values["language"], masks["language"] = ids, mask
        for view in self._goals.views if self._goals is not None else ():
            picture = self._pictures.goal(view, episode, first + step, key) if goal else None
            if picture is None:
                picture = np.zeros((*self.context.image_sizes[view], 3), np.uint8)
                masks[f"goal_{view}"] = np.False_
            else:
                masks[f"goal_{view}"] = np.True_
            values[f"goal_{view}"] = picture
        return {"values": values, "masks": masks}, step if goal else None

    def _set_tasks(self) -> None:
        """What rows are asked by: instructions, goals, and the probabilities of each."""
        reading, episodes = self.reading, self.episodes
        fit.one_of(f"{self.where}: language", reading.language, ("required", "optional"))
        self._instructions = self._goals = None
        self._wordings = asked.contents(self.where, reading.paraphrases)
        if self.context.text_tokenizer is not None:
            if reading.language == "required":
                asked.check(self.where, episodes, self._rows())
            self._instructions = asked.Instructions(self.where, self.context, episodes, reading)
        if reading.goals is not None:
            sizes = self.context.image_sizes
            self._goals = goals_lib.Goals.make(self.where, reading.goals, sizes)
            seen = self._goals.seen(episodes, reading.optional_views)
            self._goal_seen = mapped.shared(seen)
        self._ways = asked.ways(self.where, reading.asked, self._goals is not None)

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
            self._action = self.episodes.action
            self._pad = np.zeros(self.action_space.size, np.float32)
        else:
            self._key_index = np.int32(normalizer.index(key))
            forward = functools.partial(functools.partial, normalizer.forward, key)
            self._action = mapped.Changed(self.episodes.action, forward("action"))
            self._pad = normalizer.forward(key, "action", np.zeros(self.action_space.size))
            self._proprio = {
                name: mapped.Changed(values, forward(f"proprio/{name}"))
                for name, values in proprio.items()
            }
        self._waypoint, self._point = endpoints.targets(
            self.where,
            self.episodes,
            self.embodiment,
            self._proprio,
            self.reading.waypoint_group,
            self.reading.point_view,
        )

    def _split(self, train: bool) -> tuple[np.ndarray, int]:
        """(the episodes of a part, how many the filter took out of it); found once."""
        if train not in self._parts:
            self._parts[train] = self._found(train)
        return self._parts[train]

    def _found(self, train: bool) -> tuple[np.ndarray, int]:
        reading = self.reading
        part = selection.split(
            self.where, self.episodes.ids, reading.holdout, reading.holdout_seed, train
        )
        whole = len(part)
        part = filters.keep(self.where, self.episodes, part, reading.filter)
        filtered = whole - len(part)
        if not train or reading.episodes is None:
            return part, filtered
        if not 1 <= reading.episodes <= len(part):
            raise plugin.UserError(
                f"{self.where}: episodes={reading.episodes}, expected 1 to {len(part)}, the number "
                "of training episodes"
            )
        return part[: reading.episodes], filtered

    def _recorded(self):
        """The body's proprio groups that these data have."""
        return [g for g in self.embodiment.proprio if g.name in self.episodes.proprio]

    def _rows(self) -> np.ndarray:
        return selection.rows(self.episodes, self.selected)


def _hash(*parts) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

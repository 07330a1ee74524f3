"""Episodes in our nouns: what a standardizer makes of a raw episode, and the table of them all.

The table is flat (N = steps of all episodes), so that it can be mapped from a file (`pack`,
`unpack`, data/mapped.py), workers share it, and statistics and samples are gathers:

    episode 0        episode 1   …
    start[0]=0 ─────▶ start[1] ─▶ start[2]
    action   [N, A]      proprio[group] [N, P]      language_index [N]
    frames[view]: byte range inside the record of each step's encoded image
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vla_jax import plugin
from vla_jax.data import mapped, passing

FLAT = ("start", "step", "action", "language_index", "shard", "record", "record_offset")
TEXTS = ("ids", "language")
RATE = "control_hz"  # of metadata: steps per second
LOOKS = ("turned", "bgr")  # by 180 degrees; blue before red: set right by looks.py

# (view, episode, table rows of it) -> one image per row: encoded bytes, none where the data lack
# it, or, of formats without bytes per frame (video), decoded uint8 [height, width, 3].
FrameReader = Callable[[str, int, Sequence[int]], list[bytes | np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One standardized episode of T steps.

    Attributes:
      id: unique within the data set.
      steps: int64 [T], the recorded number of each kept step (a standardizer may drop some).
      action: float32 [T, A], in the trained representation, raw units.
      proprio: group -> float32 [T, P].
      language: T instructions; "" = none. Where a step has several, a tuple of them.
      embodiment, action_space: names (see embodiments/).
      cameras: view -> float32 [3, 4], (world xyz in m, 1) to (x, y, w), x/w right and y/w down in
        fractions of the image.
      image_masks: view -> bool [T] for views that lack some steps' images.
      looks: view -> how its pictures were stored, some of LOOKS; `cameras` are of those pictures.
      metadata: what else the data set says about the episode, RATE of the recorded steps.
      stride: how many recorded steps lie between two of `steps`.
    """

    id: str
    steps: np.ndarray
    action: np.ndarray
    proprio: Mapping[str, np.ndarray]
    language: Sequence[str | tuple[str, ...]]
    embodiment: str
    action_space: str
    cameras: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    image_masks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    looks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    metadata: Mapping = dataclasses.field(default_factory=dict)
    stride: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frames:
    """Where one view's images lie, in the words of the source's FrameReader.

    RLDS: the byte range inside the episode's record. Any source: length 0 = no image at that step.
    """

    offset: np.ndarray  # int64 [N]
    length: np.ndarray  # int64 [N]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes:
    """All episodes of one split; see the module's drawing. N steps in E episodes."""

    where: str  # for messages: the data set's path and split
    name: str  # the data set's name, the default dataset key
    ids: Sequence[str]
    embodiment: str
    action_space: str
    start: np.ndarray  # int64 [E + 1]
    step: np.ndarray  # int64 [N], recorded numbers
    action: np.ndarray  # float32 [N, A]
    proprio: dict[str, np.ndarray]  # [N, P]
    language: Sequence[str]  # distinct instructions
    language_index: np.ndarray  # int32 [N], -1 = none
    cameras: dict[str, np.ndarray]  # [E, 3, 4], NaN where an episode has none
    frames: dict[str, Frames]
    shard: np.ndarray  # int32 [E]
    record: np.ndarray  # int64 [E]
    record_offset: np.ndarray  # int64 [E]
    # What else the data set says of each episode: name -> E values, None where it says nothing.
    # RATE is that of the steps that are kept.
    metadata: dict[str, Sequence] = dataclasses.field(default_factory=dict)
    # Other words for each of `language`, that the data hold; () = none for any.
    others: tuple[tuple[str, ...], ...] = ()
    skipped: tuple[str, ...] = ()  # what was wrong with each episode that was left out
    # view -> how its pictures were stored; readers show them upright, and `cameras` are of these.
    looks: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # (view, episode) -> the file that its pictures lie in, and their column; for messages.
    origin: Callable[[str, int], str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def place(self, view: str, row: int) -> str:
        """File, column, episode, step and view of the picture at a row, for messages."""
        episode = int(np.searchsorted(self.start, row, side="right")) - 1
        file = f"{self.origin(view, episode)}: " if self.origin else ""
        return f"{file}episode {self.ids[episode]}, step {self.step[row]}, view {view}"

    @property
    def lengths(self) -> np.ndarray:
        """int64 [E]."""
        return np.diff(self.start)

    def fingerprint(self) -> str:
        """A hash of all that samples are made of (of images: their sizes in bytes)."""
        arrays = [self.ids, self.language, self.start, self.step, self.action]
        arrays += [self.language_index, *(a for _, a in sorted(self.proprio.items()))]
        arrays += [a for _, a in sorted(self.cameras.items())]
        arrays += [f.length for _, f in sorted(self.frames.items())]
        names = (self.name, self.embodiment, self.action_space, list(map(mapped.digest, arrays)))
        names += (self.others,) if any(self.others) else ()
        names += (sorted(self.looks.items()),) if self.looks else ()
        return hashlib.blake2b(repr(names).encode(), digest_size=16).hexdigest()


def collect(where: str, name: str, rows: Sequence[tuple], views: Sequence[str]) -> Episodes:
    """The table of `rows`: (Episode, {view: (offsets, lengths)}, shard, record, its offset).

    Raises UserError for no episodes, duplicate ids, mixed embodiments or action spaces, episodes
    whose columns differ in size, and a number that is not finite (episode, step and dim named).
    """
    if not rows:
        raise plugin.UserError(f"{where}: no episodes; expected at least one")
    parts = [row[0] for row in rows]
    places: dict[str, str] = {}
    for number, part in enumerate(parts):
        distinct(where, part.id, places)
        places[part.id] = f"number {number}"
        check(where, part, parts[0])
    groups = list(parts[0].proprio)
    cameras = sorted({view for part in parts for view in part.cameras})
    missing = np.full((3, 4), np.nan, np.float32)
    texts: dict[tuple[str, ...], int] = {}
    language_index = [
        texts.setdefault(words, len(texts)) if words else -1
        for part in parts
        for words in map(_words, part.language)
    ]
    return Episodes(
        where=where,
        name=name,
        ids=tuple(part.id for part in parts),
        embodiment=parts[0].embodiment,
        action_space=parts[0].action_space,
        start=np.cumsum([0, *(len(part.action) for part in parts)], dtype=np.int64),
        step=np.concatenate([part.steps for part in parts]).astype(np.int64),
        action=_concatenate(where, "action", [part.action for part in parts]),
        proprio={g: _concatenate(where, g, [part.proprio[g] for part in parts]) for g in groups},
        language=tuple(words[0] for words in texts),
        others=tuple(words[1:] for words in texts) if any(len(w) > 1 for w in texts) else (),
        metadata=_columns([_kept(part) for part in parts]),
        language_index=np.asarray(language_index, np.int32),
        cameras={
            v: np.stack([_seen(p.cameras.get(v, missing), p.looks.get(v, ())) for p in parts])
            for v in cameras
        },
        looks={view: tuple(parts[0].looks[view]) for view in views if parts[0].looks.get(view)},
        frames={
            view: Frames(
                offset=np.concatenate([row[1][view][0] for row in rows]),
                length=np.concatenate([row[1][view][1] for row in rows]),
            )
            for view in views
        },
        shard=np.asarray([row[2] for row in rows], np.int32),
        record=np.asarray([row[3] for row in rows], np.int64),
        record_offset=np.asarray([row[4] for row in rows], np.int64),
    )


def _seen(camera: np.ndarray, look: Sequence[str]) -> np.ndarray:
    """A stored picture's camera, for the picture set upright: x and y become 1 - x and 1 - y."""
    x, y, w = camera
    return np.stack([w - x, w - y, w]) if "turned" in look else camera


def _words(text: str | tuple[str, ...]) -> tuple[str, ...]:
    """The distinct instructions of a step, none of them empty."""
    return tuple(dict.fromkeys(t for t in ((text,) if isinstance(text, str) else text) if t))


def _kept(episode: Episode) -> Mapping:
    """The metadata, true of the steps that are kept."""
    said = episode.metadata
    if episode.stride == 1 or np.asarray(said.get(RATE)).dtype.kind not in "fiu":
        return said
    return {**said, RATE: float(np.asarray(said[RATE]).item()) / episode.stride}


def _columns(parts: list[Mapping]) -> dict[str, tuple]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: tuple(_plain(part.get(name)) for part in parts) for name in names}


def _plain(value):
    """A number, text or bool in place of an array of one."""
    if isinstance(value, np.ndarray | np.generic):
        return value.item() if value.size == 1 else value
    return value


def check(where: str, episode: Episode, first: Episode | None = None) -> None:
    """Raises UserError unless an episode is sound, and one like the `first` of its data set."""
    first = first or episode
    for field in ("embodiment", "action_space"):
        kinds = sorted({getattr(part, field) for part in (first, episode)})
        if len(kinds) > 1:
            raise plugin.UserError(
                f"{where}: episode {episode.id}: episodes of several kinds of {field} {kinds}; "
                "one data set has one"
            )
    for view, look in episode.looks.items():
        if not set(look) <= set(LOOKS):
            raise plugin.UserError(
                plugin.unknown(f"{where}: episode {episode.id}: looks of {view}", look, LOOKS)
            )
    if dict(episode.looks) != dict(first.looks):
        raise plugin.UserError(
            f"{where}: episode {episode.id}: pictures stored as {dict(episode.looks)}, expected "
            f"{dict(first.looks)} as in episode {first.id}; one data set has one"
        )
    if list(episode.proprio) != list(first.proprio):
        raise plugin.UserError(
            f"{where}: episode {episode.id}: proprio {list(episode.proprio)}, expected "
            f"{list(first.proprio)}"
        )
    vectors = {"action": (episode.action, first.action)}
    vectors |= {f"proprio {g}": (v, first.proprio[g]) for g, v in episode.proprio.items()}
    for name, (values, expected) in vectors.items():
        if values.ndim != 2 or values.shape[1:] != expected.shape[1:]:
            raise plugin.UserError(
                f"{where}: episode {episode.id}: {name}: got sizes {values.shape[1:]}, expected "
                f"one vector size ({expected.shape[1:]} in episode {first.id})"
            )
        _finite(where, episode, name, values)


def distinct(at: str, id_: str, places: dict[str, str]) -> None:
    """Notes where an episode lies (id -> place); UserError, naming both, where its id is taken."""
    if id_ in places:
        raise plugin.UserError(
            f"{at}: two episodes have the id {id_!r}, the other is {places[id_]}; ids decide what "
            "is held out, make them unique (or remove the duplicate)"
        )
    places[id_] = at


def pack(table: Episodes) -> tuple[dict[str, np.ndarray], dict]:
    """(arrays, a JSON dict): a table as mapped.save takes it."""
    arrays = {name: getattr(table, name) for name in FLAT}
    for name in TEXTS:
        texts = mapped.Texts.pack(getattr(table, name))
        arrays |= {f"{name}/ends": texts.ends, f"{name}/letters": texts.letters}
    for name in ("proprio", "cameras"):
        arrays |= {f"{name}/{key}": value for key, value in getattr(table, name).items()}
    for view, frames in table.frames.items():
        arrays |= {f"offset/{view}": frames.offset, f"length/{view}": frames.length}
    about = {name: getattr(table, name) for name in ("name", "embodiment", "action_space")}
    about |= {name: list(getattr(table, name)) for name in ("proprio", "cameras", "frames")}
    about |= {"metadata": list(table.metadata), "skipped": list(table.skipped)}
    about |= {"passing": [text for text in table.skipped if isinstance(text, passing.Passing)]}
    about |= {"looks": dict(table.looks)}
    for name, values in table.metadata.items():
        texts = mapped.Values.pack(values)
        arrays |= {f"metadata/{name}/ends": texts.ends, f"metadata/{name}/letters": texts.letters}
    return arrays, about | {"others": table.others}


def unpack(where: str, arrays: Mapping[str, np.ndarray], about: Mapping) -> Episodes:
    """The table that was packed."""
    return Episodes(
        where=where,
        **{name: arrays[name] for name in FLAT},
        **{name: about[name] for name in ("name", "embodiment", "action_space")},
        **{n: mapped.Texts(arrays[f"{n}/ends"], arrays[f"{n}/letters"]) for n in TEXTS},
        **{n: {key: arrays[f"{n}/{key}"] for key in about[n]} for n in ("proprio", "cameras")},
        frames={
            view: Frames(offset=arrays[f"offset/{view}"], length=arrays[f"length/{view}"])
            for view in about["frames"]
        },
        metadata={
            name: mapped.Values(arrays[f"metadata/{name}/ends"], arrays[f"metadata/{name}/letters"])
            for name in about["metadata"]
        },
        others=tuple(map(tuple, about["others"])),
        skipped=tuple(
            passing.Passing(text) if text in about["passing"] else text for text in about["skipped"]
        ),
        looks={view: tuple(look) for view, look in about["looks"].items()},
    )


def _concatenate(where: str, name: str, parts: list[np.ndarray]) -> np.ndarray:
    sizes = sorted({part.shape[1:] for part in parts})
    if len(sizes) > 1 or len(sizes[0]) != 1:
        raise plugin.UserError(f"{where}: {name}: got sizes {sizes}, expected one vector size")
    return np.concatenate(parts).astype(np.float32)


def _finite(where: str, episode: Episode, name: str, values: np.ndarray) -> None:
    if not np.all(np.isfinite(values)):
        step, dim = np.argwhere(~np.isfinite(values))[0]
        raise plugin.UserError(
            f"{where}: episode {episode.id}, step {episode.steps[step]}: {name} dim {dim} is "
            f"{values[step, dim]}, expected a finite number; repair or remove this episode"
        )

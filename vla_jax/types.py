"""The contract page: every noun that crosses a folder, with dtype, shape, unit and meaning.

Letters: B batch, W window (past observations), C chunk (future actions), A action dim,
P proprio dim,
T text pieces, K labelled regions, n tokens of a group. Every ``*_mask`` is bool, True = real.

    Batch
    ├── observation
    │   ├── images        view  -> uint8   [B, W, height, width, 3]
    │   ├── image_masks   view  -> bool    [B, W]            a missing or dropped camera is False
    │   ├── proprio       group -> float32 [B, W, P]         normalised (see codecs/normalizer.py)
    │   ├── proprio_masks group -> bool    [B, W]
    │   └── timestep_mask          bool    [B, W]            False before the episode began
    ├── task              open dict of named entries
    │   ├── values   language -> int32 [B, T] piece ids   goal_VIEW -> uint8 [B, height, width, 3]
    │   │            language_embedding -> float32 [B, F] or [B, T, F], by a text encoder
    │   └── masks    language -> bool  [B, T]             goal_VIEW -> bool  [B]
    │                language_embedding -> bool [B] or [B, T]
    ├── targets           open dict; every readout target is [B, W, ...]
    │   ├── action        float32 [B, W, C, A]  normalised, padded to [C_max, A_max]
    │   ├── waypoint      float32 [B, W, P]     normalised like the proprio group it comes from
    │   ├── point         float32 [B, W, 2]     (x right, y down) in [0, 1] of the image
    │   ├── region_point  float32 [B, W, K, 2]  centres of labelled regions, in [0, 1]
    │   ├── region_name   int32   [B, W, K]     row of the head's table of names
    │   └── text          int32   [B, T]        ids with BOS and EOS
    ├── target_masks      the same names: bool, the target's shape without its last vector axis
    │                     (action [B, W, C, A]; waypoint, point [B, W]; region_* [B, W, K];
    │                      text [B, T])
    ├── row_id            uint32 [B]            n, the sample's number in its stream
    ├── action_space      int32  [B]            index into the config's table; -1 = none
    └── dataset_key       int32  [B]            index into the normalizer's table; -1 = none

A training batch is ``dict[stream, Batch]``. Checks live in ``make``, never in ``__post_init__``:
tree.map rebuilds these objects with shapes and shardings inside. ``trees.py`` registers the classes
as pytrees; this file imports neither jax nor TensorFlow: data workers and clients stay light.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from vla_jax.plugin import UserError

Array = Any  # numpy.ndarray in workers and clients, jax.Array in the step

VIEWS = ("primary", "secondary", "wrist", "left_wrist", "right_wrist")
TARGET_VECTOR_AXES = {"waypoint": 1, "point": 1, "region_point": 1}  # axes a mask does not have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """What the robot senses over a window; see the module's drawing for shapes."""

    images: dict[str, Array]
    image_masks: dict[str, Array]
    proprio: dict[str, Array]
    proprio_masks: dict[str, Array]
    timestep_mask: Array

    @classmethod
    def make(cls, *, images, image_masks=None, proprio=None, proprio_masks=None, timestep_mask):
        """Checks dtypes and shapes, fills absent masks with True where the timestep is real."""
        timestep_mask = np.asarray(timestep_mask)
        lead = timestep_mask.shape
        _check("observation.timestep_mask", timestep_mask, np.bool_, 2)
        proprio = dict(proprio or {})
        image_masks, proprio_masks = dict(image_masks or {}), dict(proprio_masks or {})
        _same_names("observation.image_masks", image_masks, images, "images")
        _same_names("observation.proprio_masks", proprio_masks, proprio, "proprio")
        for view, image in images.items():
            if view not in VIEWS:
                raise UserError(f"observation.images: unknown view {view!r}; known views: {VIEWS}")
            _check(f"observation.images.{view}", image, np.uint8, 5, lead)
            image_masks.setdefault(view, timestep_mask)
        for group, reading in proprio.items():
            _check(f"observation.proprio.{group}", reading, np.float32, 3, lead)
            proprio_masks.setdefault(group, timestep_mask)
        for name, mask in (*image_masks.items(), *proprio_masks.items()):
            _check(f"observation mask of {name}", mask, np.bool_, 2, lead)
        return cls(
            images=dict(images),
            image_masks=image_masks,
            proprio=proprio,
            proprio_masks=proprio_masks,
            timestep_mask=timestep_mask,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked: named entries, each with a mask."""

    values: dict[str, Array]
    masks: dict[str, Array]

    @classmethod
    def make(cls, *, values=None, masks=None):
        """Checks that every entry has its mask; raises ValueError on half-given entries."""
        values, masks = dict(values or {}), dict(masks or {})
        if set(values) != set(masks):
            raise UserError(
                f"task: values {sorted(values)} but masks {sorted(masks)}: give both for each"
            )
        if "language" in values:
            _check("task.language", values["language"], np.int32, 2)
            _check("task.language mask", masks["language"], np.bool_, 2, values["language"].shape)
        if "language_embedding" in values:
            where, embedding = "task.language_embedding", values["language_embedding"]
            ndim = 3 if np.ndim(embedding) == 3 else 2
            _check(where, embedding, np.float32, ndim)
            mask = masks["language_embedding"]
            _check(f"{where} mask", mask, np.bool_, ndim - 1, embedding.shape[:-1])
        for goal in (f"goal_{view}" for view in VIEWS):
            if goal in values:
                _check(f"task.{goal}", values[goal], np.uint8, 4)
                _check(f"task.{goal} mask", masks[goal], np.bool_, 1)
        return cls(values=values, masks=masks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One stream's share of a training step (or one query of a policy, with empty targets)."""

    observation: Observation
    task: Task
    targets: dict[str, Array]
    target_masks: dict[str, Array]
    row_id: Array
    action_space: Array
    dataset_key: Array

    @classmethod
    def make(cls, *, observation, task, targets, target_masks, row_id, action_space, dataset_key):
        """Builds a checked Batch from the nested dicts of stacked numpy rows that workers yield."""
        observation, task = Observation.make(**observation), Task.make(**task)
        if set(targets) != set(target_masks):
            raise UserError(
                f"targets {sorted(targets)} but target_masks {sorted(target_masks)}: every target "
                "has a mask"
            )
        for name, target in targets.items():
            expected = target.shape[: target.ndim - TARGET_VECTOR_AXES.get(name, 0)]
            _check(f"target_masks.{name}", target_masks[name], np.bool_, None, expected)
            if target.dtype.kind == "f" and not np.all(np.isfinite(target[target_masks[name]])):
                rows = np.unique(np.argwhere(~np.isfinite(target))[:, 0]).tolist()
                raise UserError(
                    f"targets.{name}: not finite in batch rows {rows} (row_id "
                    f"{np.asarray(row_id)[rows].tolist()}); mask or repair these steps "
                    "in the dataset"
                )
        _check("row_id", row_id, np.uint32, 1)
        _check("action_space", action_space, np.int32, 1, row_id.shape)
        _check("dataset_key", dataset_key, np.int32, 1, row_id.shape)
        return cls(
            observation=observation,
            task=task,
            targets=dict(targets),
            target_masks=dict(target_masks),
            row_id=row_id,
            action_space=action_space,
            dataset_key=dataset_key,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenGroup:
    """Tokens that share visibility rules: [B, W, n, D] (per step) or [B, n, D] (task groups)."""

    tokens: Array
    valid: Array  # bool [B, W, n] or [B, n]
    stem: Array  # the tokens before any conditioning, tokens' shape (its width may differ)
    grid: tuple[int, int] | None = None  # (rows, columns) of an image group, row-major; static


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What a head sees of one group: the tokenizer's stem and the trunk's last layer."""

    stem: Array | None  # [B, W, n, D'] or [B, n, D']; None for readouts
    final: Array  # [B, W, n, D] or [B, n, D]
    valid: Array  # bool [B, W, n] or [B, n]
    grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionGroup:
    """One run of dimensions of an action vector with one meaning (DESIGN.md, Embodiment)."""

    name: str
    size: int
    quantity: str  # position | velocity | torque | gripper | base_twist | terminate | rotation
    representation: str  # absolute | delta | velocity
    reference: str | None = None  # of a delta: previous_command | measured_now | chunk_start
    frame: str = "base"  # base | tool | a named frame
    rotation: str | None = None  # euler_xyz … | rotvec | quat_wxyz | quat_xyzw | 6d
    composition: str | None = None  # left | right | add (numbers), for rotation deltas
    unit: str = "m"
    scale: float = 1.0  # value * scale is in SI
    label: str = "commanded"  # commanded | reached
    gripper: str | None = None  # e.g. "1=open", "1=closed"
    limits: tuple[float, float] | None = None  # of the raw value

    @property
    def padding(self) -> str:
        """What stands past an episode's end: deltas pad with zero, absolutes hold their last."""
        return "hold" if self.representation == "absolute" else "zero"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """One layout of the action vector; heads are routed by it."""

    name: str
    groups: tuple[ActionGroup, ...]
    control_hz: float

    @property
    def size(self) -> int:
        """A, numbers per action."""
        return sum(group.size for group in self.groups)

    def slices(self) -> dict[str, slice]:
        """Group name -> slice of the action vector, in order."""
        ends = np.cumsum([group.size for group in self.groups])
        return {
            g.name: slice(int(e) - g.size, int(e)) for g, e in zip(self.groups, ends, strict=True)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProprioGroup:
    """One named reading of the body: `size` numbers in `unit` (SI through `scale`)."""

    name: str
    size: int
    unit: str
    meaning: str
    scale: float = 1.0
    # It begins with x, y, z of the tool ("position"), and its rotation of this kind ("euler_xyz").
    pose: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embodiment:
    """A robot body: joints, limits, control rate, possible views, proprio groups, action spaces."""

    name: str
    joints: tuple[str, ...]
    joint_limits: tuple[tuple[float, float], ...]  # rad or m, one pair per joint; empty = unknown
    control_hz: float
    views: tuple[str, ...]
    proprio: tuple[ProprioGroup, ...]
    action_spaces: tuple[ActionSpace, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """What `make(context, **arguments)` of a tokenizer, head or objective is told."""

    name: str  # the key under which the config names this plug-in
    width: int  # D of the trunk
    dtype: Any = np.float32  # compute dtype; parameters, softmax and losses stay float32
    action_horizon: int = 1  # C_max
    action_size: int = 1  # A_max
    action_spaces: tuple[ActionSpace, ...] = ()  # Batch.action_space indexes this table
    vocabulary_size: int = 0
    text_tokenizer: Any = None  # codecs.text_tokenizer.TextTokenizer or None
    # proprio group -> (shift, scale), each [dataset_key][P] as tuples: SI = value * scale + shift
    normalizers: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    shared: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # modules owned by models/vla.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceContext:
    """What `make(context, **arguments)` of a data source is told besides its arguments."""

    name: str  # the member's name in the mixture
    stream: str
    window: int = 1  # W
    action_horizon: int = 1  # C_max
    action_size: int = 1  # A_max
    image_sizes: Mapping[str, tuple[int, int]] = dataclasses.field(
        default_factory=dict
    )  # view -> (h, w)
    resize: str = "area"  # how pictures come to these sizes, see data/images.py
    max_tokens: int = 16  # T
    text_tokenizer: Any = None
    embodiments: tuple[Embodiment, ...] = ()
    action_spaces: tuple[ActionSpace, ...] = ()
    normalizer: Any = None  # codecs.normalizer.Normalizer; None while statistics are computed
    names: tuple[str, ...] = ()  # the table that region_name indexes
    train: bool = True  # False: no augmentation; the held-out split


class IndexedSource(Protocol):
    """Random access to samples: a pure function of (index, rng), whatever was read before."""

    fingerprint: str  # changes when the data or their reading changes

    def __len__(self) -> int:
        """Number of samples (steps, pictures); a synthetic source names its nominal epoch."""

    def sample(self, index: int, rng: np.random.Generator) -> dict:
        """One row: Batch's nested dicts of numpy without the batch axis and without row_id."""


SampleFn = Callable[[int, np.random.Generator], dict]


def _check(where: str, array, dtype, ndim: int | None, lead: tuple[int, ...] | None = None) -> None:
    array_dtype, shape = getattr(array, "dtype", None), getattr(array, "shape", None)
    if array_dtype != dtype:
        raise UserError(f"{where}: got dtype {array_dtype}, expected {np.dtype(dtype).name}")
    if ndim is not None and len(shape) != ndim:
        raise UserError(f"{where}: got shape {shape}, expected {ndim} axes")
    if lead is not None and tuple(shape[: len(lead)]) != tuple(lead):
        raise UserError(f"{where}: got shape {shape}, expected it to begin with {tuple(lead)}")


def _same_names(where: str, masks: dict, values: dict, of: str) -> None:
    unknown = sorted(set(masks) - set(values))
    if unknown:
        raise UserError(f"{where}: masks for {unknown}, but {of} has {sorted(values)}")

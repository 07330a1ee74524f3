"""How a data set's episodes become samples: the arguments that sources of robot data share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vla_jax.data.episodes import Episodes

NAMES = ("embodiment", "action_space")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """The settings of a robot source beside where its data lie.

    Attributes:
      embodiment, action_space: names, in place of those that the standardizer finds.
      holdout: share of the episodes kept for validation (at least one, if not 0), by a hash of
        (holdout_seed, episode id). `context.train` says which part is read. 1 = all of them, for
        a split that is kept for validation as a whole.
      episodes: only the first so many of the training episodes; None = all.
      filter: which episodes are taken: expressions such as "length >= 10" or "success and
        max_action < 5", or dict(function="my_lab.filters.kept", …); see data/filters.py.
      convert: another action space of the body that the recorded actions become: deltas from the
        command before or from a reading, absolute values, other rotations, units or grippers (see
        codecs/actions.py). What is said of actions here and in statistics is of these; None = as
        recorded. A member of its own statistics needs a dataset_key of its own.
      noop_threshold: steps that do nothing are left out, as OpenVLA leaves them out of LIBERO; the
        motion, in units as recorded, below which a step is one (theirs: 1e-4). None = all stay.
      stride: every how many of an episode's steps (with an image of each view) a sample starts.
      steps: which of those, a Python slice per episode: "[:3]", "[10:]".
      samples_per_episode: at most so many of those, drawn once; long episodes then weigh less.
      language: "required" (an episode without an instruction is an error) or "optional".
      paraphrases: JSON file {instruction: [other words for it]}; they join those that the data
        themselves hold. Used in training only.
      paraphrase: probability of one of the other words; None = all are equally likely.
      goals: dict(views=("primary",), strategy="uniform", …): pictures of a later step of the
        episode as the task entries `goal_VIEW`; see data/goals.py.
      asked: probabilities of what a row is asked by, of "language", "goal", "both" and "none";
        None = all that there is. A row that lacks one draws among the others.
      chunking: "recorded" (actions count that were recorded, before the goal where there is one) or
        "octo" (two steps more, repeated past the end: for comparisons, see data/window.py).
      dataset_key: the row of the normalizer; None = the data set's name.
      waypoint_group: proprio group whose last reading is the target `waypoint` [W, P].
      point_view: view in which that reading is the target `point` [W, 2].
      optional_views: views that may be absent (zeros, mask False); samples start only at steps
        with an image of each other view.
      augment: see augment.Augment.make; off where `context.train` is False.
      cache: dict(path=…, format="jpeg", …): images resized once, see data/cache.py.
      bad_samples: "error", or "skip": broken episodes are left out and counted, and a sample that
        cannot be read gives way to the next one of its source, which engine.Stream counts.
      access: "random" (local disks), or "contiguous" (object stores): samples come from `num_runs`
        runs of about `run_bytes` bytes at a time, each read by one request; see data/runs.py.
    """

    embodiment: str | None = None
    action_space: str | None = None
    holdout: float = 0.1
    holdout_seed: int = 0
    episodes: int | None = None
    filter: str | Mapping | tuple = ()
    convert: str | None = None
    noop_threshold: float | None = None
    stride: int = 1
    steps: str | None = None
    samples_per_episode: int | None = None
    language: str = "required"
    paraphrases: str | None = None
    paraphrase: float | None = None
    goals: Mapping | None = None
    asked: Mapping[str, float] | None = None
    chunking: str = "recorded"
    dataset_key: str | None = None
    waypoint_group: str | None = None
    point_view: str | None = None
    optional_views: tuple[str, ...] = ()
    augment: Mapping | None = None
    cache: Mapping | None = None
    bad_samples: str = "error"
    access: str = "random"
    num_runs: int = 16
    run_bytes: int = 2**22

    @classmethod
    def make(cls, arguments: Mapping) -> Reading:
        """From a source's ``**reading: robot.Reading``, whose names plugin.build has checked."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})

    def named(self, table: Episodes) -> Episodes:
        """The table of the embodiment and action space that are named here, if they are."""
        given = {name: getattr(self, name) for name in NAMES}
        return dataclasses.replace(table, **{k: v for k, v in given.items() if v is not None})

    def described(self) -> dict:
        """What of it decides what samples are: all but where files lie and how large a cache is."""
        fields = dataclasses.asdict(self)
        fields.pop("paraphrases")  # their contents count
        for name in (*NAMES, "convert"):  # so does what these make of the data
            fields.pop(name)
        if self.cache is not None:
            fields["cache"] = {k: v for k, v in self.cache.items() if k in ("format", "quality")}
        return fields

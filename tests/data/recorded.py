"""Made-up recordings of a robot, healthy until a test breaks them, for what `vla data doctor` sees.

The hand follows commanded deltas with a lag of one step and a gain; the gripper begins open, closes
and opens again; two cameras look at a dot that goes with the hand.
"""

import dataclasses

import numpy as np

from vla_jax.data import doctor, robot, statistics
from vla_jax.data import episodes as episodes_lib
from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup, SourceContext

HZ = 10.0
SPACE = ActionSpace(
    name="arm_delta",
    control_hz=HZ,
    groups=(
        ActionGroup(
            name="xyz", size=3, quantity="position", representation="delta",
            reference="previous_command", unit="cm", scale=0.01, limits=(-5.0, 5.0),
        ),
        ActionGroup(
            name="rpy", size=3, quantity="rotation", representation="delta",
            reference="measured_now", rotation="euler_xyz", composition="left", unit="rad",
        ),
        ActionGroup(
            name="gripper", size=1, quantity="gripper", representation="absolute",
            gripper="1=open,0=closed", unit="1",
        ),
    ),
)  # fmt: skip
BODY = Embodiment(
    name="made_up",
    joints=(),
    joint_limits=(),
    control_hz=HZ,
    views=("primary", "wrist"),
    proprio=(ProprioGroup(name="ee", size=7, unit="m, rad, 1", meaning="xyz, rpy, gripper"),),
    action_spaces=(SPACE,),
)


@dataclasses.dataclass
class Recorded:
    """What was recorded: columns of E episodes of T steps, for a test to break."""

    action: np.ndarray  # [E, T, 7]
    ee: np.ndarray  # [E, T, 7]
    pictures: dict  # view -> uint8 [E, T, 16, 16, 3]
    language: list  # [E] instructions
    time: np.ndarray  # [E, T] s
    frame: np.ndarray  # [E, T]
    flags: dict = dataclasses.field(default_factory=dict)  # name -> [E] bool
    body: Embodiment = BODY
    # Steps that the standardizer keeps.
    kept: slice = dataclasses.field(default_factory=lambda: slice(None))

    kind, name = "made up", "made_up"

    @property
    def splits(self):
        return {"train": len(self.action)}

    @property
    def fields(self):
        found = {
            "action": dict(kind="tensor", shape=(7,), dtype="float32"),
            "ee": dict(kind="tensor", shape=(7,), dtype="float32"),
            "timestamp": dict(kind="tensor", shape=(), dtype="float32"),
            "frame_index": dict(kind="tensor", shape=(), dtype="int64"),
            "task": dict(kind="text", shape=(), dtype="string"),
        }
        found |= {n: dict(kind="tensor", shape=(), dtype="bool") for n in self.flags}
        return found | {
            view: dict(kind="image", shape=(16, 16, 3), dtype="uint8") for view in self.pictures
        }

    def __len__(self):
        return len(self.action)

    def ids(self):
        return [f"e{i}" for i in range(len(self))]

    def episode(self, index, fields=None, steps=None):
        chosen = slice(None) if steps is None else list(steps)
        made = {"action": self.action, "ee": self.ee, "timestamp": self.time}
        made = {n: v[index] for n, v in (made | {"frame_index": self.frame}).items()}
        made["task"] = np.asarray([self.language[index]] * self.action.shape[1])
        made |= {n: np.repeat(v[index], self.action.shape[1]) for n, v in self.flags.items()}
        made |= {view: p[index][chosen] for view, p in self.pictures.items()}
        return {name: made[name] for name in (fields or made)}

    def table(self):
        """(Episodes, FrameReader)."""
        steps = np.arange(self.action.shape[1])[self.kept]
        nowhere = (np.zeros(len(steps), np.int64), np.ones(len(steps), np.int64))
        rows = []
        for i, id_ in enumerate(self.ids()):
            episode = episodes_lib.Episode(
                id=id_,
                steps=steps,
                action=self.action[i, steps].astype(np.float32),
                proprio={"ee": self.ee[i, steps].astype(np.float32)},
                language=[self.language[i]] * len(steps),
                embodiment=self.body.name,
                action_space=self.body.action_spaces[0].name,
            )
            rows.append((episode, dict.fromkeys(self.pictures, nowhere), 0, i, 0))
        table = episodes_lib.collect("made up", self.name, rows, tuple(self.pictures))

        def read(view, episode, rows):
            return [self.pictures[view][episode, table.step[row]] for row in rows]

        return table, read

    def case(
        self,
        *,
        chunk=4,
        image_sizes=None,
        clip=None,
        mode=None,
        filter=(),
        noop_threshold=None,
        bad_samples="error",
        **settings,
    ):
        """As a run would read it."""
        table, read = self.table()
        context = SourceContext(
            name="made_up", stream="robot", action_horizon=chunk, action_size=7,
            image_sizes=image_sizes or {}, embodiments=(self.body,),
            action_spaces=self.body.action_spaces,
        )  # fmt: skip
        reading = robot.Reading(
            holdout=0.0,
            language="optional",
            filter=filter,
            noop_threshold=noop_threshold,
            bad_samples=bad_samples,
        )
        source = robot.RobotRows(context, table, read, reading)
        own = statistics.compute(
            [source], mode=mode or {"action": "q01_q99", "*": "zscore"}, clip=clip
        )
        normalizer = settings.pop("normalizer", None)
        return doctor.Case(
            raw=self, source=source, normalizer=normalizer or own, own=own,
            given=normalizer is not None, **settings,
        )  # fmt: skip


def healthy(episodes: int = 8, steps: int = 40, seed: int = 0) -> Recorded:
    """Nothing is wrong with these."""
    rng = np.random.default_rng(seed)
    smooth = np.cumsum(rng.normal(size=(episodes, steps, 6)), axis=1)
    smooth -= smooth.mean(axis=1, keepdims=True)
    command = np.clip(smooth / 4 + 0.3 * rng.normal(size=smooth.shape), -2, 2)
    command[..., 3:] *= 0.02  # rad
    grip = np.ones((episodes, steps))
    for i in range(episodes):
        grip[i, steps // 3 + i % 3 : 3 * steps // 4] = 0
    scale = np.r_[[0.01] * 3, [1.0] * 3]
    moves = np.zeros_like(command)
    moves[:, 1:] = 0.8 * command[:, :-1] * scale
    moves += 0.02 * scale * np.abs(command).max(axis=(0, 1)) * rng.normal(size=moves.shape)
    pose = np.cumsum(np.concatenate([rng.normal(0, 0.05, (episodes, 1, 6)), moves], 1), 1)[:, :-1]
    opening = np.concatenate([grip[:, :1], grip[:, :-1]], 1) * 0.08
    pictures = {}
    for view, base in (("primary", 60), ("wrist", 120)):
        pictures[view] = rng.integers(0, 20, (episodes, steps, 16, 16, 3)).astype(np.uint8) + base
    return Recorded(
        action=np.concatenate([command, grip[..., None]], -1),
        ee=np.concatenate([pose, opening[..., None]], -1),
        pictures={view: p.astype(np.uint8) for view, p in pictures.items()},
        language=[f"put the cup on plate {i % 3}" for i in range(episodes)],
        time=np.tile(np.arange(steps) / HZ, (episodes, 1)).astype(np.float32),
        frame=np.tile(np.arange(steps), (episodes, 1)),
    )

"""A process of the closed-loop evaluation: one environment, every checkpoint loaded once.

`start` builds the process's scene, `do` answers one job. No plug-in (leading underscore).
"""

from __future__ import annotations

import atexit
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vla_jax import plugin

FILM_SIZE = 288  # pixels of the pictures for people; the policy still sees its own size
FILM_STRIDE = 2  # control ticks per picture
FILM_TAIL = 4  # pictures of the last moment, so that one sees how it ended

_player: Player | None = (
    None  # the process's own: OpenGL contexts and jitted functions stay with it
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker is asked: kind is act, film (act with pictures), point or collages."""

    kind: str
    set: str
    arm: str
    seed: int
    target: str
    cards: tuple[str, ...]
    number: int = 0  # its place among all jobs


@dataclasses.dataclass(frozen=True)
class Scene:
    """What every worker is given once; `arms` maps names to rollouts.ArmConfig."""

    arms: Mapping[str, Any]
    pictures: Mapping[str, np.ndarray]
    names_a: tuple[str, ...]
    names_b: tuple[str, ...]
    env: Mapping[str, Any]  # the environment's plug-in: its type and arguments
    view: str  # where policies point, and what the films show
    execute_steps: int
    keep: tuple[str, str] | None = None  # a file of data/writers/, the spool of its data set


def start(scene: Scene) -> None:
    """Makes this process's player."""
    global _player
    _player = Player(scene)
    atexit.register(_player.close)  # while the libraries that its renderers need are still there


def do(job: Job) -> dict:
    """The answer to one job: {"record", "pointing", "film"}, as far as its kind has them."""
    return _player.do(job)


class Player:
    """Plays episodes in one environment; `load` opens a policy (tests give their own)."""

    def __init__(self, scene: Scene, load: Callable[[str, str], Any] | None = None):
        self.scene = scene
        self.env = self._environment()
        self._load = load or load_policy
        self._policies: dict[tuple[str, str], Any] = {}
        self._pointers: dict[tuple[str, str], Any] = {}
        self._camera = None  # the environment with larger pictures

    def do(self, job: Job) -> dict:
        """See the module's `do`."""
        if job.kind == "collages":
            return {"pointing": self._collages(job)}
        if job.kind == "point":
            return {"pointing": self._point(job)}
        return self._episode(job)

    def close(self) -> None:
        """Frees the renderers."""
        for env in (self.env, self._camera):
            if env is not None:
                env.close()

    def _environment(self, **changes) -> Any:
        given = {"pictures": self.scene.pictures, "views": (self.scene.view,)}
        return plugin.build("envs", {**self.scene.env, **given, **changes}, None)

    def _episode(self, job: Job) -> dict:
        env, actor = self.env, self._actor(job)
        film = self._film(job) if job.kind == "film" else None
        env.reset(job.seed, job.target, job.cards, render=False)
        kept = _Kept(env) if self.scene.keep and job.kind == "act" else None
        pointed = None
        while not env.info["done"]:
            action = actor.act()
            if kept:
                kept.take(action)
            if env.info["steps"] == 0 and actor.point is not None:
                pointed = self.nearest(actor.point)
            if film:
                film.take(actor)
                film.env.step(action, render=False)
            env.step(action, render=False)
        info = env.info
        record = {
            "set": job.set,
            "arm": job.arm,
            "seed": job.seed,
            "target": job.target,
            "cards": list(job.cards),
            "first_card_touched": info["first_card_touched"],
            "first_touch": bool(info["first_touch"]),
            "success": bool(info["success"]),
            "steps": int(info["steps"]),
        }
        answer: dict = {"record": record}
        if kept:
            writer, spool = self.scene.keep
            plugin.module("data.writers", writer).spool(spool, job.number, [kept.finish(record)])
        if pointed is not None:
            right = pointed == job.target
            answer["pointing"] = [("scenes", job.arm, job.set, right, 1)]
        if film:
            answer["film"] = film.finish(actor)
        return answer

    def nearest(self, point: Sequence[float]) -> str:
        """The card whose centre is nearest to `point` [2] (fractions) in the picture."""
        centres = project(self.env.camera_matrix(self.scene.view), self.env.layout.positions)
        return self.env.cards[int(np.argmin(np.sum((centres - np.asarray(point)) ** 2, -1)))]

    def _actor(self, job: Job):
        arm = self.scene.arms[job.arm]
        if arm.policy == "expert":
            return _Expert(self.env)
        if arm.policy == "random":
            return _Random(self.env, job.seed)
        policy = self._once(self._policies, self._load, arm)
        instruction = arm.template.format(name=job.target)
        policy.reset(queries=job.seed << 8)  # draws of the episode's own, whoever plays it
        return _Chunks(
            self.env, policy, instruction, self.scene.execute_steps, tuple(arm.masked_views)
        )

    def _point(self, job: Job) -> list[tuple]:
        arm = self.scene.arms[job.arm]
        pointer = self._pointer(arm)
        observation = self.env.reset(job.seed, job.target, job.cards)
        text = arm.template.format(name=job.target)
        point = pointer.point(observation["images"][self.scene.view], text)
        return [("scenes", job.arm, job.set, self.nearest(point) == job.target, 1)]

    def _collages(self, job: Job) -> list[tuple]:
        arm, scene = self.scene.arms[job.arm], self.scene
        pointer = self._pointer(arm)
        asked = list(pointer.collages(arm.collages, job.seed, scene.names_a + scene.names_b))
        return [
            ("collages", job.arm, "A" if name in scene.names_a else "B", right, 1)
            for name, right in asked
        ]

    def _pointer(self, arm):
        from vla_jax.evals import pointing  # late, as in load_policy

        return self._once(self._pointers, pointing.Pointer, arm)

    @staticmethod
    def _once(opened: dict, load: Callable, arm):
        key = (arm.checkpoint, arm.stream)
        if key not in opened:
            opened[key] = load(*key)
        return opened[key]

    def _film(self, job: Job) -> _Film:
        if self._camera is None:
            self._camera = self._environment(image_size=FILM_SIZE)
        self._camera.reset(job.seed, job.target, job.cards, render=False)
        return _Film(self._camera, self.scene.view)


def load_policy(checkpoint: str, stream: str):
    """The policy of a run's folder for one robot."""
    # Late: Orbax takes seconds to import, and the expert does without.
    from vla_jax.policy import policy as policy_lib

    return policy_lib.Policy.load(checkpoint, stream=stream, rows=1)


def project(matrix: np.ndarray, positions: np.ndarray, height: float = 0.006) -> np.ndarray:
    """Picture fractions [n, 2] of table positions [n, 2] (m) at `height`; `matrix` is [3, 4]."""
    n = len(positions)
    world = np.concatenate([positions, np.full((n, 1), height), np.ones((n, 1))], 1)  # [n, 4]
    seen = world @ np.asarray(matrix, np.float64).T
    return seen[:, :2] / seen[:, 2:]


class _Expert:
    """The scripted expert; it points to nothing."""

    point = probs = None

    def __init__(self, env):
        self._env = env

    def act(self) -> np.ndarray:
        return self._env.expert_action()


class _Random:
    """Uniform actions, a function of the scene's seed."""

    point = probs = None

    def __init__(self, env, seed: int):
        self._rng = np.random.Generator(np.random.Philox(key=np.array([seed, 4], np.uint64)))
        self._size = env.action_space.size

    def act(self) -> np.ndarray:
        return self._rng.uniform(-1.0, 1.0, self._size)


class _Chunks:
    """A checkpoint's policy, queried every `execute_steps` ticks; only queries cost a picture."""

    def __init__(self, env, policy, instruction, execute_steps, masked_views):
        from vla_jax.policy import chunks  # late, as in load_policy

        self._env, self._instruction = env, instruction
        self._executor = chunks.ChunkExecutor(policy, execute_steps, masked_views)
        self._blind = set(policy.stream.image_sizes) <= set(masked_views)

    def _observe(self, row: int) -> dict:
        """What the policy is shown; where every camera is masked no picture is rendered."""
        seen = self._env.observe(render=not self._blind)
        return seen | {"images": dict.fromkeys(self._env.views)} if self._blind else seen

    def act(self) -> np.ndarray:
        action = self._executor.act(self._observe, [self._instruction])[0]
        if not np.all(np.isfinite(action)):
            raise plugin.UserError(f"the policy's action {action} is not finite")
        return action

    @property
    def point(self) -> np.ndarray | None:
        """The newest pointing answer, fractions [2]; None for a policy that does not point."""
        return self._answer("point")

    @property
    def probs(self) -> np.ndarray | None:
        """Its distribution over the image's tokens [rows, columns]."""
        return self._answer("probs")

    def _answer(self, name: str) -> np.ndarray | None:
        for answer in self._executor.answers.values():
            if "probs" in answer and name in answer:
                return np.asarray(answer[name][0], np.float32)
        return None


class _Kept:
    """An episode as data sets have it: what was sensed and done at every step."""

    def __init__(self, env):
        self._env, self._seen, self._actions = env, [], []

    def take(self, action: np.ndarray) -> None:
        """One step, before it is done."""
        self._seen.append(self._env.observe())
        self._actions.append(np.asarray(action, np.float32))

    def finish(self, record: Mapping) -> dict:
        """The episode in the form of data/writers/rlds.py."""
        env = self._env
        named = {k: record[k] for k in ("set", "arm", "seed", "target", "success")}
        return {
            "action": np.stack(self._actions),
            "images": {v: [seen["images"][v] for seen in self._seen] for v in env.views},
            "proprio": {
                group: np.stack([seen["proprio"][group] for seen in self._seen])
                for group in self._seen[0]["proprio"]
            },
            "instruction": env.instruction,
            "metadata": named
            | {
                "episode_id": f"{record['arm']}-{record['set']}-{record['seed']}",
                "embodiment": env.embodiment.name,
                "action_space": env.action_space.name,
                "control_hz": env.action_space.control_hz,
                "camera": {view: env.camera_matrix(view) for view in env.views},
            },
        }


class _Film:
    """Pictures for people, of a second environment that is moved with the first one."""

    def __init__(self, env, view: str):
        self.env, self._view, self._tick = env, view, 0
        self._taken: list[tuple] = []

    def take(self, actor) -> None:
        """A picture of this moment with what the policy points to, every FILM_STRIDE ticks."""
        if self._tick % FILM_STRIDE == 0:
            self._shoot(actor)
        self._tick += 1

    def finish(self, actor) -> dict[str, np.ndarray]:
        """Arrays: frames uint8 [n, h, w, 3], probs float16 [n, rows, columns], points [n, 2]."""
        self._shoot(actor)
        self._taken += self._taken[-1:] * FILM_TAIL
        frames, probs, points = zip(*self._taken)
        return {
            "frames": np.stack(frames),
            "probs": np.stack(probs).astype(np.float16),
            "points": np.stack(points).astype(np.float32),
        }

    def _shoot(self, actor) -> None:
        image = self.env.observe()["images"][self._view]
        nothing = np.zeros((1, 1)) if actor.probs is None else actor.probs
        point = np.full(2, np.nan) if actor.point is None else actor.point
        self._taken.append((image, nothing, point))

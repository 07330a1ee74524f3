"""Four picture cards before Meta-World's Sawyer: "touch the {name}" (cards.md §1 and §2).

    env = make(pictures={"fox": rgba, …})
    observation = env.reset(seed, "fox", ("fox", "bee", "owl", "crab"))
    while not env.info["done"]:
        observation, info = env.step(action)

Every measure is taken from the simulator's state:
- touch: the fingertip below 8.5 cm inside a card's rotated square;
- first touch: the first card touched is the named one, within 150 steps; none is a miss;
- success: first touch, and then within 4 cm of its centre below 8.5 cm, within the same 150 steps.
An episode is done at success, at a wrong first touch, or at 150 steps.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import mujoco
import numpy as np

from vla_jax import plugin
from vla_jax.envs import _expert, _scene
from vla_jax.envs._scene import draw_layout, draw_task  # noqa: F401  (part of the contract)

DEBUG = {"image_size": 32}

MAX_STEPS = 150
TOUCH_HEIGHT = 0.085  # m
SUCCESS_RADIUS = 0.04  # m
FRAME_SKIP = 5  # simulator steps per control tick
ACTION_SCALE = 0.01  # m of the commanded position per action unit
GRIPPER = 1.0  # closed; the card scene never moves it
SETTLE_STEPS = 50  # Meta-World's _reset_hand


def make(
    context=None,
    *,
    pictures: Mapping[str, np.ndarray],
    embodiment: str = "sawyer_cards",
    views: Sequence[str] | None = None,
    image_size: int = 96,
) -> CardsEnv:
    """The card scene with `pictures` (name -> uint8 [64, 64, 4] RGBA) ready for the table.

    `embodiment` is a file of embodiments/ and fixes the action's size; `views` defaults to all of
    its views. Raises UserError on an unknown view or embodiment and on pictures of another shape.
    """
    del context
    body = plugin.module("embodiments", embodiment).EMBODIMENT
    return CardsEnv(pictures, body, tuple(views or body.views), image_size)


class CardsEnv:
    """One scene and its renderer; use it in the thread that made it (OpenGL is thread-bound)."""

    noise_sigma = _expert.NOISE_SIGMA  # of `disturbance`, action units
    expert_stay = _expert.STAY  # steps that a demonstration goes on once the expert has reached

    def __init__(self, pictures, embodiment, views, image_size):
        """See `make`."""
        for view in views:
            if view not in _scene.CAMERAS:
                raise plugin.UserError(plugin.unknown("cards: view", view, _scene.CAMERAS))
        self.embodiment, self.views, self.image_size = embodiment, views, image_size
        self.action_space = embodiment.action_spaces[0]
        self._model, self._materials = _scene.compile_model(pictures, image_size)
        self._data = mujoco.MjData(self._model)
        self._renderer = None
        self._tips = [self._model.site(f"{side}EndEffector").id for side in ("left", "right")]
        self._cards = [self._model.geom(f"card{i}").id for i in range(_scene.NUM_CARDS)]
        self.layout = self.target = self.cards = None
        self.info: dict = {}

    @property
    def instruction(self) -> str:
        """What the robot is told in this episode."""
        return f"touch the {self.target}"

    @property
    def hand(self) -> np.ndarray:
        """The fingertip (Meta-World's tcp_center) in m: float64 [3]."""
        left, right = self._tips
        return (self._data.site_xpos[left] + self._data.site_xpos[right]) / 2

    @property
    def goal(self) -> np.ndarray:
        """Centre of the named card in m: float64 [2]."""
        return self.layout.positions[self.cards.index(self.target)]

    def camera_matrix(self, view: str) -> np.ndarray:
        """float32 [3, 4], to picture fractions: (u, v, w) = M @ [x, y, z, 1], (u/w, v/w)."""
        return _scene.CAMERAS[view].matrix()

    def reset(self, seed: int, target: str, cards: Sequence[str], *, render: bool = True) -> dict:
        """Lays `cards` (4 names) out as `seed` says and returns the first observation.

        The layout is a function of `seed` alone: the same seed with other cards has the same
        places. Raises UserError when a card has no picture, a name stands twice or the target is
        not among them.
        """
        cards = tuple(cards)
        if len(cards) != _scene.NUM_CARDS or len(set(cards)) != len(cards) or target not in cards:
            raise plugin.UserError(
                f"cards: got {cards} with target {target!r}, "
                f"expected {_scene.NUM_CARDS} different names, the target among them"
            )
        for name in cards:
            if name not in self._materials:
                raise plugin.UserError(plugin.unknown("cards: picture", name, self._materials))
        self.layout, self.target, self.cards = _scene.draw_layout(seed), target, cards
        for i, name in enumerate(cards):
            self._model.geom_matid[self._cards[i]] = self._materials[name]
            body = self._model.geom_bodyid[self._cards[i]]
            self._model.body_pos[body, :2] = self.layout.positions[i]
            angle = self.layout.angles[i] + np.pi  # the pictures' up points away from the camera
            self._model.body_quat[body] = np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)
        mujoco.mj_resetData(self._model, self._data)
        self._data.ctrl[:] = GRIPPER, -GRIPPER
        self._data.mocap_pos[0], self._data.mocap_quat[0] = self.layout.hand, (1.0, 0.0, 1.0, 0.0)
        mujoco.mj_step(self._model, self._data, SETTLE_STEPS * FRAME_SKIP)
        mujoco.mj_forward(self._model, self._data)
        self._steps, self._first, self._success = 0, None, False
        self._measure()
        return self.observe(render)

    def step(self, action: np.ndarray, *, render: bool = True) -> tuple[dict, dict]:
        """One control tick: (observation, info); `action` as the embodiment's action space says.

        Position deltas are clipped to ±1 as in Meta-World. `render=False` leaves the images out.
        Raises UserError on an action of another size or with values that are not finite.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (self.action_space.size,) or not np.all(np.isfinite(action)):
            raise plugin.UserError(
                f"cards: got action {action}, expected {self.action_space.size} finite numbers "
                f"({self.action_space.name})"
            )
        gripper = float(np.clip(action[3], -1.0, 1.0)) if action.size > 3 else GRIPPER
        target = self._data.mocap_pos[0] + ACTION_SCALE * np.clip(action[:3], -1.0, 1.0)
        self._data.mocap_pos[0] = np.clip(target, _scene.MOCAP_LOW, _scene.MOCAP_HIGH)
        self._data.mocap_quat[0] = 1.0, 0.0, 1.0, 0.0
        self._data.ctrl[:] = gripper, -gripper
        mujoco.mj_step(self._model, self._data, FRAME_SKIP)
        mujoco.mj_forward(self._model, self._data)
        self._steps += 1
        self._measure()
        return self.observe(render), self.info

    def observe(self, render: bool = True) -> dict:
        """{"images": {view: uint8 [h, w, 3]}, "proprio": {"hand": float32 [3]}} of this moment."""
        images = {view: self._render(view) for view in self.views} if render else {}
        return {"images": images, "proprio": {"hand": self.hand.astype(np.float32)}}

    def touched(self) -> str | None:
        """The card under the fingertip now, or None."""
        hand = self.hand
        if hand[2] >= TOUCH_HEIGHT:
            return None
        for name, centre, angle in zip(self.cards, self.layout.positions, self.layout.angles):
            x, y = hand[:2] - centre
            along = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
            if max(abs(along[0]), abs(along[1])) <= _scene.CARD_HALF:
                return name
        return None

    def expert_action(self) -> np.ndarray:
        """What the scripted expert does now, in this embodiment's action space: float32 [A]."""
        action = _expert.expert_action(self.hand, self.goal)
        return np.append(action, np.float32(GRIPPER))[: self.action_space.size]

    def expert_reached(self) -> bool:
        """Whether the expert is where it wants to be (it stays STAY steps more)."""
        return _expert.reached(self.hand, self.goal)

    def disturbance(self, rng: np.random.Generator) -> _expert.Disturbance:
        """What shakes a demonstration: its `next()` is added to each executed action's position."""
        return _expert.Disturbance(rng)

    def close(self) -> None:
        """Frees the renderer; other environments of the process keep theirs."""
        renderer, self._renderer = self._renderer, None
        if renderer is not None and renderer._gl_context is not None:
            # Renderer.close frees its buffers in whichever context is current: another one's.
            renderer._gl_context.make_current()
            renderer._mjr_context.free()
            renderer._mjr_context = None
            renderer._gl_context.free()
            renderer._gl_context = None

    def __del__(self):
        """A forgotten environment must not free another one's buffers either."""
        # At the interpreter's end OSMesa is already gone, and so is what it would free.
        if getattr(self, "_renderer", None) is not None and not sys.is_finalizing():
            self.close()

    def _measure(self) -> None:
        if self._steps <= MAX_STEPS:
            self._first = self._first or self.touched()
            right = self._first == self.target
            near = np.linalg.norm(self.hand[:2] - self.goal) < SUCCESS_RADIUS
            self._success |= bool(right and near and self.hand[2] < TOUCH_HEIGHT)
        wrong = self._first is not None and self._first != self.target
        self.info = {
            "first_card_touched": self._first,
            "first_touch": self._first == self.target,
            "success": self._success,
            "done": self._success or wrong or self._steps >= MAX_STEPS,
            "steps": self._steps,
        }

    def _render(self, view: str) -> np.ndarray:
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._model, self.image_size, self.image_size)
            self._option = mujoco.MjvOption()
            self._option.sitegroup[:] = 0
            for flag in _scene.FLAGS_OFF:
                self._renderer.scene.flags[flag] = 0
        camera = _scene.CAMERAS[view].name
        self._renderer.update_scene(self._data, camera, self._option)
        return self._renderer.render()

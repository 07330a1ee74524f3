"""The card scene of Meta-World's Sawyer: model, cameras, layouts (cards.md §1).

World frame: x left-right of the robot, y away from its base, z up, metres; the table top is z = 0.

        y .53 ┌───────────────┐ robot's side, top of the primary picture
              │  □        □   │   four cards, 13 x 13 cm, centres > 15.6 cm apart
              │      □      □ │
        y .85 └───────────────┘ camera's side
           x +.24           -.24
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib

import mujoco
import numpy as np

from vla_jax.plugin import UserError

NUM_CARDS = 4
CARD_HALF = 0.065  # m, half the side of a card
CARD_THICKNESS = 0.006  # m
CARD_X, CARD_Y = (-0.24, 0.24), (0.53, 0.85)  # m, range of card centres
CARD_GAP = 0.156  # m, least distance of two centres
CARD_TURN = 0.35  # rad
HAND_START = ((-0.20, 0.20), (0.44, 0.52), (0.20, 0.28))  # m, of the mocap target
MOCAP_LOW, MOCAP_HIGH = np.array([-0.5, 0.40, 0.05]), np.array([0.5, 1.0, 0.5])
PICTURE, MARGIN = 64, 4  # px: the sprite and the white border around it
TEXTURE = PICTURE + 2 * MARGIN
# Meshes that would hide the table from the cameras; l2, l3 and tablebody are out of the picture.
HIDDEN = ("pedestal", "base", "l0", "l1", "l2", "l3", "head", "tablebody")
HIDDEN_BODIES = ("controller_box", "pedestal_feet", "torso")
FLAGS_OFF = (
    mujoco.mjtRndFlag.mjRND_SHADOW,
    mujoco.mjtRndFlag.mjRND_REFLECTION,
    mujoco.mjtRndFlag.mjRND_HAZE,
)


@dataclasses.dataclass(frozen=True)
class Camera:
    """A fixed upright camera: position and target in m, vertical field of view in degrees."""

    name: str  # the Meta-World camera that is moved here
    position: tuple[float, float, float]
    target: tuple[float, float, float]
    fovy: float

    def axes(self) -> np.ndarray:
        """World directions of the picture's right, up and forward: float64 [3, 3], one per row."""
        forward = np.subtract(self.target, self.position)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 0.0, 1.0))
        right = right / np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def matrix(self) -> np.ndarray:
        """Projection of a square picture: float32 [3, 4], (u, v, w) = M @ [x, y, z, 1].

        x = u / w (right) and y = v / w (down) are fractions of the picture, both in [0, 1] inside
        it.
        """
        right, up, forward = self.axes()
        focal = 0.5 / np.tan(np.deg2rad(self.fovy) / 2)
        rows = np.stack([focal * right + 0.5 * forward, -focal * up + 0.5 * forward, forward])
        return np.concatenate([rows, -rows @ np.array(self.position)[:, None]], 1).astype(
            np.float32
        )


CAMERAS = {
    "primary": Camera("corner2", (0.0, 1.13, 0.86), (0.0, 0.66, 0.0), 37.0),
    "secondary": Camera("corner3", (0.62, 1.00, 0.62), (0.0, 0.66, 0.05), 42.0),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where things are at the start: a function of a seed, whatever the cards show."""

    positions: np.ndarray  # float64 [4, 2], x and y of the card centres, m
    angles: np.ndarray  # float64 [4], turn about z, rad
    hand: np.ndarray  # float64 [3], start of the commanded hand position, m


def draw_layout(seed: int) -> Layout:
    """The layout of `seed`: cards uniform given their distances (joint rejection)."""
    rng = np.random.Generator(np.random.Philox(key=_key(seed, 1)))
    low, high = np.array([CARD_X, CARD_Y]).T
    upper = np.triu_indices(NUM_CARDS, 1)
    while True:
        drawn = rng.uniform(low, high, (64, NUM_CARDS, 2))
        gaps = np.linalg.norm(drawn[:, upper[0]] - drawn[:, upper[1]], axis=-1)  # [64, pairs]
        good = np.flatnonzero(gaps.min(1) > CARD_GAP)
        if good.size:
            positions = drawn[good[0]]
            break
    angles = rng.uniform(-CARD_TURN, CARD_TURN, NUM_CARDS)
    hand_low, hand_high = np.array(HAND_START).T
    return Layout(positions, angles, rng.uniform(hand_low, hand_high))


def draw_task(seed: int, targets, others, target: str | None = None) -> tuple[str, tuple[str, ...]]:
    """(target, the four names in slot order) of `seed`: target of `targets`, the rest of `others`.

    `target` fixes the target instead of drawing it. Raises UserError when there are too few names.
    """
    rng = np.random.Generator(np.random.Philox(key=_key(seed, 2)))
    targets = list(targets) if target is None else [target]
    if not targets:
        raise UserError("cards: no target names given")
    chosen = targets[int(rng.integers(len(targets)))]
    pool = [name for name in others if name != chosen]
    if len(pool) < NUM_CARDS - 1:
        raise UserError(f"cards: {len(pool)} distractor names, expected at least {NUM_CARDS - 1}")
    names = [chosen, *(pool[i] for i in rng.choice(len(pool), NUM_CARDS - 1, replace=False))]
    order = rng.permutation(NUM_CARDS)
    return chosen, tuple(names[i] for i in order)


def _key(seed: int, use: int) -> np.ndarray:
    if seed < 0:
        raise UserError(f"cards: seed {seed}, expected 0 or more")
    return np.array([seed, use], np.uint64)


def card_texture(picture: np.ndarray) -> np.ndarray:
    """uint8 [72, 72, 3]: a 64 px RGBA sprite on white with a margin; UserError on another shape."""
    picture = np.asarray(picture)
    if picture.shape != (PICTURE, PICTURE, 4) or picture.dtype != np.uint8:
        raise UserError(
            f"card picture: got {picture.dtype} {picture.shape}, "
            f"expected uint8 {(PICTURE, PICTURE, 4)}"
        )
    alpha = picture[..., 3:].astype(np.float32) / 255.0
    card = np.full((TEXTURE, TEXTURE, 3), 255, np.uint8)
    inside = picture[..., :3] * alpha + 255.0 * (1.0 - alpha)
    card[MARGIN:-MARGIN, MARGIN:-MARGIN] = np.round(inside).astype(np.uint8)
    return card


def compile_model(pictures, image_size: int) -> tuple[mujoco.MjModel, dict[str, int]]:
    """One compiled model that holds every picture: (model, name -> material id).

    Cards are bodies `card0`..`card3` with one geom each, without contacts; reach-v3's puck is gone.
    """
    package = importlib.util.find_spec("metaworld").submodule_search_locations[0]
    spec = mujoco.MjSpec.from_file(
        str(pathlib.Path(package) / "assets" / "sawyer_xyz" / "sawyer_reach_v3.xml")
    )
    spec.detach_body(spec.body("obj"))
    for name in pictures:
        spec.add_texture(
            name=f"card/{name}",
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
            width=TEXTURE,
            height=TEXTURE,
            nchannel=3,
        )
        material = spec.add_material(name=f"card/{name}", emission=0.25, specular=0.0)
        textures = list(material.textures)
        textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = f"card/{name}"
        material.textures = textures
    for i in range(NUM_CARDS):
        body = spec.worldbody.add_body(name=f"card{i}", pos=[0, 0.7, CARD_THICKNESS / 2])
        body.add_geom(
            name=f"card{i}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[CARD_HALF, CARD_HALF, CARD_THICKNESS / 2],
            contype=0,
            conaffinity=0,
        )
    model = spec.compile()
    _write_textures(model, pictures)
    _place_cameras(model)
    _hide(model)
    model.vis.global_.offwidth = model.vis.global_.offheight = image_size  # less to clear per frame
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 512
    # Meta-World resets the weld between the mocap body and the hand like this (reset_mocap_welds).
    model.eq_data[:] = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0])
    return model, {name: model.material(f"card/{name}").id for name in pictures}


def _write_textures(model, pictures) -> None:
    for name, picture in pictures.items():
        start = model.tex_adr[model.texture(f"card/{name}").id]
        texture = card_texture(picture)
        model.tex_data[start : start + texture.size] = texture.reshape(-1)


def _place_cameras(model) -> None:
    for camera in CAMERAS.values():
        right, up, forward = camera.axes()
        quaternion = np.zeros(4)
        mujoco.mju_mat2Quat(quaternion, np.stack([right, up, -forward], 1).reshape(-1))
        index = model.camera(camera.name).id
        model.cam_pos[index], model.cam_quat[index] = camera.position, quaternion
        model.cam_fovy[index] = camera.fovy


def _hide(model) -> None:
    for geom in range(model.ngeom):
        body = model.body(model.geom_bodyid[geom]).name
        is_mesh = model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
        mesh = model.mesh(model.geom_dataid[geom]).name if is_mesh else ""
        if mesh in HIDDEN or body in HIDDEN_BODIES:
            model.geom_rgba[geom, 3] = 0.0

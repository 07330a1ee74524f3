"""Small HDF5 files as LIBERO, robomimic and ALOHA write them, by h5py alone.

After scripts/create_dataset.py (LIBERO), docs/datasets/overview.md (robomimic: attributes, mask/),
aloha_scripts/record_episodes.py (mobile-aloha), and scripts/compress_data.py (interbotix/aloha:
`compress`, pictures padded with zeros, `compress_len`).

Episode e, step t: actions[t] = [e, t, -t, 0, 0, 0, 1 if t is odd else -1].
"""

import json
import pathlib

import cv2
import h5py
import numpy as np

T, SIZE = 7, 16
STANDARDIZER = dict(
    type="rows",
    row=dict(
        embodiment="arm",
        action_space="xyz_gripper",
        views={"primary": "obs/agentview_rgb"},
        action="actions[:4]",
        proprio={"hand": "obs/ee_states[:3]"},
        language="language_instruction",
    ),
)
CAMERAS = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")


def picture(episode: int, step: int, shift: int = 0) -> np.ndarray:
    """uint8 [SIZE, SIZE, 3]: red says the step, green the episode, the first row is bright."""
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    image[...] = (20 * step + shift, 20 * episode, 10)
    image[:4] = 250
    return image


def actions(episode: int, length: int = T) -> np.ndarray:
    t = np.arange(length)
    made = np.zeros((length, 7))
    made[:, 0], made[:, 1], made[:, 2] = episode, t, -t
    made[:, 6] = np.where(t % 2, 1.0, -1.0)
    return made


def write_libero(path, episodes=3, said="put the bowl on the möbel", change=None) -> str:
    """A file of demos; `change(file)` may break it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
        told = {"problem_name": "p", "domain_name": "robosuite", "language_instruction": said}
        data.attrs["problem_info"] = json.dumps(told, ensure_ascii=False)
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["total"] = episodes * T
        for e in range(episodes):
            demo = data.create_group(f"demo_{e}")
            demo.attrs["num_samples"] = T
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["init_state"] = np.arange(5.0)
            t = np.arange(T)
            obs = demo.create_group("obs")
            obs["gripper_states"] = np.full((T, 2), 0.04)
            obs["joint_states"] = np.zeros((T, 7))
            obs["ee_states"] = np.stack([t, t, t, 0 * t, 0 * t, 0 * t], 1) / 10
            obs["agentview_rgb"] = np.stack([picture(e, s) for s in t])
            obs["eye_in_hand_rgb"] = np.stack([picture(e, s, 5) for s in t])
            demo["actions"] = actions(e)
            demo["states"] = np.zeros((T, 9))
            demo["rewards"] = (t == T - 1).astype(np.uint8)
            demo["dones"] = (t == T - 1).astype(np.uint8)
        if change is not None:
            change(file)
    return str(path)


def write_aloha(path, episode: int = 0, compress: bool = False, length: int = 10) -> str:
    """One episode in one file."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(length)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        observations = file.create_group("observations")
        shown = observations.create_group("images")
        sizes = []
        for number, camera in enumerate(CAMERAS):
            pictures = [picture(episode, s, number) for s in t]
            if not compress:
                shown.create_dataset(camera, data=np.stack(pictures), chunks=(1, SIZE, SIZE, 3))
                continue
            codes = [cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 95])[1] for p in pictures]
            sizes.append([len(code) for code in codes])
            padded = np.zeros((length, max(sizes[-1])), np.uint8)
            for row, code in zip(padded, codes):
                row[: len(code)] = code.reshape(-1)
            shown.create_dataset(camera, data=padded, chunks=(1, padded.shape[1]))
        if compress:
            file.attrs["compress"] = True
            file["compress_len"] = np.asarray(sizes, np.float32)
        arms = np.repeat(t[:, None] / 10, 14, 1)
        observations["qpos"] = (arms + episode).astype(np.float32)
        observations["qvel"] = np.zeros((length, 14), np.float32)
        file["action"] = (arms - episode).astype(np.float32)
    return str(path)

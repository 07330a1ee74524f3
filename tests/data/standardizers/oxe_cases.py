"""Per data set: the features that its rows read, as TFDS's catalogue has them (and some they do not
read), and what Octo's or OpenVLA's transform makes of them, written out by hand in plain loops and
slices. What a row does otherwise on purpose is marked `!`.

A case is (features, expected): features name -> shape of one step, "text", "image" or "flag";
expected(columns) -> dict(action, proprio, language; steps where not all are kept).
"""

import numpy as np
from scipy.spatial.transform import Rotation

from vla_jax.data.standardizers import oxe

V3, V7, ONE = (3,), (7,), (1,)
SAID = "observation/natural_language_instruction"
TEXT = "language_instruction"


def cat(*parts):
    return np.concatenate([np.reshape(p, (len(parts[0]), -1)) for p in parts], 1)


def opened(commands):
    """1 = open after each command (+1 closes, -1 opens), the first taken to change something."""
    commands = np.reshape(commands, -1)
    first = next((c for c in commands if abs(c) > 0.1), 1.0)
    now, states = float(first > 0.1), []
    for command in commands:
        if command > 0.1:
            now = 0.0
        elif command < -0.1:
            now = 1.0
        states.append(now)
    return np.array(states)


def settled(openings):
    """0 or 1; what is between takes the state that it comes to."""
    made = []
    for t in range(len(openings)):
        later = [v for v in openings[t:] if v > 0.95 or v < 0.05]
        made.append(float(later[0] > 0.95) if later else openings[-1])
    return np.array(made)


def euler(quaternions):
    return Rotation.from_quat(quaternions).as_euler("xyz")


def zeros(columns, count):
    return np.zeros((len(next(iter(columns.values()))), count))


def arm(c, gripper):
    """Octo's packed action: world_vector, rotation_delta and a gripper."""
    return cat(c["action/world_vector"], c["action/rotation_delta"], gripper)


def closing(c):
    return np.clip(c["action/gripper_closedness_action"], 0, 1)


def osc(c):
    return cat(c["action"][:, :6], 1 - np.clip(c["action"][:, -1:], 0, 1))


def osc_joints(language=None):
    return lambda c: dict(
        action=osc(c),
        proprio=dict(joints=c["observation/state"][:, :7], gripper=c["observation/state"][:, 7:8]),
        language=language,
    )


def bridge(first):
    def expected(c):
        state = c["observation/state"]
        gripper = settled(c["action"][:, 6])
        return dict(
            action=cat(state[1:, :6] - state[:-1, :6], gripper[:-1])[first:],
            proprio=dict(ee=state[first:-1]),
            language=TEXT,
            steps=range(first, len(state) - 1),
        )

    return expected


PACKED = {
    "action/world_vector": V3,
    "action/rotation_delta": V3,
    "action/terminate_episode": V3,
    SAID: "text",
}
RT1 = {**PACKED, "action/gripper_closedness_action": ONE, "observation/image": "image"}
PLAIN = {"action": V7, TEXT: "text", "observation/image": "image"}
WRIST = {**PLAIN, "observation/wrist_image": "image"}
BRIDGE = {
    "action": V7,
    "observation/state": V7,
    "observation/image_0": "image",
    "observation/image_1": "image",
    TEXT: "text",
    "episode_metadata/file_path": "text",
    "episode_metadata/episode_id": "text",
}
LIBERO = (
    {**WRIST, "observation/state": (8,), "observation/joint_state": V7},
    lambda c: dict(action=osc(c), proprio=dict(ee_fingers=c["observation/state"]), language=TEXT),
)


def w_last(quaternions):
    """(w, x, y, z) as (x, y, z, w) of length one and w >= 0."""
    unit = quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)
    return np.where(unit[:, :1] < 0, -unit, unit)[:, [1, 2, 3, 0]]


def every_third_joint_motion(c):
    joints = c["observation/joint_pos"][::3]
    return dict(
        action=cat(joints[1:] - joints[:-1], 1 - c["action"][::3][:-1, 7]),
        proprio=dict(
            joints=joints[:-1],
            gripper=1.0 - c["observation/gripper"][::3][:-1, None],  # ! Octo: 1 = closed
        ),
        language=TEXT,
        steps=range(0, 3 * (len(joints) - 1), 3),
    )


def every_third_waypoint(c):
    place, heading = c["observation/position"], c["observation/yaw"][:, 0]
    unit = np.hypot(*c["action"][0]) / np.hypot(*(place[1] - place[0]))
    steps = range(0, len(place) - 3, 3)
    seen = [Rotation.from_euler("z", -heading[t]).as_matrix()[:2, :2] for t in steps]
    return dict(
        action=np.stack([unit * turn @ (place[t + 3] - place[t]) for turn, t in zip(seen, steps)]),
        proprio=dict(base_pose=c["observation/state"][:-1:3][: len(steps)]),
        language=TEXT,
        steps=steps,
    )


def aloha(size, *cameras):
    views = (*cameras, "cam_left_wrist", "cam_right_wrist")
    return {
        "action": (size,),
        "observation/state": (14,),
        TEXT: "text",
        **{f"observation/{view}": "image" for view in views},
    }


def aloha_hdf5(size, *cameras):
    views = (*cameras, "cam_left_wrist", "cam_right_wrist")
    numbers = {"action": (size,), "observations/qpos": (14,), "observations/qvel": (14,)}
    return {**numbers, **{f"observations/images/{view}": "image" for view in views}}


def every_fifth_hdf5(c):
    return dict(
        action=c["action"][::5],
        proprio=dict(arms=c["observations/qpos"][::5]),
        language=None,
        steps=np.arange(len(c["action"]))[::5],
    )


def every_fifth(c):
    return dict(
        action=c["action"][::5],
        proprio=dict(arms=c["observation/state"][::5]),
        language=TEXT,
        steps=range(0, len(c["action"]), 5),
    )


JOINTS = {
    "action": (8,),
    TEXT: "text",
    "observation/hand_image": "image",
    "observation/joint_pos": V7,
    "observation/gripper": "flag",
}
PR2 = (
    {**PLAIN, "action": (8,), "observation/state": V7},
    lambda c: dict(
        action=c["action"][:, :7], proprio=dict(ee=c["observation/state"]), language=TEXT
    ),
)
TDROID = (
    {
        "action": V7,
        TEXT: "text",
        "observation/static_image": "image",
        "observation/cartesian_position": (6,),
        "observation/gripper_position": ONE,
    },
    lambda c: dict(
        action=cat(c["action"][:, :6], settled(c["action"][:, 6])),
        proprio=dict(
            ee=cat(c["observation/cartesian_position"], c["observation/gripper_position"])
        ),
        language=TEXT,
    ),
)
DROID = (
    {
        "action": V7,
        "action_dict/cartesian_velocity": (6,),
        "action_dict/gripper_position": ONE,
        "observation/cartesian_position": (6,),
        "observation/gripper_position": ONE,
        "observation/joint_position": V7,
        "observation/exterior_image_1_left": "image",
        "observation/exterior_image_2_left": "image",
        "observation/wrist_image_left": "image",
        TEXT: "text",
        "language_instruction_2": "text",
        "language_instruction_3": "text",
        "episode_metadata/file_path": "text",
    },
    lambda c: dict(
        action=cat(c["action_dict/cartesian_velocity"], 1 - c["action_dict/gripper_position"]),
        proprio=dict(
            ee=cat(
                c["observation/cartesian_position"],
                1 - c["observation/gripper_position"],  # ! OpenVLA: 1 = closed
            ),
            joints=c["observation/joint_position"],
        ),
        language=TEXT,
    ),
)

CASES = {
    "bridge": (
        BRIDGE,
        lambda c: dict(
            action=c["action"][1:],
            proprio=dict(ee=c["observation/state"][1:]),
            language=TEXT,
            steps=range(1, len(c["action"])),
        ),
    ),
    "bridge_dataset": (BRIDGE, bridge(0)),
    "bridge_orig": (BRIDGE, bridge(1)),
    "fractal20220817_data": (
        {
            **RT1,
            "observation/base_pose_tool_reached": V7,
            "observation/gripper_closed": ONE,
        },
        lambda c: dict(
            action=arm(c, opened(c["action/gripper_closedness_action"])),
            proprio=dict(
                ee_quat=cat(
                    c["observation/base_pose_tool_reached"],
                    1 - c["observation/gripper_closed"],  # ! Octo: 1 = closed
                )
            ),
            language=SAID,
        ),
    ),
    "kuka": (
        {
            **RT1,
            "observation/clip_function_input/base_pose_tool_reached": V7,
            "observation/gripper_closed": ONE,
        },
        lambda c: dict(
            action=arm(c, opened(c["action/gripper_closedness_action"])),
            proprio=dict(
                ee_quat=cat(
                    c["observation/clip_function_input/base_pose_tool_reached"],
                    1 - c["observation/gripper_closed"],  # !
                )
            ),
            language=None,
        ),
    ),
    "taco_play": (
        {
            "action/rel_actions_world": V7,
            "action/actions": V7,
            "observation/robot_obs": (15,),
            "observation/rgb_static": "image",
            "observation/rgb_gripper": "image",
            SAID: "text",
        },
        lambda c: dict(
            action=cat(
                c["action/rel_actions_world"][:, :6],
                np.clip(c["action/rel_actions_world"][:, 6], 0, 1),
            ),
            proprio=dict(
                ee=c["observation/robot_obs"][:, :7],  # ! Octo takes dim 7 for the gripper
                joints=c["observation/robot_obs"][:, 7:14],
            ),
            language=SAID,
        ),
    ),
    "jaco_play": (
        {
            "action/world_vector": V3,
            "action/gripper_closedness_action": ONE,
            "observation/end_effector_cartesian_pos": V7,
            "observation/joint_pos": (8,),
            "observation/image": "image",
            "observation/image_wrist": "image",
            SAID: "text",
        },
        lambda c: dict(
            action=cat(
                c["action/world_vector"],
                np.zeros_like(c["action/world_vector"]),
                opened(c["action/gripper_closedness_action"]),
            ),
            proprio=dict(ee_pose=c["observation/end_effector_cartesian_pos"]),
            language=SAID,
        ),
    ),
    "berkeley_cable_routing": (
        {
            **PACKED,
            "observation/robot_state": V7,
            "observation/image": "image",
            "observation/top_image": "image",
            "observation/wrist45_image": "image",
            "observation/wrist225_image": "image",
        },
        lambda c: dict(
            action=arm(c, zeros(c, 1)),
            proprio=dict(joints=c["observation/robot_state"]),
            language=None,
        ),
    ),
    "roboturk": (
        {
            **PACKED,
            "action/gripper_closedness_action": ONE,
            "observation/front_rgb": "image",
        },
        lambda c: dict(action=arm(c, 1 - closing(c)), proprio={}, language=None),
    ),
    "nyu_door_opening_surprising_effectiveness": (
        RT1,
        lambda c: dict(
            action=arm(c, opened(c["action/gripper_closedness_action"])),
            proprio={},
            language=None,
        ),
    ),
    "viola": (
        {
            **PACKED,
            "action/gripper_closedness_action": (),
            "observation/agentview_rgb": "image",
            "observation/eye_in_hand_rgb": "image",
            "observation/joint_states": V7,
            "observation/gripper_states": ONE,
            "observation/ee_states": (16,),
        },
        lambda c: dict(
            action=arm(c, 1 - closing(c)),
            proprio=dict(
                joints=c["observation/joint_states"], gripper=c["observation/gripper_states"]
            ),
            language=None,
        ),
    ),
    "berkeley_autolab_ur5": (
        {
            **PACKED,
            "action/gripper_closedness_action": (),
            "observation/image": "image",
            "observation/hand_image": "image",
            "observation/robot_state": (15,),
        },
        lambda c: dict(
            action=arm(c, opened(c["action/gripper_closedness_action"])),
            proprio=dict(
                ee_quat=cat(
                    c["observation/robot_state"][:, 6:13],
                    1 - c["observation/robot_state"][:, 13],  # ! Octo: 1 = closed
                )
            ),
            language=SAID,
        ),
    ),
    "toto": (
        {
            **PACKED,
            "action/open_gripper": "flag",
            "observation/image": "image",
            "observation/state": V7,
        },
        lambda c: dict(
            action=arm(c, np.where(c["action/open_gripper"], 1.0, 0.0)),
            proprio=dict(joints=c["observation/state"]),
            language=None,
        ),
    ),
    "language_table": (
        {
            "action": (2,),
            "observation/effector_translation": (2,),
            "observation/effector_target_translation": (2,),
            "observation/instruction": "code points",
            "observation/rgb": "image",
        },
        lambda c: dict(
            action=cat(c["action"], zeros(c, 2), zeros(c, 2), 1 + zeros(c, 1)),
            proprio=dict(effector=c["observation/effector_translation"]),
            language="observation/instruction",
        ),
    ),
    "stanford_hydra_dataset_converted_externally_to_rlds": (
        {**WRIST, "observation/state": (27,)},
        lambda c: dict(
            action=cat(c["action"][:, :6], 1 - c["action"][:, 6]),
            proprio=dict(
                ee=cat(
                    c["observation/state"][:, :3],
                    c["observation/state"][:, 7:10],
                    c["observation/state"][:, 24],
                )
            ),
            language=None,
        ),
    ),
    "austin_buds_dataset_converted_externally_to_rlds": (
        {**WRIST, "observation/state": (24,)},
        osc_joints(),
    ),
    "nyu_franka_play_dataset_converted_externally_to_rlds": (
        {
            **PLAIN,
            "action": (15,),
            "observation/state": (13,),
            "observation/image_additional_view": "image",
        },
        lambda c: dict(
            action=cat(c["action"][:, 7:13], np.clip(c["action"][:, 13], 0, 1)),
            proprio=dict(
                ee_euler=c["observation/state"][:, 7:], joints=c["observation/state"][:, :7]
            ),
            language=None,
        ),
    ),
    "furniture_bench_dataset_converted_externally_to_rlds": (
        {**WRIST, "action": (8,), "observation/state": (35,)},
        lambda c: dict(
            action=cat(
                c["action"][:, :3],
                euler(c["action"][:, 3:7]),
                1 - np.clip(c["action"][:, 7], 0, 1),
            ),
            proprio=dict(ee_quat=cat(c["observation/state"][:, :7], c["observation/state"][:, 34])),
            language=TEXT,
        ),
    ),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": (
        {**PLAIN, "action": (8,), "observation/state": (21,)},
        lambda c: dict(
            action=c["action"][:, :7],
            proprio=dict(joints=c["observation/state"][:, :7]),
            language=TEXT,
        ),
    ),
    "austin_sailor_dataset_converted_externally_to_rlds": (
        {**WRIST, "observation/state": (8,)},
        lambda c: dict(action=osc(c), proprio=dict(ee_quat=c["observation/state"]), language=None),
    ),
    "austin_sirius_dataset_converted_externally_to_rlds": (
        {**WRIST, "observation/state": (8,)},
        osc_joints(),  # the same numbers as Octo's; ! joints and gripper by name
    ),
    "bc_z": (
        {
            "action/future/xyz_residual": (30,),
            "action/future/axis_angle_residual": (30,),
            "action/future/target_close": "ten flags",
            "observation/image": "image",
            "observation/present/xyz": V3,
            "observation/present/axis_angle": V3,
            "observation/present/sensed_close": ONE,
            SAID: "text",
        },
        lambda c: dict(
            action=cat(
                c["action/future/xyz_residual"][:, :3],
                c["action/future/axis_angle_residual"][:, :3],
                1 - c["action/future/target_close"][:, 0].astype(float),
            ),
            proprio=dict(
                ee_rotvec=cat(
                    c["observation/present/xyz"],
                    c["observation/present/axis_angle"],
                    1 - c["observation/present/sensed_close"],  # ! Octo: 1 = closed
                )
            ),
            language=SAID,
        ),
    ),
    "dlr_edan_shared_control_converted_externally_to_rlds": (
        {**PLAIN, "observation/state": V7},
        lambda c: dict(
            action=cat(c["action"][:, :6], 1 - c["action"][:, 6]),
            proprio=dict(ee_zxy=c["observation/state"]),
            language=TEXT,
        ),
    ),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": (
        {**WRIST, "action": (8,), "observation/state": (20,)},
        lambda c: dict(
            action=cat(c["action"][:, :3], euler(c["action"][:, 3:7]), c["action"][:, 7]),
            proprio=dict(
                joints=c["observation/state"][:, :7], gripper=c["observation/state"][:, 7:8]
            ),
            language=TEXT,
        ),
    ),
    "utaustin_mutex": ({**WRIST, "observation/state": (24,)}, osc_joints()),
    "berkeley_fanuc_manipulation": (
        {**WRIST, "action": (6,), "observation/state": (13,)},
        lambda c: dict(
            action=cat(c["action"], 1 - c["observation/state"][:, 6]),
            proprio=dict(
                joints=c["observation/state"][:, :6],
                gripper=1 - c["observation/state"][:, 6:7],  # ! Octo: as recorded
            ),
            language=TEXT,
        ),
    ),
    "cmu_stretch": (
        {**PLAIN, "action": (8,), "observation/state": (4,)},
        lambda c: dict(
            action=c["action"][:, :7],
            proprio=dict(
                ee=cat(c["observation/state"][:, :3], zeros(c, 3), c["observation/state"][:, 3])
            ),
            language=TEXT,
        ),
    ),
    "droid": DROID,
    "libero_spatial_no_noops": LIBERO,
    "libero_object_no_noops": LIBERO,
    "libero_goal_no_noops": LIBERO,
    "libero_10_no_noops": LIBERO,
    # HDF5, as LIBERO's create_dataset.py, robomimic's and ALOHA's scripts write it.
    "libero_hdf5": (
        {
            "actions": V7,
            "states": (77,),
            "rewards": (),
            "obs/ee_states": (6,),
            "obs/ee_pos": V3,
            "obs/ee_ori": V3,
            "obs/gripper_states": (2,),
            "obs/joint_states": V7,
            "obs/agentview_rgb": "image",
            "obs/eye_in_hand_rgb": "image",
            TEXT: "text",
        },
        lambda c: dict(
            action=cat(c["actions"][:, :6], 1 - np.clip(c["actions"][:, 6], 0, 1)),
            proprio=dict(ee_fingers=cat(c["obs/ee_states"], c["obs/gripper_states"])),
            language=TEXT,
        ),
    ),
    "robomimic_hdf5": (
        {
            "actions": V7,
            "obs/robot0_eef_pos": V3,
            "obs/robot0_eef_quat": (4,),
            "obs/robot0_gripper_qpos": (2,),
            "obs/agentview_image": "image",
            "obs/robot0_eye_in_hand_image": "image",
        },
        lambda c: dict(
            action=cat(c["actions"][:, :6], 1 - np.clip(c["actions"][:, 6], 0, 1)),
            proprio=dict(
                ee_fingers=cat(
                    c["obs/robot0_eef_pos"],
                    Rotation.from_quat(c["obs/robot0_eef_quat"]).as_rotvec(),
                    c["obs/robot0_gripper_qpos"],
                )
            ),
            language=None,
        ),
    ),
    "aloha_hdf5": (aloha_hdf5(14, "cam_high", "cam_low"), every_fifth_hdf5),
    "aloha_mobile_hdf5": (
        {**aloha_hdf5(14, "cam_high"), "base_action": (2,)},
        lambda c: {
            **every_fifth_hdf5(c),
            "action": cat(c["action"], c["base_action"])[::5],
        },
    ),
    # The rest of Octo's table, and OpenVLA's additions.
    "columbia_cairlab_pusht_real": (
        {
            **PACKED,
            "action/gripper_closedness_action": (),
            "observation/robot_state": (2,),
            "observation/image": "image",
            "observation/wrist_image": "image",
        },
        lambda c: dict(
            action=arm(c, opened(c["action/gripper_closedness_action"])),  # ! Octo: as recorded
            proprio=dict(effector=c["observation/robot_state"]),
            language=SAID,
        ),
    ),
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": (
        {
            **PLAIN,
            "action": (4,),
            "observation/ee_position": V3,
            "observation/ee_orientation": (4,),
            "observation/state": (8,),
        },
        lambda c: dict(
            action=cat(c["action"][:, :3], zeros(c, 3), c["action"][:, 3]),
            proprio=dict(
                ee_recorded=cat(c["observation/ee_position"], c["observation/ee_orientation"]),
                joints=c["observation/state"][:, :7],
                gripper=c["observation/state"][:, 7:],
            ),
            language=TEXT,
        ),
    ),
    "nyu_rot_dataset_converted_externally_to_rlds": (
        {**PLAIN, "observation/state": V7},
        lambda c: dict(
            action=cat(c["action"][:, :6], 1 - c["action"][:, 6]),  # ! recorded: 1 = closed
            proprio=dict(ee=cat(c["observation/state"][:, :6], 1 - c["observation/state"][:, 6])),
            language=TEXT,
        ),
    ),
    "maniskill_dataset_converted_externally_to_rlds": (
        {
            **WRIST,
            "observation/tcp_pose": V7,
            "observation/state": (18,),
            "episode_metadata/file_path": "text",
            "episode_metadata/episode_id": "text",
        },
        lambda c: dict(
            action=cat(c["action"][:, :6], (c["action"][:, 6] + 1) / 2),  # ! recorded: -1 … 1
            proprio=dict(
                ee_quat=cat(
                    c["observation/tcp_pose"][:, :3],
                    w_last(c["observation/tcp_pose"][:, 3:]),  # !
                    c["observation/state"][:, 7],
                )
            ),
            language=TEXT,
        ),
    ),
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": (
        {**PLAIN, "action": (8,), "observation/highres_image": "image"},
        lambda c: dict(action=c["action"][:, :7], proprio={}, language=TEXT),
    ),
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": (
        {**PLAIN, "action": (4,), "observation/state": V7},
        lambda c: dict(
            action=cat(c["action"][:, :3], zeros(c, 3), c["action"][:, 3]),
            proprio=dict(ee=c["observation/state"]),
            language=TEXT,
        ),
    ),
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": PR2,
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": PR2,
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds": (
        {
            **PLAIN,
            "observation/image2": "image",
            "observation/hand_image": "image",
            "observation/end_effector_pose": (6,),
            "observation/joint_state": (14,),
        },
        lambda c: dict(
            action=c["action"],
            proprio=dict(
                ee_ypr=c["observation/end_effector_pose"],
                joints=c["observation/joint_state"][:, :7],
            ),
            language=TEXT,
        ),
    ),
    "utokyo_xarm_bimanual_converted_externally_to_rlds": (
        {**PLAIN, "action": (14,), "observation/pose_r": (6,)},
        lambda c: dict(
            action=c["action"][:, 7:],
            proprio=dict(ee_ypr=c["observation/pose_r"]),
            language=TEXT,
        ),
    ),
    "berkeley_mvp_converted_externally_to_rlds": (
        {
            **JOINTS,
            "observation/pose": V7,
        },
        lambda c: dict(
            action=cat(c["action"][:, :7], 1 - c["action"][:, 7]),
            proprio=dict(
                ee_recorded=c["observation/pose"],
                joints=c["observation/joint_pos"],
                gripper=np.where(c["observation/gripper"], 0.0, 1.0)[:, None],  # ! Octo: 1 = closed
            ),
            language=TEXT,
        ),
    ),
    "berkeley_rpt_converted_externally_to_rlds": (JOINTS, every_third_joint_motion),
    "kaist_nonprehensile_converted_externally_to_rlds": (
        {**PLAIN, "action": (20,), "observation/state": (21,)},
        lambda c: dict(
            action=cat(c["action"][:, :6], zeros(c, 1)),
            proprio=dict(ee_pose=c["observation/state"][:, 14:]),
            language=TEXT,
        ),
    ),
    "stanford_mask_vit_converted_externally_to_rlds": (
        {
            **PLAIN,
            "action": (5,),
            "observation/end_effector_pose": (5,),
            "observation/state": (15,),
        },
        lambda c: dict(
            action=cat(  # ! Octo: yaw in roll's place, the gripper as recorded
                c["action"][:, :3], zeros(c, 2), c["action"][:, 3], (1 - c["action"][:, 4]) / 2
            ),
            proprio=dict(
                ee=cat(
                    c["observation/end_effector_pose"][:, :3],
                    zeros(c, 2),
                    c["observation/end_effector_pose"][:, 3:],
                ),
                joints=c["observation/state"][:, :7],
            ),
            language=TEXT,
        ),
    ),
    "tokyo_u_lsmo_converted_externally_to_rlds": (
        {**PLAIN, "observation/state": (13,)},
        lambda c: dict(
            action=c["action"],
            proprio=dict(
                ee=cat(c["observation/state"][:, :6], c["observation/state"][:, 12]),
                joints=c["observation/state"][:, 6:12],
            ),
            language=TEXT,
        ),
    ),
    "dlr_sara_pour_converted_externally_to_rlds": (
        {**PLAIN, "observation/state": (6,)},
        lambda c: dict(
            action=c["action"], proprio=dict(ee_zxy_pose=c["observation/state"]), language=TEXT
        ),
    ),
    "dlr_sara_grid_clamp_converted_externally_to_rlds": (
        {**PLAIN, "observation/state": (12,)},
        lambda c: dict(
            action=c["action"],
            proprio=dict(ee_zxy_pose=c["observation/state"][:, :6]),
            language=TEXT,
        ),
    ),
    "asu_table_top_converted_externally_to_rlds": (
        {**PLAIN, "ground_truth_states/EE": (6,), "observation/state": V7},
        lambda c: dict(
            action=c["action"],
            proprio=dict(
                ee=cat(c["ground_truth_states/EE"], c["observation/state"][:, 6]),
                joints=c["observation/state"][:, :6],
            ),
            language=TEXT,
        ),
    ),
    "stanford_robocook_converted_externally_to_rlds": (
        {
            "action": V7,
            TEXT: "text",
            "observation/state": V7,
            **{f"observation/image_{i}": "image" for i in (1, 2, 3, 4)},
        },
        lambda c: dict(action=c["action"], proprio=dict(ee=c["observation/state"]), language=TEXT),
    ),
    "imperialcollege_sawyer_wrist_cam": (
        {**WRIST, "action": (8,), "observation/state": ONE},
        lambda c: dict(
            action=c["action"][:, :7],
            proprio=dict(gripper=c["observation/state"]),  # ! Octo: none
            language=TEXT,
        ),
    ),
    "uiuc_d3field": (
        {
            "action": V3,
            TEXT: "text",
            "observation/state": (4, 4),
            **{f"observation/image_{i}": "image" for i in (1, 2, 3, 4)},
        },
        lambda c: dict(action=cat(c["action"], zeros(c, 4)), proprio={}, language=TEXT),
    ),
    "cmu_playing_with_food": (
        {**PLAIN, "action": (8,), "observation/finger_vision_1": "image"},
        lambda c: dict(
            action=cat(c["action"][:, :3], euler(c["action"][:, 3:7]), c["action"][:, 7]),
            proprio={},
            language=TEXT,
        ),
    ),
    "cmu_play_fusion": (
        {**PLAIN, "action": (9,), "observation/state": (8,)},
        lambda c: dict(
            # ! Octo: the first three and the last four of nine
            action=cat(c["action"][:, :3], euler(c["action"][:, 3:7]), c["action"][:, 7]),
            proprio=dict(
                joints=c["observation/state"][:, :7], gripper=c["observation/state"][:, 7:]
            ),
            language=TEXT,
        ),
    ),
    "gnm_dataset": (
        {
            "action": (2,),
            TEXT: "text",
            "observation/image": "image",
            "observation/position": (2,),
            "observation/yaw": ONE,
            "observation/state": V3,
        },
        every_third_waypoint,
    ),
    **dict.fromkeys(
        ("berkeley_gnm_recon", "berkeley_gnm_cory_hall", "berkeley_gnm_sac_son"),
        (
            {
                "action": (2,),
                "action_angle": V3,
                TEXT: "text",
                "observation/image": "image",
                "observation/position": (2,),
                "observation/yaw": ONE,
                "observation/state": V3,
            },
            lambda c: dict(  # ! Octo: zeros for height, two angles and a gripper
                action=c["action"],
                proprio=dict(base_pose=cat(c["observation/position"], c["observation/yaw"])),
                language=TEXT,
            ),
        ),
    ),
    "aloha_static_dataset": (aloha(14, "cam_high", "cam_low"), every_fifth),
    "aloha_dagger_dataset": (aloha(14, "cam_high", "cam_low"), every_fifth),
    "aloha_mobile_dataset": (aloha(16, "cam_high"), every_fifth),
    "fmb_dataset": (
        {
            "action": V7,
            TEXT: "text",
            "observation/image_side_1": "image",
            "observation/image_side_2": "image",
            "observation/image_wrist_1": "image",
            "observation/image_wrist_2": "image",
            "observation/eef_pose": V7,
            "observation/state_gripper_pose": (),
            "observation/joint_pos": V7,
        },
        lambda c: dict(
            action=c["action"],
            proprio=dict(
                ee_recorded=c["observation/eef_pose"],
                gripper=c["observation/state_gripper_pose"][:, None],
                joints=c["observation/joint_pos"],
            ),
            language=TEXT,
        ),
    ),
    "dobbe": (
        {
            "action": V7,
            TEXT: "text",
            "observation/wrist_image": "image",
            "observation/state": V7,
        },
        lambda c: dict(action=c["action"], proprio=dict(ee=c["observation/state"]), language=TEXT),
    ),
    "roboset": (
        {
            "action": (8,),
            TEXT: "text",
            "observation/image_left": "image",
            "observation/image_right": "image",
            "observation/image_wrist": "image",
            "observation/state": (8,),
        },
        lambda c: dict(
            action=cat(c["action"][:, :7], 1 - np.clip(c["action"][:, 7], 0, 1)),
            proprio=dict(
                joints=c["observation/state"][:, :7], gripper=c["observation/state"][:, 7:]
            ),
            language=TEXT,
        ),
    ),
    "robo_net": (
        {**PLAIN, "action": (5,), "observation/image1": "image", "observation/state": (5,)},
        lambda c: dict(  # ! Octo: yaw in roll's place
            action=cat(c["action"][:, :3], zeros(c, 2), c["action"][:, 3:]),
            proprio=dict(
                ee=cat(c["observation/state"][:, :3], zeros(c, 2), c["observation/state"][:, 3:])
            ),
            language=TEXT,
        ),
    ),
    "rh20t": (
        {
            "action/tcp_base": (6,),
            "action/gripper": (),
            TEXT: "text",
            "observation/image_front": "image",
            "observation/image_side_right": "image",
            "observation/image_wrist": "image",
            "observation/tcp_base": (6,),
            "observation/gripper_width": (),
        },
        lambda c: dict(
            action=cat(c["action/tcp_base"], c["action/gripper"]),
            proprio=dict(ee=cat(c["observation/tcp_base"], c["observation/gripper_width"])),
            language=TEXT,
        ),
    ),
    "bridge_oxe": (
        {
            **PACKED,
            "action/open_gripper": "flag",
            "observation/image": "image",
            "observation/state": V7,
        },
        lambda c: dict(
            action=cat(
                c["observation/state"][2:, :6] - c["observation/state"][1:-1, :6],
                c["action/open_gripper"][1:-1].astype(float),
            ),
            proprio=dict(ee=c["observation/state"][1:-1]),
            language=SAID,
            steps=range(1, len(c["observation/state"]) - 1),
        ),
    ),
    "droid_wipe": (DROID[0], lambda c: {**DROID[1](c), "language": TEXT}),
    **{
        f"tdroid_{task}": TDROID
        for task in (
            "carrot_in_bowl",
            "pour_corn_in_pot",
            "flip_pot_upright",
            "move_object_onto_plate",
            "knock_object_over",
            "cover_object_with_towel",
        )
    },
}
# What Octo blanks, with its instructions, as OpenVLA.
for _name, _said in oxe.BLANKED.items():
    _features, _made = CASES[_name]
    CASES[f"{_name}_with_language"] = (
        _features,
        lambda c, made=_made, said=_said: {**made(c), "language": said},
    )

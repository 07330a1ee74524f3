"""Rows for data sets of Open X-Embodiment, DROID and LIBERO in RLDS: ``dict(type="oxe",
row="viola")``. A row is called as TFDS calls its data set (but for `bridge`).

Where nothing else is said, a row makes what Octo makes (octo-models/octo @241fb35,
octo/data/oxe/oxe_standardization_transforms.py and oxe_dataset_configs.py): the action of 7
numbers, the views, no instruction where Octo blanks it. Otherwise on purpose, for all rows:

- proprio stands in named groups with a stated meaning, not in 7 or 8 numbers by position; a data
  set without any has none (Octo: one zero), and a gripper's reading counts its opening (1 = open)
  where the data set documents the opposite;
- a missing instruction is no instruction (Octo: the empty text);
- what an action means (absolute, scaled, velocities) is stated by its action space.

Feature shapes and meanings are those of TFDS's catalogue (tensorflow/datasets, docs/catalog),
control rates of RDT's table (thu-ml/RoboticsDiffusionTransformer, dataset_control_freq.json).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vla_jax import plugin
from vla_jax.data.standardizers import _table
from vla_jax.data.standardizers._table import Row

SAID = "observation/natural_language_instruction"
DELTA = ("action/world_vector", "action/rotation_delta")
CLOSEDNESS = "action/gripper_closedness_action"
OSC = ("action[:6]", "action[-1] | clip01 | invert")  # gripper: -1 = open, 1 = closed
DLR_EDAN = "dlr_edan_shared_control_converted_externally_to_rlds"
IAMLAB = "iamlab_cmu_pickup_insert_converted_externally_to_rlds"
LIBERO = Row(
    # openvla/openvla, prismatic/vla/datasets/rlds/oxe/transforms.py: libero_dataset_transform and
    # configs.py. Both of robosuite's fingers are kept. Pictures are upright already (turned by
    # OpenVLA's regenerate_libero_dataset.py).
    embodiment="franka",
    action_space="franka_osc",
    views={"primary": "observation/image", "wrist": "observation/wrist_image"},
    action=OSC,
    proprio={"ee_fingers": "observation/state"},  # xyz, axis-angle, two fingers
    language="language_instruction",
)
AUSTIN = dict(
    embodiment="franka",
    action_space="franka_deoxys",
    views={"primary": "observation/image", "wrist": "observation/wrist_image"},
    action=OSC,
)
DROID = dict(
    embodiment="franka",
    action_space="franka_droid",
    views={
        "primary": "observation/exterior_image_1_left",
        "secondary": "observation/exterior_image_2_left",
        "wrist": "observation/wrist_image_left",
    },
    action=("action_dict/cartesian_velocity", "action_dict/gripper_position | invert"),
    proprio={
        "ee": (
            "observation/cartesian_position",
            "observation/gripper_position | invert",  # recorded: 1 = closed
        ),
        "joints": "observation/joint_position",
    },
    language=("language_instruction", "language_instruction_2", "language_instruction_3"),
    episode_id="file_path",
)
DROID_WIPE_VIEWS = {
    "primary": "observation/exterior_image_2_left",
    "wrist": "observation/wrist_image_left",
}
TDROID = Row(  # OpenVLA's tdroid_dataset_transform
    embodiment="franka",
    action_space="franka_ee_5hz",
    views={"primary": "observation/static_image"},
    action=("action[:6]", "action[-1] | binarize"),
    proprio={"ee": ("observation/cartesian_position[:6]", "observation/gripper_position[-1]")},
    language="language_instruction",
)
PR2 = Row(
    embodiment="pr2",
    action_space="pr2_ee",
    views={"primary": "observation/image"},
    action="action[:-1]",  # the last terminates
    proprio={"ee": "observation/state"},
    language="language_instruction",
)
SARA = Row(
    embodiment="sara",
    action_space="sara_ee",
    views={"primary": "observation/image"},
    action="action",
    proprio={"ee_zxy_pose": "observation/state[:6]"},
    language="language_instruction",
)
ALOHA = dict(
    embodiment="aloha",
    action="action",
    proprio={"arms": "observation/state"},
    language="language_instruction",
    stride=5,
)
ALOHA_VIEWS = {
    "primary": "observation/cam_high",
    "secondary": "observation/cam_low",
    "left_wrist": "observation/cam_left_wrist",
    "right_wrist": "observation/cam_right_wrist",
}
OSC_HDF5 = ("actions[:6]", "actions[-1] | clip01 | invert")
ALOHA_HDF5 = dict(
    embodiment="aloha", proprio={"arms": "observations/qpos"}, language=None, stride=5
)
ALOHA_HDF5_VIEWS = {
    view: name.replace("observation/", "observations/images/") for view, name in ALOHA_VIEWS.items()
}
WAYPOINT_STRIDE = 3
GNM = dict(
    embodiment="rover",
    views={"wrist": "observation/image"},
    action="action",
    proprio={"base_pose": ("observation/position", "observation/yaw")},
    language="language_instruction",
)
BRIDGE_VIEWS = {"primary": "observation/image_0", "secondary": "observation/image_1"}
REACHED = dict(
    embodiment="widowx_reached",
    action_space="ee_reached_gripper",
    views=BRIDGE_VIEWS,
    action=("observation/state[:6] | to_next", "action[-1] | binarize"),
    proprio={"ee": "observation/state"},
    language="language_instruction",
    drop_last=1,
    episode_id=("file_path", "episode_id"),
)


def waypoint(action, position, yaw):
    """The place after WAYPOINT_STRIDE steps in the robot's frame, [T, 2]; 0 where there is none.

    In the unit of the recorded actions: displacements are scaled by what the first of them is to
    the motion it names (Octo: gnm_dataset_transform).
    """
    position, yaw = np.asarray(position, np.float64), np.reshape(yaw, -1)
    unit = np.linalg.norm(action[0]) / np.linalg.norm(position[1] - position[0])
    there = np.concatenate([position[WAYPOINT_STRIDE:], np.full((WAYPOINT_STRIDE, 2), np.nan)])
    east, north = np.nan_to_num(there[: len(position)] - position).T
    ahead = np.cos(yaw) * east + np.sin(yaw) * north
    aside = np.cos(yaw) * north - np.sin(yaw) * east
    return unit * np.stack([ahead, aside], axis=1)


ROWS = {
    # BridgeData V2 as RLDS (rail.eecs.berkeley.edu/datasets/bridge_release), commanded actions. The
    # first action of every episode is zero and is left out, as OpenVLA does
    # (bridge_orig_dataset_transform in its transforms.py). The flags has_image_* are wrong and are
    # not read.
    "bridge": Row(
        embodiment="widowx",
        action_space="ee_delta_gripper",
        views=BRIDGE_VIEWS,
        action="action",  # xyz delta, rpy delta, gripper (1 = open)
        proprio={"ee": "observation/state"},  # xyz, rpy, gripper
        language="language_instruction",
        drop_first=1,
        episode_id=("file_path", "episode_id"),  # the number alone repeats
    ),
    # The same data as Octo trains on them: what was reached instead of what was commanded, so that
    # the first step may stay; bridge_orig, OpenVLA's, drops it. Neither minds an Euler angle that
    # wraps round (to_next_angle would): kept, so that Octo's statistics fit.
    "bridge_dataset": Row(**REACHED),
    "bridge_orig": Row(**REACHED, drop_first=1),
    "fractal20220817_data": Row(
        embodiment="google_robot",
        action_space="google_robot_ee",
        views={"primary": "observation/image"},
        action=(*DELTA, f"{CLOSEDNESS} | rel2abs"),
        proprio={
            "ee_quat": (
                "observation/base_pose_tool_reached",
                "observation/gripper_closed | invert",
            )
        },
        language=SAID,
    ),
    # Pose and gripper are stored zlib-compressed (features.json says so; the reader unpacks them,
    # where Octo's transform must). "pick anything" says nothing: no instruction.
    "kuka": Row(
        embodiment="kuka_iiwa",
        action_space="kuka_iiwa_ee",
        views={"primary": "observation/image"},
        action=(*DELTA, f"{CLOSEDNESS} | rel2abs"),
        proprio={
            "ee_quat": (
                "observation/clip_function_input/base_pose_tool_reached",
                "observation/gripper_closed | invert",
            )
        },
        language=None,
    ),
    # TFDS's page has -1 = open; the authors' README (ErickRosete/tacorl, dataset/README.md) and
    # Octo have 1 = open.
    "taco_play": Row(
        embodiment="franka",
        action_space="franka_taco",
        views={"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"},
        action=("action/rel_actions_world[:6]", "action/rel_actions_world[-1] | clip01"),
        # Octo reads dim 7, a joint angle, as the gripper; the width is dim 6.
        proprio={"ee": "observation/robot_obs[:7]", "joints": "observation/robot_obs[7:14]"},
        language=SAID,
    ),
    "jaco_play": Row(
        embodiment="jaco",
        action_space="jaco_ee",
        views={"primary": "observation/image", "wrist": "observation/image_wrist"},
        action=("action/world_vector", "zeros(3)", f"{CLOSEDNESS} | rel2abs"),
        proprio={"ee_pose": "observation/end_effector_cartesian_pos"},
        language=SAID,
    ),
    # Velocities, and no gripper: its number is 0 throughout.
    "berkeley_cable_routing": Row(
        embodiment="franka",
        action_space="franka_twist",
        views={
            "primary": "observation/image",
            "secondary": "observation/top_image",
            "wrist": "observation/wrist45_image",
        },
        action=(*DELTA, "zeros(1)"),
        proprio={"joints": "observation/robot_state"},
        language=None,
    ),
    "roboturk": Row(
        embodiment="sawyer",
        action_space="sawyer_ee",
        views={"primary": "observation/front_rgb"},
        action=(*DELTA, f"{CLOSEDNESS} | clip01 | invert"),
        language=None,
    ),
    "nyu_door_opening_surprising_effectiveness": Row(
        embodiment="stretch",
        action_space="stretch_twist",
        views={"wrist": "observation/image"},
        action=(*DELTA, f"{CLOSEDNESS} | rel2abs"),
        language=None,
    ),
    "viola": Row(
        embodiment="franka",
        action_space="franka_deoxys",
        views={"primary": "observation/agentview_rgb", "wrist": "observation/eye_in_hand_rgb"},
        action=(*DELTA, f"{CLOSEDNESS} | clip01 | invert"),
        proprio={
            "joints": "observation/joint_states",
            "gripper": "observation/gripper_states",  # width, m
        },
        language=None,
    ),
    # robot_state: 6 joints, xyz, quaternion xyzw, gripper (1 = closed), whether it was blocked.
    "berkeley_autolab_ur5": Row(
        embodiment="ur5",
        action_space="ur5_ee",
        views={"primary": "observation/image", "wrist": "observation/hand_image"},
        action=(*DELTA, f"{CLOSEDNESS} | rel2abs"),
        proprio={
            "ee_quat": ("observation/robot_state[6:13]", "observation/robot_state[13] | invert")
        },
        language=SAID,
    ),
    # Called delta, but absolute poses, as far as OpenVLA's norm_stats tell: their mean position is
    # (0.39, 0.01, 0.36) m.
    "toto": Row(
        embodiment="franka",
        action_space="franka_pose_30hz",
        views={"primary": "observation/image"},
        action=(*DELTA, "action/open_gripper"),
        proprio={"joints": "observation/state"},
        language=None,
    ),
    "language_table": Row(
        embodiment="xarm",
        action_space="xarm_table",
        views={"primary": "observation/rgb"},
        action=("action", "zeros(4)", "ones(1)"),  # x, y; a pusher counts as an open gripper
        proprio={"effector": "observation/effector_translation"},
        language="observation/instruction | utf32",
    ),
    # state: xyz, quaternion, rpy, 7 joints, 7 joint velocities, 3 of the gripper.
    "stanford_hydra_dataset_converted_externally_to_rlds": Row(
        embodiment="franka",
        action_space="franka_ee_10hz",
        views={"primary": "observation/image", "wrist": "observation/wrist_image"},
        action=("action[:6]", "action[-1] | invert"),
        proprio={
            "ee": ("observation/state[:3]", "observation/state[7:10]", "observation/state[-3]")
        },
        language=None,
    ),
    "austin_buds_dataset_converted_externally_to_rlds": Row(
        **AUSTIN,
        proprio={"joints": "observation/state[:7]", "gripper": "observation/state[7]"},
        language=None,
    ),
    # Terminates with a dim of its own, the last, which is left out.
    "nyu_franka_play_dataset_converted_externally_to_rlds": Row(
        embodiment="franka",
        action_space="franka_ee_3hz",
        views={
            "primary": "observation/image",
            "secondary": "observation/image_additional_view",
        },
        action=("action[-8:-2]", "action[-2] | clip01"),
        proprio={"ee_euler": "observation/state[-6:]", "joints": "observation/state[:7]"},
        language=None,
    ),
    "furniture_bench_dataset_converted_externally_to_rlds": Row(
        embodiment="franka",
        action_space="franka_ee_10hz",
        views={"primary": "observation/image", "wrist": "observation/wrist_image"},
        action=(
            "action[:3]",
            "action[3:7] | rotation(quat_xyzw, euler_xyz)",
            "action[-1] | clip01 | invert",
        ),
        proprio={"ee_quat": ("observation/state[:7]", "observation/state[-1]")},
        language="language_instruction",
    ),
    # Documented as a pose; in mm and degrees, as far as OpenVLA's norm_stats tell: their mean
    # position is (410, 117, 192).
    "ucsd_kitchen_dataset_converted_externally_to_rlds": Row(
        embodiment="xarm",
        action_space="xarm_pose",
        views={"primary": "observation/image"},
        action="action[:-1]",  # the last terminates
        proprio={"joints": "observation/state[:7]"},
        language="language_instruction",
    ),
    "austin_sailor_dataset_converted_externally_to_rlds": Row(
        **AUSTIN,
        proprio={"ee_quat": "observation/state"},
        language=None,
    ),
    # Octo's table has pose and quaternion for its state; TFDS documents 7 joints and the gripper.
    "austin_sirius_dataset_converted_externally_to_rlds": Row(
        **AUSTIN,
        proprio={"joints": "observation/state[:7]", "gripper": "observation/state[7]"},
        language=None,
    ),
    # The first of the ten actions that a step stores. OpenVLA: use version 0.1.0, later ones are
    # broken (mixtures.py).
    "bc_z": Row(
        embodiment="google_robot",
        action_space="google_robot_bc_z",
        views={"primary": "observation/image"},
        action=(
            "action/future/xyz_residual[:3]",
            "action/future/axis_angle_residual[:3]",
            "action/future/target_close[0] | invert",
        ),
        proprio={
            "ee_rotvec": (
                "observation/present/xyz",
                "observation/present/axis_angle",
                "observation/present/sensed_close | invert",
            )
        },
        language=SAID,
    ),
    DLR_EDAN: Row(
        embodiment="edan",
        action_space="edan_ee",
        views={"primary": "observation/image"},
        action=("action[:6]", "action[-1] | invert"),
        proprio={"ee_zxy": "observation/state"},
        language="language_instruction",
    ),
    # Absolute poses (TFDS: "3x end-effector position, 4x end-effector quaternion").
    IAMLAB: Row(
        embodiment="franka",
        action_space="franka_pose_20hz",
        views={"primary": "observation/image", "wrist": "observation/wrist_image"},
        action=("action[:3]", "action[3:7] | rotation(quat_xyzw, euler_xyz)", "action[7]"),
        proprio={"joints": "observation/state[:7]", "gripper": "observation/state[7]"},
        language="language_instruction",
    ),
    "utaustin_mutex": Row(
        **AUSTIN,
        proprio={"joints": "observation/state[:7]", "gripper": "observation/state[7]"},
        language=None,
    ),
    # No gripper among the actions: its reading stands in. TFDS calls that reading "open status",
    # Octo inverts it to have 1 = open: Octo's is kept, for action and reading.
    "berkeley_fanuc_manipulation": Row(
        embodiment="fanuc",
        action_space="fanuc_ee",
        views={"primary": "observation/image", "wrist": "observation/wrist_image"},
        action=("action", "observation/state[6] | invert"),
        proprio={
            "joints": "observation/state[:6]",
            "gripper": "observation/state[6] | invert",
        },
        language="language_instruction",
    ),
    "cmu_stretch": Row(
        embodiment="stretch",
        action_space="stretch_ee",
        views={"primary": "observation/image"},
        action="action[:-1]",  # the last terminates
        proprio={"ee": ("observation/state[:3]", "zeros(3)", "observation/state[-1]")},
        language="language_instruction",
    ),
    # openvla/openvla, prismatic/vla/datasets/rlds/oxe/utils/droid_utils.py:
    # droid_baseact_transform. It swaps the two outer cameras at random; here each keeps its name.
    # All three instructions, where there are so many (OpenVLA: the first).
    "droid": Row(**DROID),
    "libero_spatial_no_noops": LIBERO,
    "libero_object_no_noops": LIBERO,
    "libero_goal_no_noops": LIBERO,
    "libero_10_no_noops": LIBERO,
    # HDF5 as it is published (data/sources/hdf5.py). robosuite's grippers command, and ALOHA's
    # hold, as in the rows of RLDS. LIBERO's pictures are upside down: OpenVLA turns them when it
    # writes RLDS, and at every evaluation (experiments/robot/libero/libero_utils.py).
    "libero_hdf5": Row(
        embodiment="franka",
        action_space="franka_osc",
        views={"primary": "obs/agentview_rgb", "wrist": "obs/eye_in_hand_rgb"},
        turned=True,
        action=OSC_HDF5,
        proprio={"ee_fingers": ("obs/ee_states", "obs/gripper_states")},
        language="language_instruction",
    ),
    "robomimic_hdf5": Row(
        embodiment="franka",
        action_space="franka_osc",
        views={"primary": "obs/agentview_image", "wrist": "obs/robot0_eye_in_hand_image"},
        action=OSC_HDF5,
        proprio={
            "ee_fingers": (
                "obs/robot0_eef_pos",
                "obs/robot0_eef_quat | rotation(quat_xyzw, rotvec)",
                "obs/robot0_gripper_qpos",
            )
        },
        language=None,
    ),
    # Pictures that act-plus-plus compressed went to OpenCV's encoder, which takes RGB for BGR: say
    # bgr=True of those. Others wrote true JPEG, and no byte tells which.
    "aloha_hdf5": Row(
        **ALOHA_HDF5, action_space="aloha_joints", views=ALOHA_HDF5_VIEWS, action="action"
    ),
    "aloha_mobile_hdf5": Row(
        **ALOHA_HDF5,
        action_space="aloha_joints_base",
        views={view: name for view, name in ALOHA_HDF5_VIEWS.items() if view != "secondary"},
        action=("action", "base_action"),
    ),
    # The rest of Octo's table (@241fb35), and OpenVLA's additions. ------------------------------
    # Commands and a pusher without a gripper: Octo takes the closing commands as they are.
    "columbia_cairlab_pusht_real": Row(
        embodiment="ur5",
        action_space="ur5_pusht",
        views={"primary": "observation/image", "wrist": "observation/wrist_image"},
        action=(*DELTA, f"{CLOSEDNESS} | rel2abs"),
        proprio={"effector": "observation/robot_state"},
        language=SAID,
    ),
    "stanford_kuka_multimodal_dataset_converted_externally_to_rlds": Row(
        embodiment="kuka_iiwa",
        action_space="kuka_iiwa_touch",
        views={"primary": "observation/image"},
        action=("action[:3]", "zeros(3)", "action[-1]"),
        proprio={
            "ee_recorded": ("observation/ee_position", "observation/ee_orientation"),
            "joints": "observation/state[:7]",
            "gripper": "observation/state[7]",
        },
        language="language_instruction",
    ),
    # Documented as 0 = open, 1 = closed; Octo takes it for the opposite.
    "nyu_rot_dataset_converted_externally_to_rlds": Row(
        embodiment="xarm",
        action_space="xarm_rot",
        views={"primary": "observation/image"},
        action=("action[:6]", "action[6] | invert"),
        proprio={"ee": ("observation/state[:6]", "observation/state[6] | invert")},
        language="language_instruction",
    ),
    # The gripper is -1 (closed) to 1 (open), and the quaternion has w first: Octo leaves both.
    "maniskill_dataset_converted_externally_to_rlds": Row(
        embodiment="franka",
        action_space="franka_maniskill",
        views={"primary": "observation/image", "wrist": "observation/wrist_image"},
        action=("action[:6]", "action[6] | scale(0.5) | add(0.5)"),
        proprio={
            "ee_quat": (
                "observation/tcp_pose[:3]",
                "observation/tcp_pose[3:] | rotation(quat_wxyz, quat_xyzw)",
                "observation/state[7]",
            )
        },
        language="language_instruction",
        episode_id=("file_path", "episode_id"),
    ),
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": Row(
        embodiment="franka",
        action_space="franka_ee_10hz",
        views={"primary": "observation/highres_image"},
        action="action[:-1]",  # the last terminates
        language="language_instruction",
    ),
    "ucsd_pick_and_place_dataset_converted_externally_to_rlds": Row(
        embodiment="xarm",
        action_space="xarm_twist",
        views={"primary": "observation/image"},
        action=("action[:3]", "zeros(3)", "action[-1]"),
        proprio={"ee": "observation/state"},
        language="language_instruction",
    ),
    "utokyo_pr2_opening_fridge_converted_externally_to_rlds": PR2,
    "utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds": PR2,
    "utokyo_xarm_pick_and_place_converted_externally_to_rlds": Row(
        embodiment="xarm",
        action_space="xarm_weblab",
        views={
            "primary": "observation/image",
            "secondary": "observation/image2",
            "wrist": "observation/hand_image",
        },
        action="action",
        proprio={
            "ee_ypr": "observation/end_effector_pose",  # Octo's final transform has none
            "joints": "observation/joint_state[:7]",
        },
        language="language_instruction",
    ),
    # The right arm of two. (Octo's final transform reads end_effector_pose, which is not there; the
    # earlier pose_r.)
    "utokyo_xarm_bimanual_converted_externally_to_rlds": Row(
        embodiment="xarm",
        action_space="xarm_weblab",
        views={"primary": "observation/image"},
        action="action[-7:]",
        proprio={"ee_ypr": "observation/pose_r"},
        language="language_instruction",
    ),
    "berkeley_mvp_converted_externally_to_rlds": Row(
        embodiment="xarm",
        action_space="xarm_joints",
        views={"wrist": "observation/hand_image"},
        action=("action[:-1]", "action[-1] | invert"),
        proprio={
            "ee_recorded": "observation/pose",
            "joints": "observation/joint_pos",
            "gripper": "observation/gripper | invert",  # recorded: 1 = closed
        },
        language="language_instruction",
    ),
    # 30 Hz to 10: every third step, and the joints' motion to the next of them.
    "berkeley_rpt_converted_externally_to_rlds": Row(
        embodiment="franka",
        action_space="franka_joints_reached",
        views={"wrist": "observation/hand_image"},
        action=("observation/joint_pos[:7] | to_next", "action[-1] | invert"),
        proprio={
            "joints": "observation/joint_pos",
            "gripper": "observation/gripper | invert",  # recorded: 1 = closed
        },
        language="language_instruction",
        stride=3,
        drop_last=1,
    ),
    "kaist_nonprehensile_converted_externally_to_rlds": Row(
        embodiment="franka",
        action_space="franka_kaist",
        views={"primary": "observation/image"},
        action=("action[:6]", "zeros(1)"),
        proprio={"ee_pose": "observation/state[-7:]"},
        language="language_instruction",
    ),
    # x, y, z, yaw, gripper (-1 = open, 1 = closed). Octo lays the yaw where roll belongs, and
    # leaves the gripper.
    "stanford_mask_vit_converted_externally_to_rlds": Row(
        embodiment="sawyer",
        action_space="sawyer_maskvit",
        views={"primary": "observation/image"},
        action=("action[:3]", "zeros(2)", "action[3]", "action[4] | scale(-0.5) | add(0.5)"),
        proprio={
            "ee": (
                "observation/end_effector_pose[:3]",
                "zeros(2)",
                "observation/end_effector_pose[3:]",
            ),
            "joints": "observation/state[:7]",
        },
        language="language_instruction",
    ),
    "tokyo_u_lsmo_converted_externally_to_rlds": Row(
        embodiment="cobotta",
        action_space="cobotta_ee",
        views={"primary": "observation/image"},
        action="action",
        proprio={
            "ee": ("observation/state[:6]", "observation/state[-1]"),
            "joints": "observation/state[6:12]",
        },
        language="language_instruction",
    ),
    "dlr_sara_pour_converted_externally_to_rlds": SARA,
    "dlr_sara_grid_clamp_converted_externally_to_rlds": SARA,
    # The authors' README: action is "the absolute xyz and rpy in the next timestep".
    "asu_table_top_converted_externally_to_rlds": Row(
        embodiment="ur5",
        action_space="ur5_asu",
        views={"primary": "observation/image"},
        action="action",
        proprio={
            "ee": ("ground_truth_states/EE", "observation/state[-1]"),
            "joints": "observation/state[:6]",
        },
        language="language_instruction",
    ),
    # Velocities, of the gripper too.
    "stanford_robocook_converted_externally_to_rlds": Row(
        embodiment="franka",
        action_space="franka_robocook",
        views={"primary": "observation/image_1", "secondary": "observation/image_2"},
        action="action",
        proprio={"ee": "observation/state"},
        language="language_instruction",
    ),
    "imperialcollege_sawyer_wrist_cam": Row(
        embodiment="sawyer",
        action_space="sawyer_tool",
        views={"primary": "observation/image", "wrist": "observation/wrist_image"},
        action="action[:-1]",  # the last terminates
        proprio={"gripper": "observation/state"},  # Octo's final transform has none
        language="language_instruction",
    ),
    "uiuc_d3field": Row(
        embodiment="kinova_gen3",
        action_space="kinova_gen3_ee",
        views={"primary": "observation/image_1", "secondary": "observation/image_2"},
        action=("action", "zeros(3)", "zeros(1)"),
        language="language_instruction",
    ),
    # Its state is not documented and not read.
    "cmu_playing_with_food": Row(
        embodiment="franka",
        action_space="franka_ee_5hz",
        views={"primary": "observation/image", "wrist": "observation/finger_vision_1"},
        action=("action[:3]", "action[3:7] | rotation(quat_xyzw, euler_xyz)", "action[-1]"),
        language="language_instruction",
    ),
    # Nine numbers: position, quaternion, gripper, termination. Octo takes the first three and the
    # last four, half the quaternion and the termination among them.
    "cmu_play_fusion": Row(
        embodiment="franka",
        action_space="franka_ee_5hz",
        views={"primary": "observation/image"},
        action=("action[:3]", "action[3:7] | rotation(quat_xyzw, euler_xyz)", "action[7]"),
        proprio={"joints": "observation/state[:7]", "gripper": "observation/state[7]"},
        language="language_instruction",
    ),
    "gnm_dataset": Row(
        embodiment="rover",
        action_space="rover_waypoint",
        views={"primary": "observation/image"},
        action="waypoint",
        derived={"waypoint": (waypoint, ("action", "observation/position", "observation/yaw"))},
        proprio={"base_pose": "observation/state"},
        language="language_instruction",
        stride=WAYPOINT_STRIDE,
        drop_last=1,
    ),
    # The three that Octo's table had before gnm_dataset (@7b9de56; OpenVLA's still has them): the
    # recorded waypoints, and the camera by the name of a wrist's.
    "berkeley_gnm_recon": Row(**GNM, action_space="rover_waypoint_3hz"),
    "berkeley_gnm_cory_hall": Row(**GNM, action_space="rover_waypoint_5hz"),
    "berkeley_gnm_sac_son": Row(**GNM, action_space="rover_waypoint_10hz"),
    # 50 Hz to 10. Octo keeps the right wrist of the two.
    "aloha_static_dataset": Row(**ALOHA, action_space="aloha_joints", views=ALOHA_VIEWS),
    "aloha_dagger_dataset": Row(**ALOHA, action_space="aloha_joints", views=ALOHA_VIEWS),
    "aloha_mobile_dataset": Row(
        **ALOHA,
        action_space="aloha_joints_base",
        views={view: name for view, name in ALOHA_VIEWS.items() if view != "secondary"},
    ),
    "fmb_dataset": Row(
        embodiment="franka",
        action_space="franka_fmb",
        views={
            "primary": "observation/image_side_1",
            "secondary": "observation/image_side_2",
            "wrist": "observation/image_wrist_1",
        },
        action="action",
        proprio={
            "ee_recorded": "observation/eef_pose",
            "gripper": "observation/state_gripper_pose",
            "joints": "observation/joint_pos",
        },
        language="language_instruction",
    ),
    "dobbe": Row(
        embodiment="stretch",
        action_space="stretch_dobbe",
        views={"wrist": "observation/wrist_image"},  # OpenVLA calls it primary
        action="action",
        proprio={"ee": "observation/state"},
        language="language_instruction",
    ),
    "roboset": Row(
        embodiment="franka",
        action_space="franka_roboset",
        views={
            "primary": "observation/image_left",
            "secondary": "observation/image_right",
            "wrist": "observation/image_wrist",
        },
        action=("action[:7]", "action[-1] | clip01 | invert"),
        proprio={"joints": "observation/state[:7]", "gripper": "observation/state[7]"},
        language="language_instruction",
    ),
    # As in MaskViT, Octo lays the yaw where roll belongs. (Its concatenation of the readings lacks
    # an axis and fails.)
    "robo_net": Row(
        embodiment="several_arms",
        action_space="robonet_ee",
        views={"primary": "observation/image", "secondary": "observation/image1"},
        action=("action[:3]", "zeros(2)", "action[3]", "action[-1]"),
        proprio={
            "ee": (
                "observation/state[:3]",
                "zeros(2)",
                "observation/state[3]",
                "observation/state[-1]",
            )
        },
        language="language_instruction",
    ),
    "rh20t": Row(
        embodiment="several_arms",
        action_space="rh20t_ee",
        views={
            "primary": "observation/image_front",
            "secondary": "observation/image_side_right",
            "wrist": "observation/image_wrist",
        },
        action=("action/tcp_base", "action/gripper"),
        proprio={"ee": ("observation/tcp_base", "observation/gripper_width")},
        language="language_instruction",
    ),
    # BridgeData V2 as the Open X-Embodiment bucket has it (TFDS: bridge); OpenVLA's
    # bridge_oxe_dataset_transform. It names a second camera that version 0.1.0 does not have.
    "bridge_oxe": Row(
        **{
            **REACHED,
            "views": {"primary": "observation/image"},
            "action": ("observation/state[:6] | to_next", "action/open_gripper"),
            "language": SAID,
            "episode_id": (),
        },
        drop_first=1,
    ),
    "droid_wipe": Row(**{**DROID, "views": DROID_WIPE_VIEWS, "language": "language_instruction"}),
    **dict.fromkeys(
        (
            "tdroid_carrot_in_bowl",
            "tdroid_pour_corn_in_pot",
            "tdroid_flip_pot_upright",
            "tdroid_move_object_onto_plate",
            "tdroid_knock_object_over",
            "tdroid_cover_object_with_towel",
        ),
        TDROID,
    ),
}
# OpenVLA trains on the instructions that Octo blanks; rows "viola_with_language" and so on do.
BLANKED = {
    **dict.fromkeys(
        (
            "kuka",
            "berkeley_cable_routing",
            "roboturk",
            "nyu_door_opening_surprising_effectiveness",
            "viola",
            "toto",
        ),
        SAID,
    ),
    **dict.fromkeys(
        (
            "stanford_hydra_dataset_converted_externally_to_rlds",
            "austin_buds_dataset_converted_externally_to_rlds",
            "nyu_franka_play_dataset_converted_externally_to_rlds",
            "austin_sailor_dataset_converted_externally_to_rlds",
            "austin_sirius_dataset_converted_externally_to_rlds",
            "utaustin_mutex",
        ),
        "language_instruction",
    ),
}
ROWS.update(
    {
        f"{name}_with_language": dataclasses.replace(ROWS[name], language=column)
        for name, column in BLANKED.items()
    }
)

# Named mixtures: data set -> weight, for dict(named="oxe_magic_soup", root=…) in a config. Octo's
# as in oxe_dataset_mixes.py @241fb35, where weights multiply sizes (balance_weights); what stands
# twice in a list of theirs counts once, with the first weight, as there. A data set's row is the
# one of its name, or named beside the weight.
RTX = {
    "fractal20220817_data": 0.54087122203,
    "kuka": 0.8341046294,
    "bridge_dataset": 1.0,
    "taco_play": 2.0,
    "jaco_play": 2.0,
    "berkeley_cable_routing": 3.0,
    "roboturk": 1.0,
    "nyu_door_opening_surprising_effectiveness": 5.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 1.0,
    "toto": 1.0,
}
FRANKA = {
    "taco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "viola": 1.0,
    "toto": 1.0,
    "stanford_hydra_dataset_converted_externally_to_rlds": 1.0,
    "austin_buds_dataset_converted_externally_to_rlds": 3.0,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 3.0,
    "maniskill_dataset_converted_externally_to_rlds": 0.1,
    "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": 5.0,
    "austin_sailor_dataset_converted_externally_to_rlds": 1.0,
    "austin_sirius_dataset_converted_externally_to_rlds": 1.0,
    "berkeley_rpt_converted_externally_to_rlds": 1.0,
    "kaist_nonprehensile_converted_externally_to_rlds": 3.0,
    "stanford_robocook_converted_externally_to_rlds": 1.0,
    IAMLAB: 1.0,
    "utaustin_mutex": 1.0,
    "cmu_play_fusion": 1.0,
}
MAGIC_SOUP = {
    "fractal20220817_data": 0.54087122203,
    "kuka": 0.8341046294,
    "bridge_dataset": 1.0,
    "taco_play": 2.0,
    "jaco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "roboturk": 2.0,
    "nyu_door_opening_surprising_effectiveness": 1.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 2.0,
    "toto": 1.0,
    "language_table": 0.1,
    "stanford_hydra_dataset_converted_externally_to_rlds": 2.0,
    "austin_buds_dataset_converted_externally_to_rlds": 1.0,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 3.0,
    "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 2.0,
    "austin_sailor_dataset_converted_externally_to_rlds": 1.0,
    "austin_sirius_dataset_converted_externally_to_rlds": 1.0,
    "bc_z": 0.2,
    DLR_EDAN: 1.0,
    IAMLAB: 1.0,
    "utaustin_mutex": 1.0,
    "berkeley_fanuc_manipulation": 2.0,
    "cmu_stretch": 1.0,
}
FLEX_ACT_SOUP = {
    **MAGIC_SOUP,
    "berkeley_mvp_converted_externally_to_rlds": 1.0,
    "gnm_dataset": 1.0,
    "aloha_static_dataset": 3.0,
    "aloha_mobile_dataset": 2.0,
    "dobbe": 1.0,
    "roboset": 0.5,
    "rh20t": 0.5,
}


def _openvla(table: dict, *without: str, **changed: float) -> dict:
    """Octo's table as OpenVLA has it: its own Bridge, every instruction, no wrist camera alone."""
    renamed = {"bridge_orig" if n == "bridge_dataset" else n: w for n, w in table.items()}
    gone = ("nyu_door_opening_surprising_effectiveness", *without)
    weights = {**{n: w for n, w in renamed.items() if n not in gone}, **changed}
    return {
        name: dict(weight=weight, row=f"{name}_with_language") if name in BLANKED else weight
        for name, weight in weights.items()
    }


PLUS = dict(bc_z=0.2, fmb_dataset=1.0, dobbe=0.2)  # OpenVLA: bc_z from version 0.1.0
MIXTURES = {
    "rtx": RTX,
    "rtx_franka": {**FRANKA, **RTX},
    "oxe_magic_soup": MAGIC_SOUP,
    "oxe_flex_act_soup": FLEX_ACT_SOUP,
    # OpenVLA's (prismatic/vla/datasets/rlds/oxe/mixtures.py); its own by the names of Octo's are
    # called openvla_*.
    "bridge_rt_1": {"bridge_orig": 1.0, "fractal20220817_data": 1.0},
    "openvla_rtx": _openvla(RTX),
    "openvla_rtx_franka": _openvla({**FRANKA, **RTX}),
    "openvla_magic_soup": _openvla(MAGIC_SOUP, "bc_z"),
    "oxe_magic_soup_plus": _openvla(MAGIC_SOUP, **PLUS, droid=0.06),
    "oxe_magic_soup_plus_minus": _openvla(
        MAGIC_SOUP, "language_table", **PLUS, fractal20220817_data=1.0
    ),
    "libero_mix": dict.fromkeys(
        (
            "libero_spatial_no_noops",
            "libero_object_no_noops",
            "libero_goal_no_noops",
            "libero_10_no_noops",
        ),
        1.0,
    ),
}
DEBUG: dict = {}


def make(context, *, row: str, **changes: Row) -> _table.TableStandardizer:
    """The standardizer of one row; `changes` are fields of it to be otherwise, e.g. language=….

    Raises UserError for an unknown row, naming the nearest, and for changes that are not sound.
    """
    if row not in ROWS:
        raise plugin.UserError(
            plugin.unknown(f"data.standardizers.oxe ({context.name})", row, ROWS)
        )
    return _table.TableStandardizer(row, dataclasses.replace(ROWS[row], **changes))

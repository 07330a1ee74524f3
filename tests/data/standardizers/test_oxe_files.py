"""Rows of standardizers/oxe.py through the RLDS reader: files with the features that the published
data sets have (compressed tensors, code points, flags, names with slashes)."""

import json
import zlib

import numpy as np
import pytest
import simplejpeg

from tests.data.conftest import Words, example, leaf, tree
from tests.data.standardizers.oxe_cases import CASES
from tests.data.standardizers.test_oxe import T, episode_of
from vla_jax import plugin
from vla_jax.data import mixture
from vla_jax.data.sources import _tfrecord, rlds
from vla_jax.data.standardizers import oxe
from vla_jax.types import SourceContext

ROOMS = ("action", "action_dict", "observation")  # dictionaries of a step


def feature(kind, values, packed):
    if kind == "image":
        return leaf("image", (8, 8, 3), "uint8")
    if kind == "text":
        return leaf("text")
    described = leaf("tensor", np.shape(values)[1:], np.asarray(values).dtype.name)
    if packed:
        described["tensor"]["encoding"] = "zlib"
    return described


def write(path, name, packed):
    """One episode of random numbers as TFDS would write it; returns its columns."""
    columns = episode_of(name, np.random.default_rng(1))
    stored, steps, rooms, metadata = {}, {}, {}, {}
    for column, kind in CASES[name][0].items():
        values = columns.get(column)
        if column.startswith("episode_metadata/"):
            metadata[column.split("/", 1)[1]] = leaf("text")
            stored[column] = [values.encode()]
            continue
        room, _, rest = column.partition("/")
        described = feature(kind, values, column in packed)
        if rest and room in ROOMS:
            rooms.setdefault(room, {})[rest] = described
        else:
            steps[column] = described
        if kind == "image":
            image = np.zeros((8, 8, 3), np.uint8)
            values = [
                simplejpeg.encode_jpeg(image + 9 * t, colorsubsampling="444") for t in range(T)
            ]
        elif kind == "text":
            values = [text.encode() for text in values]
        elif column in packed:
            values = [zlib.compress(v.tobytes()) for v in values]
        stored[f"steps/{column}"] = values
    steps.update({room: tree(described) for room, described in rooms.items()})
    features = {"steps": {"sequence": {"feature": tree(steps)}}}
    if metadata:
        features["episode_metadata"] = tree(metadata)
    path.mkdir()
    (path / "features.json").write_text(json.dumps(tree(features)))
    split = {"name": "train", "shardLengths": ["1"]}
    info = {"name": name, "version": "0.1.0", "fileFormat": "tfrecord", "splits": [split]}
    (path / "dataset_info.json").write_text(json.dumps(info))
    _tfrecord.write(path / f"{name}-train.tfrecord-00000-of-00001", [example(stored)])
    return columns


@pytest.mark.parametrize(
    "name, packed",
    [
        (
            "kuka",
            (
                "observation/clip_function_input/base_pose_tool_reached",
                "observation/gripper_closed",
            ),
        ),
        ("language_table", ()),
        ("bc_z", ()),
        ("toto", ()),
        ("viola", ()),
        ("droid", ()),
        ("libero_goal_no_noops", ()),
    ],
)
def test_row_reads_a_file(tmp_path, name, packed):
    columns = write(tmp_path / "data", name, packed)
    table, read = rlds.recorded(str(tmp_path / "data"), standardizer=dict(type="oxe", row=name))
    full = {c if c.startswith("episode_") else f"steps/{c}": v for c, v in columns.items()}
    made = oxe.make(SourceContext(name="x", stream=""), row=name).episode(full, T, "e")
    np.testing.assert_array_equal(table.action, made.action)
    for group, values in made.proprio.items():
        np.testing.assert_array_equal(table.proprio[group], values)
    assert (table.language_index < 0).all() == (oxe.ROWS[name].language is None)
    for view in oxe.ROWS[name].views:
        (frame,) = read(view, 0, [3])
        assert abs(int(simplejpeg.decode_jpeg(frame)[0, 0, 0]) - 27) < 3


def test_data_sets_of_different_arms_make_rows_of_one_shape(tmp_path):
    """Four bodies in one stream: a view, a reading or an instruction that one lacks is masked."""
    names = ("viola", "language_table", "roboturk", "kuka_with_language")
    bodies = tuple(
        plugin.module("embodiments", name).EMBODIMENT
        for name in ("franka", "xarm", "sawyer", "kuka_iiwa")
    )
    context = SourceContext(
        name="soup",
        stream="robot",
        window=2,
        action_horizon=4,
        action_size=7,
        image_sizes={"primary": (8, 8), "wrist": (8, 8)},
        text_tokenizer=Words(),
        embodiments=bodies,
        action_spaces=tuple(space for body in bodies for space in body.action_spaces),
    )
    members = {}
    for name in names:
        write(tmp_path / name, name, ())
        source = dict(
            type="rlds",
            path=str(tmp_path / name),
            standardizer=dict(type="oxe", row=name),
            holdout=0.0,
            language="optional",
            optional_views=("primary", "wrist"),
        )
        members[name] = dict(source=source, weight=1.0)
    made = mixture.Mixture.make(members, context)
    seen = {}
    for n in range(40):
        row = made.sample(n)
        seen[made.locate(n)[0]] = row
    assert set(seen) == set(names)
    for name, row in seen.items():
        views, groups = oxe.ROWS[name].views, oxe.ROWS[name].proprio
        masks = row["observation"]
        assert {v for v, m in masks["image_masks"].items() if m.any()} == set(views)
        assert {g for g, m in masks["proprio_masks"].items() if m.any()} == set(groups)
        said = row["task"]["masks"]["language"].any()
        assert said == (oxe.ROWS[name].language is not None)
        assert row["targets"]["action"].shape == (2, 4, 7)
        space = context.action_spaces[int(row["action_space"])]
        assert space.name == oxe.ROWS[name].action_space

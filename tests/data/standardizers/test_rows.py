"""Rows of one's own, their expressions, and what is said of rows that are not sound."""

import dataclasses

import numpy as np
import pytest

from vla_jax import config as config_lib
from vla_jax import plugin
from vla_jax.data.sources import rlds as rlds_source
from vla_jax.data.standardizers import _expression, _table, oxe, rows
from vla_jax.plugin import UserError
from vla_jax.types import SourceContext

CONTEXT = SourceContext(name="kitchen", stream="robot")
ROW = dict(
    embodiment="arm",
    action_space="xyz_gripper",
    views={"primary": "observation/images/primary"},
    action="action",
    proprio={"hand": "observation/proprio/hand"},
    language="language_instruction",
)
TRUNK = dict(width=8, depth=1, heads=1, mlp=8)
FILE = """
from vla_jax.data.standardizers._table import Row
from vla_jax.types import ActionGroup, ActionSpace, Embodiment, ProprioGroup

def doubled(action):
    return 2 * action[:, :3]

ROWS = {
    "kitchen": Row(
        embodiment="my_arm",
        action_space="my_xyz",
        views={"wrist": "observation/images/primary"},
        action="twice",
        proprio={"hand": "observation/proprio/hand[:2]"},
        language=None,
        derived={"twice": (doubled, ("action",))},
        stride=2,
    ),
    "plain": dict(embodiment="my_arm"),
}
EMBODIMENT = Embodiment(
    name="my_arm", joints=(), joint_limits=(), control_hz=5.0, views=("wrist",),
    proprio=(ProprioGroup(name="hand", size=2, unit="m", meaning="x, y"),),
    action_spaces=(
        ActionSpace(name="my_xyz", control_hz=5.0, groups=(
            ActionGroup(name="xyz", size=3, quantity="position", representation="absolute"),
        )),
    ),
)
"""


def inline(**changes):
    return rows.make(CONTEXT, row={**ROW, **changes})


def episode(standardizer, columns, length):
    full = {c if c.startswith("episode_") else f"steps/{c}": v for c, v in columns.items()}
    return standardizer.episode(full, length, "shard 0: record 3")


def value(text, **columns):
    columns = {name: np.asarray(values, float) for name, values in columns.items()}
    length = len(next(iter(columns.values()))) if columns else 3
    return _expression.parse("row", text)(columns, length, "e").tolist()


# What expressions mean.


def test_dims():
    x = np.arange(12.0).reshape(2, 6)
    assert value("x[:2]", x=x) == [[0, 1], [6, 7]]
    assert value("x[-2:]", x=x) == [[4, 5], [10, 11]]
    assert value("x[1]", x=x) == [[1], [7]]
    assert value("x[-1]", x=x) == [[5], [11]]
    assert value("x", x=[True, False]) == [[1], [0]]
    assert value("x[3:4]", x=np.arange(8).reshape(2, 2, 2)) == [[3], [7]]
    assert value("zeros(2)") == [[0, 0]] * 3 and value("ones(1) | scale(-0.5)") == [[-0.5]] * 3


def test_operations():
    x = [-1.0, 0.25, 2.0]
    assert value("x | clip01 | invert", x=x) == [[1], [0.75], [0]]
    assert value("x | scale(2) | add(-1)", x=x) == [[-3], [-0.5], [3]]
    assert value("x | to_next", x=x) == [[1.25], [1.75], [0]]
    turned = value("x | to_next_angle", x=[3.0, -3.0, 3.0])
    np.testing.assert_allclose(turned, [[2 * np.pi - 6], [6 - 2 * np.pi], [0]])
    quarter = value("q | rotation(quat_xyzw, rotvec)", q=[[0, 0, 1, 1]])
    np.testing.assert_allclose(quarter, [[0, 0, np.pi / 2]], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_gripper_operations_from_their_definition(seed):
    rng = np.random.default_rng(seed)
    opening = rng.choice([0.0, 0.3, 0.7, 1.0], 20)
    binary = np.ravel(value("x | binarize", x=opening))
    sure = np.flatnonzero((opening < 0.05) | (opening > 0.95))
    for step in range(20):
        after = sure[sure >= step]
        expected = opening[after[0]] if len(after) else opening[-1]
        assert binary[step] == expected
    command = rng.choice([-1.0, 0.0, 0.05, 1.0], 20, p=(0.1, 0.4, 0.4, 0.1))
    state = np.ravel(value("x | rel2abs", x=command))
    told = np.flatnonzero(np.abs(command) > 0.1)
    before = command[told[0]] > 0 if len(told) else True  # closing it, it must have been open
    for step in range(20):
        so_far = told[told <= step]
        assert state[step] == (command[so_far[-1]] < 0 if len(so_far) else before)


# What is refused, and how.


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(action="action | clip1"),
            "action: 'action | clip1': operation: unknown 'clip1', did",
        ),
        (dict(action=("action[:3]", "action[3] | scale")), "scale has 0 arguments, expected 1"),
        (dict(action="action | scale(big)"), "scale: could not convert string to float"),
        (dict(action="action | rotation(quat, euler_xyz)"), "unknown 'quat', did you mean 'quat_"),
        (dict(action="action[:3"), "expected 'column', 'column"),
        (dict(action="action[]"), "expected dims as in"),
        (dict(action=()), "action: empty"),
        (dict(action=7), "action: got 7, expected str or Sequence"),
        (dict(action=("action", 7)), "action: got 7, expected an expression"),
        (dict(views=["image"]), "views: got .'image'., expected Mapping"),
        (dict(language=3), "language: got 3, expected str or Sequence or None"),
        (dict(proprio={"hand": "observation | flip"}), "proprio hand: .* unknown 'flip'"),
        (dict(action="action | to_next"), "no value at the last step; drop_last=1"),
        (dict(views={"primry": "image"}), "views: unknown 'primry', did you mean 'primary'"),
        (dict(stride=0), "stride=0, expected at least 1"),
        (dict(drop_first=-1), "drop_first=-1, expected at least 0"),
        (dict(language="text | utf8"), "language: operation: unknown 'utf8', did you mean 'utf32'"),
        (dict(derived={"x": ("f", ("action",))}), "derived 'x': got .'f', .* expected .function"),
        (dict(derived={"x": len}), "derived 'x': got .*, expected .function, .columns"),
        (dict(propriox={}), "unknown 'propriox', did you mean 'proprio'"),
    ],
)
def test_unsound_rows(changes, message):
    with pytest.raises(UserError, match=message):
        inline(**changes)


def test_missing_fields_and_rows(tmp_path):
    with pytest.raises(UserError, match=r"missing \['action_space', 'views', 'action', 'language'"):
        rows.make(CONTEXT, row=dict(embodiment="arm"))
    with pytest.raises(UserError, match="without a file; give file='my_rows.py'"):
        rows.make(CONTEXT, row="kitchen")
    with pytest.raises(UserError, match="no such file; expected a Python file that defines ROWS"):
        rows.make(CONTEXT, row="kitchen", file=str(tmp_path / "none.py"))
    file = tmp_path / "my_rows.py"
    file.write_text(FILE)
    with pytest.raises(UserError, match="unknown 'kitchn', did you mean 'kitchen'"):
        rows.make(CONTEXT, row="kitchn", file=str(file))
    with pytest.raises(UserError, match="row 'plain': missing"):
        rows.make(CONTEXT, row="plain", file=str(file))


@pytest.mark.parametrize(
    "changes, columns, message",
    [
        (dict(action="a[:7]"), dict(a=np.zeros((4, 6))), "'a' has 6 numbers per step"),
        (dict(action="a[6]"), dict(a=np.zeros((4, 6))), "'a' has 6 numbers per step"),
        (dict(action="a[-7:]"), dict(a=np.zeros((4, 6))), "'a' has 6 numbers per step"),
        (dict(action="a"), dict(a=np.array(["x"] * 4)), "action: 'a': column 'a' is no array of n"),
        (dict(action="a"), dict(a=np.zeros((3, 6))), "with 4 steps"),
        (
            dict(action="a | rotation(quat_xyzw, rotvec)"),
            dict(a=np.zeros((4, 4))),
            "length zero is no rotation",
        ),
        (dict(action="ones(1)", language="t"), dict(t=np.zeros((4, 3))), "say 'column . utf32'"),
        (
            dict(action="ones(1)", language="t | utf32"),
            dict(t=np.full((4, 3), 2**30)),
            "language 't': a number that is no code point",
        ),
        (dict(action="ones(1)", drop_last=5), dict(), "4 steps, of which the row 'inline' leaves"),
        (dict(action="ones(1)", drop_first=4), dict(), "4 steps, of which the row 'inline' leaves"),
        (
            dict(action="d", derived={"d": (lambda a: a[:2], ("a",))}),
            dict(a=np.zeros((4, 2))),
            r"derived 'd': the function returned float64 \[2, 2\], expected numbers \[4, n\]",
        ),
    ],
)
def test_episodes_that_do_not_fit(changes, columns, message):
    standardizer = inline(**{"proprio": {}, "language": None, **changes})
    with pytest.raises(UserError, match=message) as caught:
        episode(standardizer, columns, 4)
    assert "shard 0: record 3" in str(caught.value) and "row 'inline'" in str(caught.value)


def test_columns_the_data_lack():
    standardizer = inline(action=("actoin", "zeros(1)"), episode_id=("file",))
    with pytest.raises(UserError, match="no such column: unknown 'actoin', did you mean 'action'"):
        standardizer.columns({"steps/action", "steps/language_instruction", "steps/reward"})


# What a row does to an episode.


def test_episode_operations_and_text():
    t = np.arange(9.0)
    made = episode(
        inline(
            action=("x | to_next", "x"),
            proprio={},
            language="said | utf32",
            stride=2,
            drop_first=1,
            drop_last=1,
            episode_id=("file", "number"),
        ),
        {
            "x": t**2,
            "said": np.array([[ord(c) for c in "gö\0x"]] * 9),
            "episode_metadata/file": "a.h5",
            "episode_metadata/number": 3,
        },
        9,
    )
    assert made.steps.tolist() == [2, 4, 6]
    assert made.action.tolist() == [
        [12, 4],
        [20, 16],
        [28, 36],
    ]  # (t + 2)^2 - t^2: after the stride
    assert made.language == ["gö"] * 3 and made.id == "a.h5#3"


def test_no_instruction_and_text_of_the_episode():
    assert (
        episode(inline(action="x", proprio={}, language=None), {"x": np.ones(3)}, 3).language
        == [""] * 3
    )
    said = episode(
        inline(action="x", proprio={}, language="episode_metadata/task"),
        {"x": np.ones(3), "episode_metadata/task": " wipe "},
        3,
    )
    assert said.language == ["wipe"] * 3


def test_an_episode_without_an_id_is_called_by_its_place_not_by_the_folders_path():
    standardizer = inline(action="x", proprio={}, language=None)
    full = {"steps/x": np.ones(3)}
    ids = [
        standardizer.episode(full, 3, f"{folder}/arm-train.tfrecord-00000: record 3").id
        for folder in ("/data/arm/1.0.0", "gs://bucket/arm")
    ]
    assert ids == ["arm-train.tfrecord-00000: record 3"] * 2


# Through a source.


def test_inline_row_reads_what_the_native_standardizer_reads(folder, context):
    row = {**ROW, "episode_id": "episode_id"}
    ours = rlds_source.make(context, path=str(folder), standardizer=dict(type="rows", row=row))
    native = rlds_source.make(context, path=str(folder))
    assert len(ours) == len(native)
    np.testing.assert_array_equal(ours.episodes.action, native.episodes.action)
    row, same = (s.sample(5, np.random.default_rng(0)) for s in (ours, native))
    np.testing.assert_array_equal(
        row["observation"]["images"]["primary"], same["observation"]["images"]["primary"]
    )
    np.testing.assert_array_equal(
        row["observation"]["proprio"]["hand"], same["observation"]["proprio"]["hand"]
    )


def test_file_of_rows_and_their_body(folder, context, tmp_path):
    file = tmp_path / "my_rows.py"
    file.write_text(FILE)
    body = plugin.load_attribute(str(file), "EMBODIMENT")
    context = dataclasses.replace(
        context,
        embodiments=(body,),
        action_spaces=body.action_spaces,
        image_sizes={"wrist": (16, 16)},
    )
    source = rlds_source.make(
        context,
        path=str(folder),
        standardizer=dict(type="rows", file=str(file), row="kitchen"),
        language="optional",
    )
    native = _table_of(folder)
    assert source.episodes.step[:4].tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(source.episodes.action[:4], 2 * native.action[[0, 2, 4, 6], :3])
    sample = source.sample(0, np.random.default_rng(0))
    assert not sample["task"]["masks"]["language"].any()
    assert sample["observation"]["image_masks"]["wrist"].any()


def test_a_body_may_have_groups_that_the_data_lack(folder, context):
    source = rlds_source.make(
        context, path=str(folder), standardizer=dict(type="rows", row={**ROW, "proprio": {}})
    )
    sample = source.sample(0, np.random.default_rng(0))
    assert not sample["observation"]["proprio_masks"]["hand"].any()
    assert source.summary()["proprio"] == ""
    wrong = {**ROW, "proprio": {"hnad": "observation/proprio/hand"}}
    with pytest.raises(UserError, match="not one of arm: unknown 'hnad', did you mean 'hand'"):
        rlds_source.make(context, path=str(folder), standardizer=dict(type="rows", row=wrong))


def _table_of(folder):
    return rlds_source.recorded(str(folder))[0]


def test_row_of_a_file_is_a_row_or_its_fields():
    row = _table.Row(**ROW)
    assert _table.row("x", row) is row and _table.row("x", ROW) == row
    with pytest.raises(UserError, match="expected a Row or a dict"):
        _table.row("x", "kitchen")


def test_a_row_says_the_same_in_every_process_until_it_or_its_functions_change(tmp_path):
    """What sources keep of a row, they keep under what it says."""
    file = tmp_path / "my_rows.py"
    file.write_text(FILE)
    said = [repr(vars(rows.make(CONTEXT, row="kitchen", file=str(file)))) for _ in range(2)]
    assert said[0] == said[1] and " at 0x" not in said[0]
    file.write_text(FILE.replace("2 * action", "3 * action"))
    assert repr(vars(rows.make(CONTEXT, row="kitchen", file=str(file)))) != said[0]
    for name in oxe.ROWS:
        assert " at 0x" not in repr(vars(oxe.make(CONTEXT, row=name)))


def test_changes_beside_a_row_of_a_file(tmp_path):
    file = tmp_path / "my_rows.py"
    file.write_text(FILE)
    made = rows.make(CONTEXT, row="kitchen", file=str(file), stride=1, language="said | utf32")
    assert (made.row.stride, made.row.language) == (1, "said | utf32")
    with pytest.raises(UserError, match="stride=0, expected at least 1"):
        rows.make(CONTEXT, row="kitchen", file=str(file), stride=0)


def test_inline_row_survives_a_config():
    """What a checkpoint stores of it is the row."""
    stream = dict(
        batch_size=1,
        groups=("a",),
        mixture=dict(
            kitchen=dict(
                source=dict(type="rlds", path="x", standardizer=dict(type="rows", row=ROW))
            )
        ),
    )
    config = config_lib.parse(
        config_lib.TrainConfig, dict(steps=1, model=dict(trunk=TRUNK), streams=dict(robot=stream))
    )
    stored = config_lib.from_json(config_lib.to_json(config))
    assert stored == config
    spec = stored.streams["robot"].mixture["kitchen"]["source"]["standardizer"]
    made = plugin.build("data.standardizers", spec, CONTEXT)
    assert made.row == _table.Row(**ROW)

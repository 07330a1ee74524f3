import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin, trees, types

TREE = {"params": {"trunk": {"kernel": np.zeros((2, 3)), "bias": np.ones(3)}, "head": np.ones(2)}}


def test_paths_and_table():
    assert trees.paths(TREE) == ["params/head", "params/trunk/bias", "params/trunk/kernel"]
    marks = trees.table(TREE, [(r"params/trunk/.*", 1), (".*/bias", 2), (".*", 0)])
    assert trees.flatten(marks) == {
        "params/trunk/kernel": 1,
        "params/trunk/bias": 1,  # the first match wins
        "params/head": 0,
    }
    with pytest.raises(plugin.UserError, match="params/head"):
        trees.first_match([("params/trunk/.*", 1)], "params/head")
    with pytest.raises(plugin.UserError, match="params/head"):  # the whole path must match
        trees.first_match([("params", 1)], "params/head")


def test_rows_that_match_nothing_are_refused():
    trees.check_rows("freeze", [("params/trunk/.*", True)], TREE)
    with pytest.raises(plugin.UserError, match="params/trunc"):
        trees.check_rows("freeze", [("params/trunc/.*", True)], TREE)
    with pytest.raises(plugin.UserError, match="regular expression"):
        trees.check_rows("freeze", [("params/(", True)], TREE)


def test_split_merge_round_trip():
    a, b = trees.split(TREE, lambda path: path.startswith("params/trunk"))
    assert trees.paths(a) == ["params/trunk/bias", "params/trunk/kernel"]
    assert trees.paths(b) == ["params/head"]
    assert trees.diff(TREE, trees.merge(a, b)) == ""
    assert trees.diff(TREE, trees.unflatten(trees.flatten(TREE))) == ""
    nothing, everything = trees.split(TREE, lambda path: False)
    assert nothing == {} and trees.paths(everything) == trees.paths(TREE)
    with pytest.raises(ValueError, match="both"):
        trees.merge(a, TREE)


def test_diff_says_what_differs():
    other = {
        "params": {"trunk": {"kernel": np.zeros((2, 4)), "scale": np.ones(3)}, "head": np.ones(2)}
    }
    text = trees.diff(TREE, other)
    assert "missing     params/trunk/bias" in text
    assert "unexpected  params/trunk/scale" in text
    assert "differs     params/trunk/kernel  expected float64[2, 3], got float64[2, 4]" in text
    assert trees.diff(TREE, TREE) == ""
    shapes = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), TREE))
    assert "float32[2, 3]" in trees.diff(TREE, shapes)


def test_stack_layers_round_trip():
    layers = [{"w": np.full((2,), i)} for i in range(3)]
    stacked = trees.stack_layers(layers)
    assert stacked["w"].shape == (3, 2) and isinstance(stacked["w"], np.ndarray)
    for layer, again in zip(layers, trees.unstack_layers(stacked)):
        np.testing.assert_array_equal(layer["w"], again["w"])
    assert isinstance(trees.stack_layers([{"w": jnp.zeros(2)}] * 2)["w"], jax.Array)


def test_types_are_pytrees_and_grid_is_static():
    group = types.TokenGroup(tokens=jnp.zeros((1, 2, 3)), valid=True, stem=None, grid=(1, 2))
    doubled = jax.tree.map(lambda x: x, group)
    assert doubled.grid == (1, 2) and len(jax.tree.leaves(group)) == 2
    batch = types.Batch.make(
        observation=dict(images={}, timestep_mask=np.ones((2, 1), bool)),
        task={},
        targets={"action": np.zeros((2, 1, 1, 3), np.float32)},
        target_masks={"action": np.ones((2, 1, 1, 3), bool)},
        row_id=np.arange(2, dtype=np.uint32),
        action_space=np.zeros(2, np.int32),
        dataset_key=np.zeros(2, np.int32),
    )
    assert "targets/action" in trees.paths(batch)
    out = jax.jit(lambda b: b)(batch)
    np.testing.assert_array_equal(out.row_id, batch.row_id)
    # shapes stand where arrays stood: nothing is checked when jax rebuilds
    assert jax.eval_shape(lambda b: b, batch).observation.timestep_mask.shape == (2, 1)

import jax
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.nn import layout

G = layout.Group


def two_experts():
    groups = [G("image", 3, 2), G("language", 2), G("noise", 2, 2, "flow"), G("readout", 1, 2)]
    return layout.Layout.make(groups, 2)


def test_order_is_timeless_first_then_step_by_step_in_config_order():
    made = two_experts()
    names = [made.groups[i].name for i in made.group]
    step = ["image"] * 3 + ["noise"] * 2 + ["readout"]
    assert names == ["language"] * 2 + step + step
    assert made.time.tolist() == [-1] * 2 + [0] * 6 + [1] * 6
    assert made.position.tolist() == list(range(14))
    assert made.slot("language").tolist() == [0, 1]
    assert made.slot("image").tolist() == [[2, 3, 4], [8, 9, 10]]
    assert made.expert_slots("flow").tolist() == [5, 6, 11, 12]


def test_hashable_equal_and_read_only():
    assert hash(two_experts()) == hash(two_experts()) and two_experts() == two_experts()
    with pytest.raises(ValueError):
        two_experts().group[0] = 1


def test_join_and_pick_are_inverse_and_follow_the_slots():
    made = two_experts()
    arrays = {
        g.name: np.arange(2 * 2 * g.tokens * (2 if g.steps else 1), dtype=np.float32).reshape(
            2, *([2] if g.steps else []), g.tokens, 2
        )
        for g in made.groups
    }

    @jax.jit
    def there_and_back(arrays, valid):
        joined = layout.join(made, arrays)
        picked = {name: layout.pick(made, joined, name) for name in arrays}
        return joined, picked, layout.join_valid(made, valid)

    valid = {name: array[..., 0] > 3 for name, array in arrays.items()}
    joined, picked, whole = there_and_back(arrays, valid)
    assert joined["trunk"].shape == (2, 10, 2) and joined["flow"].shape == (2, 4, 2)
    for name, array in arrays.items():
        np.testing.assert_array_equal(picked[name], array)
    for name in arrays:
        np.testing.assert_array_equal(whole[:, made.slot(name)], valid[name])


@pytest.mark.parametrize(
    "groups, message",
    [
        ([G("image", 3, 1), G("image", 2)], "stands twice"),
        ([G("image", 0)], "has 0 tokens"),
        ([G("image", 3, 1)], "steps=1; expected 0"),
    ],
)
def test_bad_groups_are_named(groups, message):
    with pytest.raises(plugin.UserError, match=message):
        layout.Layout.make(groups, 2)


def test_unknown_names_and_wrong_shapes():
    made = two_experts()
    with pytest.raises(plugin.UserError, match="did you mean 'image'"):
        made.slot("imag")
    with pytest.raises(plugin.UserError, match="expected .*language"):
        layout.join(made, {"image": np.zeros((1, 2, 3, 4))})
    arrays = {g.name: np.zeros((1, 2, g.tokens, 4)) for g in made.groups}
    arrays["language"] = np.zeros((1, 3, 4))
    with pytest.raises(plugin.UserError, match="'language' has shape"):
        layout.join(made, arrays)

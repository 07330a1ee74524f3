import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.heads import region_text

SPEC = dict(type="region_text", names=("ab", "c", "dog"), image="primary")


def test_cell_of_is_the_nearest_centre():
    rng = np.random.default_rng(0)
    points = rng.random((100, 2)).astype(np.float32)
    rows, columns = 3, 4
    y, x = np.meshgrid((np.arange(3) + 0.5) / 3, (np.arange(4) + 0.5) / 4, indexing="ij")
    got = np.asarray(region_text.cell_of(jnp.asarray(points), (rows, columns)))
    for point, cell in zip(points, got, strict=True):
        expected = np.argmin(((x - point[0]) * 4) ** 2 + ((y - point[1]) * 3) ** 2)
        assert cell == expected
    corners = jnp.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [-0.1, 2.0]])
    np.testing.assert_array_equal(region_text.cell_of(corners, (3, 4)), [0, 11, 3, 8])


def test_errors_against_numpy(case):
    harness, variables = case.build(**SPEC)
    answer, errors = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    params = jax.tree.map(np.asarray, variables["params"])
    table = params["shared_text_embedding"]["table"] * np.sqrt(case.D)
    words = np.stack([table[[1, 2]].mean(0), table[[3]].mean(0), table[[4, 15, 7]].mean(0)])

    def project(x, layer):
        x = (
            x @ params["shared_grounding"][layer]["kernel"]
            + params["shared_grounding"][layer]["bias"]
        )
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    words, patches = project(words, "word"), project(case.outputs["primary"].stem, "patch")
    logits = 10.0 * patches @ words.T
    np.testing.assert_allclose(answer["names"], logits, rtol=1e-3, atol=1e-3)
    mask = case.batch.target_masks["region_point"] & case.batch.target_masks["region_name"]
    assert mask.any()
    for row, step, k in np.argwhere(mask):
        x, y = case.batch.targets["region_point"][row, step, k]
        name = case.batch.targets["region_name"][row, step, k]
        scores = logits[row, step, int(y * 3) * 4 + int(x * 4)]
        expected = np.log(np.exp(scores).sum()) - scores[name]
        np.testing.assert_allclose(errors["cross_entropy"][row, step, k], expected, rtol=1e-3)
        assert errors["wrong"][row, step, k] == (scores.argmax() != name)


def test_it_reads_the_stem_not_the_trunk(case):
    harness, variables = case.build(**SPEC)
    image = case.outputs["primary"]
    outputs = case.outputs | {"primary": dataclasses.replace(image, final=image.final + 1)}
    run = jax.jit(harness.apply)
    a = run(variables, case.outputs, {}, case.batch, case.keys)
    b = run(variables, outputs, {}, case.batch, case.keys)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_scale_is_clipped(case):
    harness, variables = case.build(**SPEC)
    np.testing.assert_allclose(variables["params"]["head"]["log_scale"], np.log(10), rtol=1e-6)
    hot = variables | {"params": variables["params"] | {"head": {"log_scale": jnp.array(50.0)}}}
    answer, _ = case.apply(harness, hot, case.outputs, {}, case.batch, case.keys)
    assert 10 < np.abs(answer["names"]).max() <= 100.01


@pytest.mark.parametrize(
    ("names", "message"), [((), "none"), (("ab", "ab"), "ab"), (("ab", ""), "no pieces")]
)
def test_bad_names(case, names, message):
    context = dataclasses.replace(case.context, shared=dict(text_embedding=1, grounding=2))
    with pytest.raises(plugin.UserError, match=message):
        plugin.build("heads", SPEC | dict(names=names), context)


def test_needs_its_shared_modules(case):
    with pytest.raises(plugin.UserError, match="config.model.shared"):
        plugin.build("heads", SPEC, case.context)

import numpy as np
import pytest

from vla_jax import plugin

SPEC = dict(type="contrastive", dim=8)


def test_answer_against_numpy(case):
    harness, variables = case.build(**SPEC)
    answer, errors = case.apply(harness, variables, case.outputs, {}, case.batch, case.keys)
    assert errors == {}
    for name in ("image", "text"):
        kernel = np.asarray(variables["params"]["head"][name]["kernel"])
        vector = case.outputs[f"readout_{name}"].final[:, -1].mean(1) @ kernel
        vector /= np.linalg.norm(vector, axis=-1, keepdims=True)
        np.testing.assert_allclose(answer[name], vector, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answer["scale"], 10.0, rtol=1e-5)
    np.testing.assert_allclose(answer["bias"], -10.0)


def test_bad_scale(case):
    with pytest.raises(plugin.UserError, match="initial_scale"):
        plugin.build("heads", SPEC | dict(initial_scale=0), case.context)

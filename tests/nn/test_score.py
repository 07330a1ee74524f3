import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.nn import score


def test_fourier_features_of_octo(fixtures_dir):
    golden = np.load(fixtures_dir / "octo_golden" / "variant2" / "modules.npz")
    for name, learned in (("learnable", True), ("fixed", False)):
        time, out = golden[f"fourier_{name}/in0/"], golden[f"fourier_{name}/out"]
        params = {}
        if learned:
            params = {"frequency": golden["fourier_learnable/params/kernel"][:, 0]}
        module = score.FourierFeatures(out.shape[-1], learned)
        got = module.apply({"params": params}, time[:, 0])
        np.testing.assert_allclose(got, out, atol=1e-5)


def test_network_against_numpy():
    rng = np.random.default_rng(0)
    noisy, given = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 5))
    time = rng.integers(0, 20, (2, 3))
    network = score.ScoreNetwork(hidden=4, depth=2, time_features=4)
    inputs = (jnp.float32(noisy), jnp.asarray(time), jnp.float32(given))
    params = jax.jit(network.init)(jax.random.key(0), *inputs)["params"]
    got = jax.jit(network.apply)({"params": params}, *inputs)
    p = jax.tree.map(np.asarray, params)

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def silu(x):
        return x / (1 + np.exp(-x))

    angles = 2 * np.pi * time[..., None] * p["time"]["frequency"]
    times = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    times = dense(silu(dense(times, p["time_hidden"])), p["time_out"])
    x = dense(np.concatenate([times, given, noisy], -1), p["project"])
    for i in range(2):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        y = y * p[f"norm_{i}"]["scale"] + p[f"norm_{i}"]["bias"]
        x = x + dense(silu(dense(y, p[f"mlp_{i}"]["hidden_0"])), p[f"mlp_{i}"]["out"])
    np.testing.assert_allclose(got, dense(silu(x), p["out"]), rtol=1e-3, atol=1e-4)
    assert p["mlp_0"]["hidden_0"]["kernel"].shape == (4, 16)


def test_in_bfloat16_time_stays_float32():
    x = jnp.arange(20)
    inputs = (jnp.zeros((20, 6)), x, jnp.zeros((20, 5)))
    network = score.ScoreNetwork(hidden=8, depth=1, dtype=jnp.bfloat16)
    variables = jax.jit(network.init)(jax.random.key(0), *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    full = jax.jit(score.ScoreNetwork(hidden=8, depth=1).apply)(variables, *inputs)
    half = jax.jit(network.apply)(variables, *inputs)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())

"""Octo's own arrays: an imported checkpoint says what Octo said."""

import dataclasses
import functools
import pathlib
import shutil

import jax
import numpy as np
import pytest

from vla_jax import plugin, trees, types
from vla_jax.models import build
from vla_jax.models.importers import _params, octo
from vla_jax.nn import layout as layouts
from vla_jax.nn import visibility

ATOL = 1e-5


@pytest.fixture(scope="module")
def tiny(fixtures_dir):
    return Golden(fixtures_dir / "octo_golden" / "tiny")


@pytest.fixture(scope="module")
def variant2(fixtures_dir):
    return Golden(fixtures_dir / "octo_golden" / "variant2")


class Golden:
    """A folder of reference arrays and its checkpoint."""

    def __init__(self, folder: pathlib.Path):
        self.checkpoint = octo.read(str(folder / "ckpt"))
        with np.load(folder / "inputs.npz") as file:
            self.inputs = trees.unflatten(dict(file))
        with np.load(folder / "outputs.npz") as file:
            self.outputs = dict(file)

    def batch(self, drop: str = "", steps: slice = slice(None)) -> types.Batch:
        """The stored inputs, without the entry at path `drop`, at some steps of the window."""
        flat = trees.flatten(self.inputs)
        for path in list(flat):
            if drop and path.startswith(drop):
                del flat[path]
            elif path.startswith(("observation/", "action")):
                flat[path] = flat[path][:, steps]
        return octo.batch(trees.unflatten(flat))

    @functools.cache  # noqa: B019
    def native(self, partial: bool = False, **changes) -> octo.Native:
        return octo.translate(self.checkpoint, partial=partial, **changes)


def encoded(native: octo.Native, batch: types.Batch) -> dict[str, types.Output]:
    run = jax.jit(native.network.encode, static_argnums=2)
    return jax.device_get(run(native.variables, batch, "robot"))


def close(got, reference, atol: float = ATOL) -> None:
    got, reference = np.asarray(got), np.asarray(reference)
    assert got.shape == reference.shape
    assert np.max(np.abs(got - reference)) <= atol * max(1.0, np.max(np.abs(reference)))


def ours(name: str) -> str:
    """Octo's name of a token group in ours."""
    name = name.replace("obs_task_", "repeat_")
    return name if name.startswith("readout_") else name.removeprefix("obs_").removeprefix("task_")


def compare(golden: Golden, prefix: str, native: octo.Native, outputs: dict) -> set[str]:
    """Compares every stored group below `prefix`; the names of those compared."""
    names = {key.split("/")[1] for key in golden.outputs if key.startswith(f"{prefix}/")}
    order = native.config.streams["robot"].groups  # jax sorts the keys of dicts
    for name in names - {"attention_mask"}:
        tokens, seen = (golden.outputs[f"{prefix}/{name}/{part}"] for part in ("tokens", "mask"))
        axes = {"obs": 4, "task": 3}
        read = [ours(name)]
        if name in axes:  # all of the observation's or the task's groups
            read = [group for group in order if outputs[group].final.ndim == axes[name]]
        close(np.concatenate([outputs[group].final for group in read], -2), tokens)
        valid = np.concatenate([outputs[group].valid for group in read], -1)
        assert np.array_equal(valid, seen.astype(bool)), name
    return names


def mask(native: octo.Native, outputs: dict[str, types.Output]) -> np.ndarray:
    """Bool [B, L, L]: what each token saw."""
    layout = native.network.layout("robot")
    valid = layouts.join_valid(layout, {name: output.valid for name, output in outputs.items()})
    rules = visibility.make(native.config.model.rules)
    return visibility.mask(layout, rules)[None] & np.asarray(valid)[:, None]


def test_forward_of_tiny(tiny):
    native = tiny.native()
    outputs = encoded(native, tiny.batch())
    assert len(compare(tiny, "transformer", native, outputs)) == 7
    assert np.array_equal(mask(native, outputs), tiny.outputs["attention_mask"][:, 0])
    assert native.report.missing == native.report.unused == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix, changes",
    [
        ("legacy_attention", dict(use_correct_attention=False)),
        ("no_repeat", dict(repeat_task_tokens=False)),
    ],
)
def test_older_forms_of_tiny(tiny, prefix, changes):
    native = tiny.native(**changes)
    outputs = encoded(native, tiny.batch())
    compare(tiny, prefix, native, outputs)
    assert np.array_equal(mask(native, outputs), tiny.outputs[f"{prefix}/attention_mask"][:, 0])


@pytest.mark.slow
def test_forward_of_variant2(variant2):
    native = variant2.native()
    outputs = encoded(native, variant2.batch())
    assert len(compare(variant2, "transformer", native, outputs)) == 10
    assert np.array_equal(mask(native, outputs), variant2.outputs["attention_mask"][:, 0])
    without = encoded(native, variant2.batch(drop="task/image_wrist"))
    compare(variant2, "transformer_nogoalwrist", native, without)


def test_a_zarr_checkpoint_is_the_same(tiny, fixtures_dir):
    other = octo.read(str(fixtures_dir / "octo_golden" / "tiny" / "ckpt_zarr"))
    assert other.parameters.keys() == tiny.checkpoint.parameters.keys()
    same = (np.array_equal(v, tiny.checkpoint.parameters[k]) for k, v in other.parameters.items())
    assert all(same)


def test_what_does_not_fit_is_named(tiny, fixtures_dir, tmp_path):
    with pytest.raises(plugin.UserError, match="config.json is missing"):
        octo.read(str(tmp_path))
    folder = tmp_path / "ckpt"
    shutil.copytree(fixtures_dir / "octo_golden" / "tiny" / "ckpt", folder)
    with pytest.raises(plugin.UserError, match="no step 3"):
        octo.read(str(folder), step=3)
    file = folder / "7" / "default" / "checkpoint"
    file.chmod(0o644)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(plugin.UserError, match="is cut off"):
        octo.read(str(folder))
    with pytest.raises(plugin.UserError, match="left over  octo_transformer/foreign"):
        parameters = {**tiny.checkpoint.parameters, "octo_transformer/foreign": np.zeros(3)}
        octo.translate(dataclasses.replace(tiny.checkpoint, parameters=parameters))


def injected(golden: Golden, prefix: str, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """The stored time [B, W, n] and noise [B, W, n, C, A] of Octo's [n, B, W, 1 or C · A]."""
    time, noise = (golden.outputs[f"{prefix}/{name}"] for name in ("time", "noise"))
    time, noise = (np.moveaxis(array, 0, 2) for array in (time, noise))
    return dict(time=time[..., 0], noise=noise.reshape(*noise.shape[:-1], *shape))


def loss(native: octo.Native, variables, batch: types.Batch, keys: dict):
    """{head: its loss in Octo's scale}, from our sums and counts."""
    config = native.config
    context = build.make_context(config, native.spaces, None, {})
    answers, errors = native.network.apply(variables, batch, "robot", keys)
    found = {}
    for name, (objective, weight) in build.objectives(config, context)["robot"].items():
        total, _ = objective(answers, errors, batch)
        count = sum(mask.sum() for mask in objective.mask(batch).values())
        found[name] = weight * total / count
    return found


@pytest.mark.slow
def test_loss_and_gradient_of_tiny(tiny, fixtures_dir):
    native, batch = tiny.native(), tiny.batch()
    keys = {"action": injected(tiny, "loss", (4, 7))}

    @jax.jit
    @jax.value_and_grad
    def both(variables):
        return loss(native, variables, batch, keys)["action"]

    value, gradient = both(native.variables)
    np.testing.assert_allclose(value, tiny.outputs["loss/loss"], rtol=1e-5)
    with np.load(fixtures_dir / "octo_golden" / "tiny" / "grads.npz") as file:
        wanted, unused = _params.place(dict(file))
    assert not unused
    got = {path: np.asarray(leaf) for path, leaf in trees.items(gradient)}
    frozen = {path for path in got if "/encoder/" in path and "language" in path}
    assert set(got) - set(wanted) == frozen and all(not got[path].any() for path in frozen)
    apart = np.sqrt(sum(np.sum((got[path] - leaf) ** 2) for path, leaf in wanted.items()))
    whole = np.sqrt(sum(np.sum(leaf**2) for leaf in wanted.values()))
    assert apart <= 1e-4 * whole
    np.testing.assert_allclose(whole, tiny.outputs["loss/grad_global_norm"], rtol=1e-5)


@pytest.mark.slow
def test_losses_of_variant2(variant2):
    native, batch = variant2.native(), variant2.batch()
    found = jax.jit(lambda variables: loss(native, variables, batch, {}))(native.variables)
    for name, value in found.items():
        np.testing.assert_allclose(value, variant2.outputs[f"heads/{name}/loss"], rtol=1e-5)
    assert set(found) == {"action", "l1", "discrete", "discrete_map"}


@pytest.mark.slow
def test_samples_of_tiny(tiny):
    native, batch = tiny.native(), tiny.batch()
    start, steps = (tiny.outputs[f"sample/{name}"] for name in ("init_noise", "z_per_step"))
    noise = dict(
        start=start[:, -1].reshape(-1, 4, 7),
        steps=np.moveaxis(steps[:, :, -1], 0, 1).reshape(start.shape[0], -1, 4, 7),
    )
    run = jax.jit(lambda variables: native.network.sample(variables, batch, "robot", keys))
    keys = {"action": noise}
    close(
        run(native.variables)["action"]["action"], tiny.outputs["sample/actions_normalized"], 2e-4
    )


@pytest.mark.slow
def test_answers_of_variant2(variant2):
    native, batch = variant2.native(), variant2.batch()
    run = jax.jit(lambda variables: native.network.sample(variables, batch, "robot", {}))
    for name, answer in jax.device_get(run(native.variables)).items():
        close(answer["action"], variant2.outputs[f"heads/{name}/predict_argmax"])

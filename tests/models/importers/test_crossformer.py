"""An imported CrossFormer checkpoint says what CrossFormer's public code says, in plain numpy."""

import jax
import numpy as np
import pytest

from tests.models.importers import crossformer_files as files
from tests.models.importers.crossformer_numpy import Reference
from vla_jax import types
from vla_jax.models.importers import crossformer

ATOL = 1e-5
ROWS = 4  # one of each action space
STREAM = "robot"


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = files.write(tmp_path_factory.mktemp("crossformer") / "ckpt")
    return crossformer.translate(crossformer.read(str(folder)))


@pytest.fixture(scope="module")
def given() -> dict:
    return files.batch(ROWS)


@pytest.fixture(scope="module")
def batch(given) -> types.Batch:
    return crossformer.batch(given, tuple(files.ACTIONS))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(files.parameters())


@pytest.fixture(scope="module")
def wanted(reference, given) -> dict[str, np.ndarray]:
    return reference(given)


@pytest.fixture(scope="module")
def answered(native, batch):
    """(tokens of every group, answers and errors of every head)."""

    @jax.jit
    def both(variables, batch):
        said = native.network.apply(variables, batch, STREAM, {})
        return native.network.encode(variables, batch, STREAM), said

    return jax.device_get(both(native.variables, batch))


def close(got, wanted) -> None:
    assert got.shape == wanted.shape
    assert np.max(np.abs(got - wanted)) <= ATOL * max(1.0, np.max(np.abs(wanted)))


def test_every_token_group(answered, wanted):
    outputs, _ = answered
    assert set(outputs) == {name.removeprefix("obs_") for name in wanted}
    for name, tokens in wanted.items():
        close(outputs[name.removeprefix("obs_")].final, tokens)


def test_every_head(answered, wanted, reference):
    _, (answers, _) = answered
    assert set(answers) == set(files.ACTIONS)
    for name in answers:
        close(answers[name]["action"], reference.actions(name, wanted))

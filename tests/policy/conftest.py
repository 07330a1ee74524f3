import pytest


@pytest.fixture(scope="session")
def recorded():
    """Recorded episodes and what is trained on them, see recorded.py."""
    from tests.policy import recorded  # not above: jax comes after tests/conftest.py

    return recorded


@pytest.fixture(scope="session")
def run(recorded, tmp_path_factory):
    """A run's folder, and what it was made from."""
    return recorded.run(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def policy_lib():
    from vla_jax.policy import policy

    return policy


@pytest.fixture(scope="session")
def one(policy_lib, run):
    """A policy of one robot; a test that uses it begins with `reset`."""
    return policy_lib.Policy.load(run.workdir)

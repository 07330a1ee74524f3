import pytest


@pytest.fixture(scope="session")
def tiny():
    """A small network, see tiny.py."""
    from tests.models import tiny  # not above: jax comes after tests/conftest.py

    return tiny

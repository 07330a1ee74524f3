import pytest


@pytest.fixture(scope="module")
def case():
    """A head on its own, see case.py."""
    from tests.heads import case as cases  # not above: jax comes after tests/conftest.py

    return cases.make()

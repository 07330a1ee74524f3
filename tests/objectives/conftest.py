import pytest


@pytest.fixture(scope="module")
def case():
    """A batch with every target, see tests/heads/case.py."""
    from tests.heads import case as cases  # not above: jax comes after tests/conftest.py

    return cases.make()

"""Partial loading: what is taken, what starts fresh, what is left over, what is refused."""

import numpy as np
import pytest

from vla_jax import plugin


@pytest.fixture(scope="module")
def pretrained():
    from vla_jax.models import pretrained

    return pretrained


def tree(**leaves):
    return {
        "params": {name: np.full(shape, i + 1.0) for i, (name, shape) in enumerate(leaves.items())}
    }


def test_mapped_missing_unused(pretrained):
    target, source = tree(a=(2,), new=(3,)), tree(old=(1,), a=(2,))
    taken, report = pretrained.match(target, source, fresh=("params/new",))
    assert report.mapped == ("params/a",)
    assert report.missing == ("params/new",)
    assert report.unused == ("params/old",)
    assert taken == {"params/a": "params/a"}
    text = str(report)
    assert "loaded 1 parameters, 1 fresh, 1 of the checkpoint unused" in text
    assert "fresh   params/new" in text and "unused  params/old" in text


def test_rename_first_match_wins(pretrained):
    target, source = tree(trunk=(2,), head=(1,)), tree(backbone=(2,), head=(1,))
    rename = (("params/trunk", "params/backbone"), ("params/.*", "params/nowhere"))
    with pytest.raises(plugin.UserError, match="params/head: checkpoint has nothing"):
        pretrained.match(target, source, rename=rename)
    taken, report = pretrained.match(target, source, rename=rename[:1])
    assert report.mapped == ("params/head", "params/trunk") and not report.unused
    assert taken["params/trunk"] == "params/backbone"


def test_fresh_wins_over_what_the_checkpoint_has(pretrained):
    target, source = tree(pad=(5,), a=(2,)), tree(a=(2,), pad=(5,))
    taken, report = pretrained.match(target, source, fresh=("params/a",))
    assert taken == {"params/pad": "params/pad"}
    assert report.unused == ("params/a",) and report.missing == ("params/a",)


def test_another_shape_is_refused_unless_declared_fresh(pretrained):
    target, source = tree(a=(2,), b=(3,)), tree(a=(4,))
    with pytest.raises(plugin.UserError) as error:
        pretrained.match(target, source)
    assert "params/a: checkpoint has shape (4,), this network needs (2,)" in str(error.value)
    assert "params/b: checkpoint has nothing, this network needs (3,)" in str(error.value)
    _, report = pretrained.match(target, source, fresh=("params/[ab]",))
    assert report.missing == ("params/a", "params/b") and report.unused == ("params/a",)


def test_fresh_paths_are_those_that_cannot_be_loaded(pretrained):
    source = tree(same=(2,), shape=(2,), old=(1,))
    target = tree(same=(2,), shape=(3,), new=(1,))
    assert pretrained.fresh_paths(source, target) == ("params/new", "params/shape")

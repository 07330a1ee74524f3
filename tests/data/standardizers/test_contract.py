import inspect

import pytest

from vla_jax import embodiments, plugin
from vla_jax.data.standardizers import _table, oxe
from vla_jax.types import VIEWS, SourceContext


@pytest.mark.parametrize("name", plugin.names("data.standardizers"))
def test_every_standardizer_file_is_a_plugin(name):
    module = plugin.module("data.standardizers", name)
    assert next(iter(inspect.signature(module.make).parameters)) == "context"
    assert isinstance(module.DEBUG, dict) and module.__doc__ and module.make.__doc__


@pytest.mark.parametrize("row", oxe.ROWS)
def test_every_row_names_a_known_body_and_views(row):
    entry = oxe.ROWS[row]
    bodies = {b.EMBODIMENT.name: b.EMBODIMENT for b in _bodies()}
    body = bodies[entry.embodiment]
    assert entry.action_space in [space.name for space in body.action_spaces]
    assert set(entry.views) <= set(VIEWS) & set(body.views)
    assert set(entry.proprio) <= {group.name for group in body.proprio}
    made = oxe.make(SourceContext(name="x", stream=""), row=row)
    assert isinstance(made, _table.TableStandardizer)


def _bodies():
    import importlib
    import pkgutil

    for info in pkgutil.iter_modules(embodiments.__path__):
        if not info.name.startswith("_"):
            yield importlib.import_module(f"vla_jax.embodiments.{info.name}")

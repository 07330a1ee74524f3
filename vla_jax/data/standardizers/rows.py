"""Rows of your own, for any source: a file of them, or one written in the config.

    # my_rows.py                                      # in a config
    from vla_jax.data.standardizers._table import Row  standardizer=dict(
                                                           type="rows", file="my_rows.py",
    ROWS = {"kitchen": Row(embodiment=…, …)}              row="kitchen")

                                                       standardizer=dict(type="rows", row=dict(
                                                           embodiment=…, action="action", …))

Any row, of oxe.py too, takes changes beside its name: ``row="kitchen", language=None``. The file
may hold EMBODIMENT, the robot, for `c.embodiments = ("my_rows.py",)`. A row says what
`Row` in _table.py says; `vla data inspect PATH` prints the columns it can name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vla_jax import plugin
from vla_jax.data.standardizers import _table

DEBUG: dict = {}


def make(
    context, *, row: str | Mapping, file: str | None = None, **changes: _table.Row
) -> _table.TableStandardizer:
    """The standardizer of one row.

    Args:
      context: where it is asked for.
      row: its name in the file's ROWS; without a file, the row itself, a dict of Row's fields.
      file: a Python file that defines ROWS, name -> Row (or dict).
      changes: fields of the row to be otherwise than it says, e.g. ``language=None``.

    Raises:
      UserError: no such file or row; a row that is not sound (field and nearest operation named).
    """
    where = f"data.standardizers.rows ({context.name})"
    if file is None:
        if isinstance(row, str):
            raise plugin.UserError(
                f"{where}: row={row!r} without a file; give file='my_rows.py', write the row "
                f"itself (row=dict(embodiment=…)), or use dict(type='oxe', row={row!r})"
            )
        made = _table.row(f"{where}: row", row)
        return _table.TableStandardizer("inline", dataclasses.replace(made, **changes))
    known = plugin.load_attribute(file, "ROWS")
    if not isinstance(row, str) or row not in known:
        raise plugin.UserError(plugin.unknown(f"{where}: {file}", row, known))
    made = _table.row(f"{file}: row {row!r}", known[row])
    return _table.TableStandardizer(row, dataclasses.replace(made, **changes))

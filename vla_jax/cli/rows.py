"""Lists the data sets that have a standardizer row, or says what one row makes of its data.

  vla data rows                                all of them, and the named mixtures
  vla data rows viola                          one: columns, and what each number means
  vla data rows kitchen --file my_rows.py      one of your own

Nothing of a data set is read. The last line on stdout is the same as JSON.
"""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("row", nargs="?", help="one row; none: the list")
    parser.add_argument("--file", help="a Python file with ROWS (default: the rows that are known)")


def run(arguments: argparse.Namespace) -> int:
    """Prints the rows and one JSON line."""
    from vla_jax import plugin
    from vla_jax.data import catalogue

    rows = catalogue.known(arguments.file)
    if arguments.row is None:
        for name, row in rows.items():
            print(catalogue.line(name, row))
        mixtures = {} if arguments.file else plugin.module("data.standardizers", "oxe").MIXTURES
        for name, members in mixtures.items():
            print(f"mixture {name}: {len(members)} data sets")
        print(json.dumps({"rows": list(rows), "mixtures": list(mixtures)}))
        return 0
    if arguments.row not in rows:
        raise plugin.UserError(plugin.unknown("vla data rows", arguments.row, rows))
    row = rows[arguments.row]
    robot = catalogue.body(row.embodiment, arguments.file)
    found = catalogue.described(arguments.row, row, robot)
    for name, value in found.items():
        if isinstance(value, dict):
            for part, said in value.items():
                print(f"{name:<16} {part}: {said}")
        elif value not in ([], None):
            print(f"{name:<16} {value}")
    print(json.dumps(found, ensure_ascii=False))
    return 0

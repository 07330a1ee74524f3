"""Compares an imported Octo checkpoint with a folder of arrays that Octo computed from it.

  python tools/compare_octo.py --golden ../shared/fixtures/octo_golden/tiny

Masks, embeddings, schedules, losses at the stored time and noise, gradients, samples with the
stored noise, optimizer steps, bins, stand-alone modules: whatever arrays the folder holds. The
last line is one JSON object: {"file:array": {"max_abs", "tolerance", "pass"}, …, "not_compared":
{array: why}}; tolerance is atol · max(1, max|reference|), for masks no difference at all. Exit code
1 when an array differs, when one is neither compared nor left out for a stated reason, and when one
that arrays.json lists is missing; 2 for a folder of another kind.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from vla_jax import plugin  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Compares, prints a line for each array that differs, and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--golden", required=True, help="folder with ckpt/, arrays.json, *.npz")
    arguments = parser.parse_args(argv)
    try:
        verdicts, excused, unaccounted = compare(pathlib.Path(arguments.golden))
    except plugin.UserError as error:
        print(f"compare_octo: {error}", file=sys.stderr)
        return 2
    failed = [name for name, verdict in verdicts.items() if not verdict["pass"]]
    for name in failed:
        print(f"differs: {name} {verdicts[name]}", file=sys.stderr)
    for name, why in unaccounted.items():
        print(f"unaccounted: {name}: {why}", file=sys.stderr)
    print(json.dumps({**verdicts, "not_compared": excused, "unaccounted": unaccounted}))
    return 1 if failed or unaccounted else 0


def compare(folder: pathlib.Path) -> tuple[dict, dict, dict]:
    """(verdicts, what was left out and why, what is unaccounted for) of a golden folder."""
    from tools.octo_golden import forward, golden, heads, modules, training

    found = golden.Golden(folder)
    for part in (forward, heads, training, modules):
        part.compare(found)
    return found.verdicts, found.excused, found.unaccounted()


if __name__ == "__main__":
    sys.exit(main())

"""Compares an imported Octo checkpoint with a folder of arrays that Octo computed from it.

  python tools/compare_octo.py --golden ../shared/fixtures/octo_golden/tiny

Masks, embeddings, schedules, losses at the stored time and noise, gradients, samples with the
stored noise, optimizer steps, bins, stand-alone modules: whatever arrays the folder holds, of
whatever sizes. The last line is one JSON object: {"file:array": {"max_abs", "tolerance", "pass"},
…, "not_compared": {"file:array": why}}; tolerance is atol · max(1, max|reference|), of losses,
rates and norms atol · |reference|, for masks and integers no difference at all. Inputs stand under
"not_compared", as such. An array that is missing, has another shape or that no comparison knows is
an entry that does not pass, with "why" (its max_abs stands for an infinite one). Exit code 1 when
an entry does not pass; 2 for a folder of another kind.
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
        found = compare(pathlib.Path(arguments.golden))
    except plugin.UserError as error:
        print(f"compare_octo: {error}", file=sys.stderr)
        return 2
    verdicts = {name: verdict for name, verdict in found.items() if name != "not_compared"}
    failed = {name: verdict for name, verdict in verdicts.items() if not verdict["pass"]}
    for name, verdict in failed.items():
        print(f"differs: {name} {verdict}", file=sys.stderr)
    print(f"{len(verdicts) - len(failed)} pass, {len(failed)} do not", file=sys.stderr)
    print(json.dumps(found))
    return 1 if failed else 0


def compare(folder: pathlib.Path) -> dict:
    """{"file:array": verdict, …, "not_compared": {…}} of a golden folder."""
    from tools.octo_golden import (
        draws,
        dropped,
        forward,
        golden,
        heads,
        intermediates,
        modules,
        parameters,
        sampling,
        training,
    )

    found = golden.Golden(folder)
    for part in (
        parameters,
        forward,
        heads,
        sampling,
        training,
        modules,
        draws,
        dropped,
        intermediates,
    ):
        part.compare(found)
    return found.report()


if __name__ == "__main__":
    sys.exit(main())

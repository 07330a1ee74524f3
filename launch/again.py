"""Says whether a training that has ended is to be begun again; the SLURM script asks it.

  python launch/again.py begin --workdir W                 prints the newest checkpoint's train_step
  python launch/again.py after CODE --workdir W --begun S --restarts N [--first]

`after` exits with 0 for "again", with 3 for "no", and says why; another code is its own failure.
The rule stands in parallel/endings.py. How often in a row the training has ended without a newer
checkpoint than when it had begun is kept in WORKDIR/restarts.json; `--first` forgets what is there.
"""

from __future__ import annotations

import argparse
import json
import sys

from vla_jax import plugin, storage
from vla_jax.parallel import endings
from vla_jax.train import meta

FILE = "restarts.json"
NO = 3


def main(argv: list[str] | None = None) -> int:
    """0 for "again" (and for `begin`), NO for "no", 2 for a mistake."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    begin, after = verbs.add_parser("begin"), verbs.add_parser("after")
    after.add_argument("code", type=int)
    after.add_argument("--begun", type=int, required=True, help="what `begin` has printed")
    after.add_argument("--restarts", type=int, required=True, help="without a newer checkpoint")
    after.add_argument("--first", action="store_true", help="this job has not been restarted yet")
    for verb in (begin, after):
        verb.add_argument("--workdir", required=True)
    arguments = parser.parse_args(argv)
    try:
        if arguments.verb == "begin":
            print(newest(arguments.workdir))
            return 0
        return 0 if decide(arguments) else NO
    except plugin.UserError as error:
        print(f"again.py: {error}", file=sys.stderr)
        return 2


def newest(workdir: str) -> int:
    """The train_step of the newest complete checkpoint to go on from, -1 for none."""
    return max(meta.steps(meta.place(workdir) / meta.RESUME), default=-1)


def decide(arguments: argparse.Namespace) -> bool:
    """Whether to begin again; keeps the count."""
    file = storage.join(arguments.workdir, FILE)
    count = 0
    if not arguments.first and storage.is_file(file):
        count = json.loads(storage.read(file))["count"]
    tries = endings.Tries(arguments.restarts, arguments.begun, count)
    found = newest(arguments.workdir)
    again = tries.again(arguments.code, found)
    if again and (arguments.first or tries.count != count):
        storage.write(file, json.dumps(dict(count=tries.count)))
    elif not again and storage.is_file(file):
        storage.remove(file)  # who begins it by hand has seen to it
    where = f"the newest checkpoint is of train_step {found}" if found >= 0 else "no checkpoint"
    bound = f", {tries.count} of {tries.most} restarts without a newer one" if tries.count else ""
    text = f"again.py: ended with {arguments.code}, {where}{bound}: {'again' if again else 'no'}"
    print(text, file=sys.stderr, flush=True)
    return again


if __name__ == "__main__":
    sys.exit(main())

"""Looks into checkpoints: a run's steps, one step's content, differences, damage; safetensors.

  vla ckpt ls runs/x                      every save: train_step, n, bytes, metric, complete or not
  vla ckpt show runs/x [--step 2000]      config, provenance, every parameter with its norm
  vla ckpt diff runs/x runs/y             settings and parameters that differ
  vla ckpt verify runs/x                  hashes every file (config.checkpoint.checksums), reads
                                          every array; exit code 1 if anything is wrong
  vla ckpt export runs/x --out x_export   safetensors

Where a checkpoint is asked for, a run's folder means its newest step, runs/x/best/1000 that step.
The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import pathlib

from vla_jax import storage


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verbs = parser.add_subparsers(dest="what", required=True, metavar="ls|show|diff|verify|export")
    listing = verbs.add_parser("ls", help="every save of a run")
    listing.add_argument("folder", help="the run's folder")
    for name in ("show", "diff", "verify", "export"):
        verb = verbs.add_parser(name)
        verb.add_argument("checkpoint", help="a run's folder, or one step's")
        if name == "diff":
            verb.add_argument("other", help="a run's folder, or one step's")
        else:
            verb.add_argument("--step", type=int, help="default: the newest")
        if name in ("show", "diff"):
            verb.add_argument("--item", default="params", help="params, ema or optimizer")
    verb = verbs.choices["export"]
    verb.add_argument("--out", required=True, help="a new folder")
    verb.add_argument("--raw", action="store_true", help="not the moving average")
    verb.add_argument("--shard-gb", type=float, default=5.0, help="the largest file (default: 5)")


def run(arguments: argparse.Namespace) -> int:
    """Prints what was asked for; the last line is JSON. 1 when `verify` finds something wrong."""
    found = {"ls": ls, "show": show, "diff": diff, "verify": verify, "export": export}[
        arguments.what
    ](arguments)
    print(json.dumps(found), flush=True)
    return 1 if found.get("wrong") else 0


def ls(arguments: argparse.Namespace) -> dict:
    """Prints a row per save."""
    from vla_jax.train import examine

    rows = examine.steps(arguments.folder)
    cells = [("folder", "train_step", "n", "MB", "metric", "checksums", "state")]
    for row in rows:
        n = " ".join(f"{stream}={count}" for stream, count in row["n"].items())
        metric = "" if row["metric"] is None else f"{row['metric']:.6g}"
        size, state = f"{row['bytes'] / 1e6:.1f}", row["wrong"] or "complete"
        sums = "yes" if row["checksums"] else ""
        cells.append((row["folder"], str(row["train_step"]), n, size, metric, sums, state))
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return {"run": arguments.folder, "steps": rows}


def show(arguments: argparse.Namespace) -> dict:
    """Prints config, provenance and a table of arrays."""
    from vla_jax.train import examine

    found = examine.show(_folder(arguments.checkpoint, arguments.step), arguments.item)
    origin = dict(found["provenance"])
    changed = origin.pop("git_diff", "")
    print(json.dumps(found["config"], indent=1))
    print(f"\ntrain_step {found['train_step']}  n {found['n']}  items {', '.join(found['items'])}")
    for name, value in origin.items():
        print(f"{name}: {value}")
    print(f"git_diff: {len(changed.splitlines())} lines\n")
    rows = found["arrays"]
    for row in rows:
        print(f"{row['path']:<64} {row['shape']!s:>20} {row['dtype']:>9} {row['norm']:>12.6g}")
    return {**found, "config": found["config"], "provenance": origin}


def diff(arguments: argparse.Namespace) -> dict:
    """Prints settings and arrays that differ."""
    from vla_jax.train import examine

    sides = [_folder(path) for path in (arguments.checkpoint, arguments.other)]
    found = examine.diff(*sides, arguments.item)
    for path, (a, b) in found["config"].items():
        print(f"config.{path}: {a!r} -> {b!r}")
    for key, folder in (("only_in_a", found["a"]), ("only_in_b", found["b"])):
        for path in found[key]:
            print(f"only in {folder}: {path}")
    for path, (a, b) in found["shapes"].items():
        print(f"{path}: {a} -> {b}")
    for path, row in found["arrays"].items():
        print(f"{path:<64} max abs {row['max_abs']:>10.3e}  relative {row['relative']:>10.3e}")
    print(f"{found['equal']} arrays are equal, {len(found['arrays'])} differ")
    return found


def verify(arguments: argparse.Namespace) -> dict:
    """Prints what is wrong with a checkpoint."""
    from vla_jax.train import examine

    found = examine.verify(_folder(arguments.checkpoint, arguments.step, complete=False))
    for line in found["wrong"]:
        print(f"wrong: {line}")
    hashed = "every file hashed" if found["hashed"] else "no checksums.json: files not hashed"
    print(f"{found['folder']}: {found['arrays']} arrays of {found['items']} read, {hashed}")
    return found


def export(arguments: argparse.Namespace) -> dict:
    """Writes safetensors."""
    from vla_jax.train import export as exports

    out = storage.local("--out", arguments.out)
    folder = _folder(arguments.checkpoint, arguments.step)
    size = int(arguments.shard_gb * 1e9)
    found = exports.write(folder, out, averaged=not arguments.raw, shard_bytes=size)
    for name in found["files"]:
        print(out / name)
    return {"checkpoint": str(folder), "out": str(out), **found}


def _folder(path: str, step: int | None = None, complete: bool = True) -> pathlib.PurePath:
    """One step's folder; `complete=False` takes a damaged one that is named itself."""
    from vla_jax.train import meta

    root = meta.place(path)
    named = root.name.split(".")[0].isdigit() and storage.is_dir(root)
    if not complete and step is None and named:
        return root
    return meta.find(path, step)

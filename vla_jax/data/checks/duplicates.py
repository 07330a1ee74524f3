"""Episodes that stand in the data twice: in one split, or in several."""

from __future__ import annotations

import collections
import hashlib

import numpy as np

from vla_jax import plugin
from vla_jax.data import doctor


def check(case: doctor.Case):
    """(findings, numbers): episodes are the same if numbers and first pictures are."""
    own, broken = _digests(case.table, case.read, case.skips)
    groups = collections.defaultdict(list)
    for id_, digest in zip(case.table.ids, own):
        groups[digest].append(id_)
    twice = [ids for ids in groups.values() if len(ids) > 1]
    extra = sum(len(ids) - 1 for ids in twice)
    numbers = {"repeated": extra, "groups": twice[:20], "splits": {}}
    findings = doctor.left_out(broken, len(own))
    if twice:
        findings.append(
            doctor.Finding(
                severity="warning",
                message=f"{extra} of {len(own)} episodes repeat another one, e.g. {twice[0][:3]}",
                remedy="Remove the copies: they weigh double, and leak into what is held out.",
            )
        )
    for split, (table, read) in case.others.items():
        theirs, broken = _digests(table, read, case.skips)
        findings += doctor.left_out(broken, len(theirs), f"split {split!r}: ")
        shared = sum(digest in groups for digest in theirs)
        numbers["splits"][split] = {"episodes": len(theirs), "shared": shared}
        if shared:
            findings.append(
                doctor.Finding(
                    severity="warning",
                    message=f"split {split!r}: {shared} of {len(theirs)} episodes are in this "
                    "split too; an error measured there measures nothing",
                    remedy="Hold episodes of this split out (holdout=0.1) instead of using it.",
                )
            )
    return findings, numbers


def _digests(table, read, skips: bool) -> tuple[list[bytes], list[str]]:
    """(a hash of each episode's actions, readings and first picture of each view, faults).

    An episode with a picture that cannot be read is like no other; UserError unless it `skips`.
    """
    digests, broken = [], []
    for episode in range(len(table)):
        first, last = (int(i) for i in table.start[episode : episode + 2])
        digest = hashlib.blake2b(table.action[first:last].tobytes(), digest_size=16)
        for _, values in sorted(table.proprio.items()):
            digest.update(values[first:last].tobytes())
        for view, frames in sorted(table.frames.items()):
            there = np.flatnonzero(frames.length[first:last] > 0)
            if len(there):
                row = first + int(there[0])
                try:
                    (data,) = read(view, episode, [row])
                except plugin.UserError as error:
                    if not skips:
                        raise
                    broken.append(f"episode {table.ids[episode]}: {error}")
                    digest.update(table.ids[episode].encode())
                    break
                digest.update(data if isinstance(data, bytes) else np.ascontiguousarray(data))
        digests.append(digest.digest())
    return digests, broken

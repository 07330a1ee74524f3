"""Steps without an instruction, and instructions that are none."""

from __future__ import annotations

import numpy as np

from vla_jax.data import doctor

NOTHING = ("none", "null", "nan", "n/a", "na", "todo", "task", "instruction", "default", "-", ".")


def check(case: doctor.Case):
    """(findings, numbers) of the instructions."""
    table = case.table
    missing = table.language_index < 0
    episodes = np.add.reduceat(missing, table.start[:-1]) > 0
    used = np.unique(table.language_index[~missing]).tolist()
    odd = {index: table.language[index] for index in used if _odd(table.language[index])}
    numbers = {
        "steps_without": float(np.mean(missing)),
        "episodes_with_such_steps": int(episodes.sum()),
        "instructions": len(used),
        "odd": list(odd.values())[:20],
        "language": case.language,
    }
    findings = []
    if missing.any():
        some = table.ids[int(np.flatnonzero(episodes)[0])]
        findings.append(
            doctor.Finding(
                severity="error" if case.language == "required" else "warning",
                message=(
                    f"{doctor.percent(np.mean(missing))} of the steps, in {int(episodes.sum())} of "
                    f"{len(table)} episodes, have no instruction (e.g. episode {some}); the run "
                    f"has language={case.language!r}"
                ),
                remedy=(
                    "Filter these episodes out, or set language='optional' to train on them "
                    "without one."
                ),
            )
        )
    if odd:
        share = np.mean(np.isin(table.language_index, list(odd)))
        findings.append(
            doctor.Finding(
                severity="warning",
                message=(
                    f"{len(odd)} of {len(used)} instructions say nothing or are no plain "
                    f"text, at {doctor.percent(share)} of the steps: {list(odd.values())[:3]}"
                ),
                remedy="Name the right text column in the standardizer, or repair the texts.",
            )
        )
    return findings, numbers


def _odd(text: str) -> bool:
    """A placeholder, the print of bytes, or characters that stand for broken ones."""
    plain = text.strip().lower()
    printed = plain.startswith(("b'", 'b"', "tf.tensor", "[b'"))
    return plain in NOTHING or printed or "\ufffd" in text or not any(c.isalnum() for c in plain)

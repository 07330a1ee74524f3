"""How much of a chunk is real, episodes shorter than one, and steps without a picture."""

from __future__ import annotations

import numpy as np

from vla_jax.data import doctor

MASKED, MASKED_BADLY = 0.25, 0.6  # share of the actions of a chunk that are past the end
SHORT = 0.2  # share of episodes shorter than a chunk


def check(case: doctor.Case):
    """(findings, numbers); a sample starts at every step."""
    chunk, lengths = case.source.context.action_horizon, case.table.lengths
    # Of an episode of T steps, the chunk at step t has min(C, T - t) real actions.
    full = np.maximum(lengths - chunk, 0)
    rest = lengths - full
    real = full * chunk + rest * (rest + 1) // 2
    masked = 1 - float(real.sum()) / (chunk * float(lengths.sum()))
    short = float(np.mean(lengths < chunk))
    views = case.source.context.image_sizes or case.table.frames
    absent = {
        v: float(np.mean(case.table.frames[v].length == 0)) for v in views if v in case.table.frames
    }
    numbers = {
        "action_horizon": chunk,
        "masked_share": masked,
        "short_episodes": short,
        "shortest": int(lengths.min()),
        "median_length": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "steps_without_picture": absent,
    }
    findings = []
    if masked > MASKED or short > SHORT:
        findings.append(
            doctor.Finding(
                severity="error" if masked > MASKED_BADLY else "warning",
                message=(
                    f"{doctor.percent(masked)} of the actions in chunks of {chunk} lie past the "
                    f"end of their episode; {doctor.percent(short)} of the episodes are shorter "
                    f"than a chunk (median {np.median(lengths):g} steps)"
                ),
                remedy="Use a smaller action_horizon, or data at a higher rate.",
            )
        )
    for view, share in absent.items():
        if share > 0:
            findings.append(
                doctor.Finding(
                    severity="note",
                    message=f"view {view}: {doctor.percent(share)} of the steps have no picture",
                    remedy="No sample starts there, unless the view is named in optional_views.",
                )
            )
    return findings, numbers

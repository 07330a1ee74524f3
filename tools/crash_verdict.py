"""What tools/crash_test.py found, computed from what its trainings have written.

Reads a run's metrics.jsonl (losses) and RUN.rows-ATTEMPT-PROCESS.jsonl (the rows of each batch).
"""

from __future__ import annotations

import json
import pathlib


def verdict(root: pathlib.Path, state: dict, steps: int, every: int) -> dict:
    """The figures, from the three JSONL files that it writes below `root`.

    `state` lists the kills, and which of them were followed on the other mesh.
    """
    expected = {line["train_step"]: line for line in lines(root, "undisturbed", [""])}
    killed = lines(root, "killed", [""])
    elastic = lines(root, "elastic", [f"-{number}" for number in state["elastic"]])
    difference = max(
        (abs(x["loss"] - (y := expected[x["train_step"]]["loss"])) / abs(y) for x in elastic),
        default=0.0,
    )
    kills = state["killed"]
    found = dict(
        kills=len(kills),
        in_saves=sum(kill["where"] == "save" for kill in kills),
        restores=sum(kill["begin"] is not None for kill in kills),
        unreadable=sum(bool(kill["wrong"]) for kill in kills),
        max_steps_lost=max((kill["lost"] for kill in kills), default=0),
        # Of those, done while a save was being written: until it stands, the one before counts.
        max_steps_in_save=max((kill["during"] for kill in kills), default=0),
        save_every=every,
        bitwise_same_mesh=all(
            x["loss_hex"] == expected[x["train_step"]]["loss_hex"] for x in killed
        )
        and {x["train_step"] for x in killed} == set(expected),
        max_rel_loss_diff=difference,
        order_equal=all(
            x["rows"] == expected[x["train_step"]]["rows"] for x in (*killed, *elastic)
        ),
        train_steps=steps,
        compared=dict(same_mesh=len(killed), elastic=len(elastic)),
    )
    found["passed"] = (
        found["unreadable"] == 0
        and found["max_steps_lost"] <= every
        and found["bitwise_same_mesh"]
        and found["max_rel_loss_diff"] <= 1e-5
        and found["order_equal"]
    )
    return found


def lines(root: pathlib.Path, name: str, endings: list[str]) -> list[dict]:
    """A line per train_step and attempt of some runs, also written to NAME.jsonl."""
    made = []
    for run in (f"{name}{ending}" for ending in endings):
        rows: dict[int, list[dict]] = {}
        for file in sorted(root.glob(f"{run}.rows-*.jsonl")):
            attempt = int(file.name.split("-")[-2])
            for line in map(json.loads, file.read_text().splitlines()):
                at = rows.setdefault(line["train_step"], [])
                while len(at) <= attempt:
                    at.append({})
                at[attempt].update(line["rows"])
        metrics = [json.loads(x) for x in (root / run / "metrics.jsonl").open()]
        for line in metrics:
            # The rows of every attempt at this train_step must be the same: see `order_equal`.
            drawn = [attempt for attempt in rows[line["step"]] if attempt]
            whole = [attempt for attempt in drawn if len(attempt) == max(map(len, drawn))]
            same = all(attempt == whole[0] for attempt in whole)
            entry = dict(run=run, train_step=line["step"], loss=line["loss"])
            entry["loss_hex"] = float(line["loss"]).hex()
            made.append({**entry, "rows": whole[0] if same else whole})
    with (root / f"{name}.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in made)
    return made

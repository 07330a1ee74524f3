import json
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import psutil
import pytest

from vla_jax.data import engine
from vla_jax.data import mixture as mixture_lib
from vla_jax.types import Batch


@pytest.fixture
def mixture(folder, context):
    members = {
        "all": dict(
            source=dict(
                type="rlds",
                path=str(folder),
                augment=dict(color=0.2, crop_scale=(0.6, 1.0), image_dropout=0.2),
                goals=dict(views=("primary",)),
                asked=dict(language=0.5, goal=0.4, none=0.1),
            ),
            weight=[(0, 1), (40, 3)],
        ),
        "early": dict(
            source=dict(
                type="rlds", path=str(folder), steps="[:3]", goals=dict(views=("primary",))
            ),
            weight=1,
        ),
    }
    return mixture_lib.Mixture.make(members, context, seed=5)


def row(batch, place: int):
    """Row `place` of a stacked batch."""
    if isinstance(batch, dict):
        return {name: row(value, place) for name, value in batch.items()}
    return batch[place]


def take(stream, n):
    with stream:
        return [next(stream) for _ in range(n)]


def test_batches_fit_the_contract_page(mixture):
    (batch,) = take(engine.Stream(mixture, 6), 1)
    made = Batch.make(**batch)
    assert made.row_id.tolist() == list(range(6))
    assert made.observation.images["primary"].shape == (6, 2, 16, 16, 3)
    assert made.targets["action"].shape == (6, 2, 3, 5)


def test_hosts_threads_and_resume_change_nothing(mixture):
    whole = take(engine.Stream(mixture, 8), 5)
    assert len({name for name, _ in map(mixture.locate, range(40))}) == 2
    for hosts in (1, 2, 4, 8):
        parts = [
            take(engine.Stream(mixture, 8, rows=np.arange(8)[h::hosts], threads=h % 3 + 1), 5)
            for h in range(hosts)
        ]
        for k in range(5):
            rows = [row(parts[n % hosts][k], n // hosts) for n in range(8)]
            np.testing.assert_equal(engine.stack(rows), whole[k], "every field of every row")
    stream = engine.Stream(mixture, 8)
    next(stream), next(stream)
    n = stream.n
    stream.close()
    assert n == 16
    np.testing.assert_equal(take(engine.Stream(mixture, 8, start_n=n), 3), whole[2:])
    # Another batch size goes on with the same rows.
    other = take(engine.Stream(mixture, 4, start_n=n), 2)
    assert np.concatenate([b["row_id"] for b in other]).tolist() == whole[2]["row_id"].tolist()
    np.testing.assert_array_equal(
        np.concatenate([b["targets"]["action"] for b in other]), whole[2]["targets"]["action"]
    )


def test_closing_twice_is_fine(mixture):
    stream = engine.Stream(mixture, 4)
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    with pytest.raises(ValueError, match="expected some of"):
        engine.Stream(mixture, 4, rows=[4])


WORKERS = """
import pathlib, pickle, sys

def main():
    from vla_jax.data import engine
    mixture = pickle.loads(pathlib.Path("mixture").read_bytes())
    n, batches = 8, []
    for workers, count in ((2, 2), (1, 3)):  # a run that is resumed with other workers
        with engine.Stream(mixture, 8, workers=workers, start_n=n) as stream:
            batches += [next(stream) for _ in range(count)]
            n = stream.n
    assert n == 48
    assert type(batches[0]["observation"]["images"]["primary"]).__name__ == "ndarray"
    pathlib.Path("out").write_bytes(pickle.dumps(batches))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("access", ["random", "contiguous"])
def test_any_number_of_workers_gives_the_same_batches_and_leaves_nothing(
    mixture, folder, context, tmp_path, access
):
    if access == "contiguous":  # runs of an episode or two, so that batches are of several
        source = dict(
            type="rlds", path=str(folder), access=access, num_runs=2, run_bytes=8_000, holdout=0
        )
        mixture = mixture_lib.Mixture.make({"all": dict(source=source)}, context, seed=5)
        assert len(mixture.sources["all"].runs.bounds) > 5
    (tmp_path / "program.py").write_text(textwrap.dedent(WORKERS))
    (tmp_path / "mixture").write_bytes(pickle.dumps(mixture))
    project = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(project)},
    )
    assert done.returncode == 0, done.stderr
    assert "leaked" not in done.stderr, done.stderr
    got = pickle.loads((tmp_path / "out").read_bytes())
    np.testing.assert_equal(got, take(engine.Stream(mixture, 8, start_n=8), 5))


ORPHANS = """
import pathlib, pickle, time

def main():
    from vla_jax.data import engine
    stream = engine.Stream(pickle.loads(pathlib.Path("mixture").read_bytes()), 8, workers=1)
    next(stream)
    print("reading", flush=True)
    time.sleep(300)

if __name__ == "__main__":
    main()
"""


def test_workers_end_when_their_parent_is_killed(mixture, tmp_path):
    (tmp_path / "program.py").write_text(ORPHANS)
    (tmp_path / "mixture").write_bytes(pickle.dumps(mixture))
    project = pathlib.Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(project)},
    )
    try:
        assert parent.stdout.readline().strip() == b"reading"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def test_an_error_in_a_row_reaches_the_reader(folder, context, rlds, tmp_path):
    columns = {"steps/observation/images/primary": [b"\xff\xd8 no picture"] * 7}
    path = rlds.write(
        tmp_path / "bad", [rlds.episode(i, **(columns if i == 3 else {})) for i in range(4)]
    )
    spec = dict(type="rlds", path=str(path), holdout=0)
    try:
        broken = mixture_lib.Mixture.make({"a": dict(source=spec)}, context)
    except ValueError as error:  # the sample that is drawn for the check
        assert "episode e3" in str(error)
        return
    with pytest.raises(ValueError, match="episode e3"):
        take(engine.Stream(broken, 8), 8)


def test_state_is_json(mixture):
    stream = engine.Stream(mixture, 4, start_n=12)
    assert json.loads(json.dumps(stream.n)) == 12
    stream.close()

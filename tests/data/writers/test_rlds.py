import json
import subprocess
import sys

import numpy as np
import pytest

from vla_jax.data.writers import rlds
from vla_jax.plugin import UserError

READ = """
import json, sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
rows = []
for episode in builder.as_dataset(split="train"):
    steps = list(episode["steps"].as_numpy_iterator())
    rows.append(dict(
        id=episode["episode_metadata"]["episode_id"].numpy().decode(),
        camera=episode["episode_metadata"]["camera"]["primary"].numpy().tolist(),
        seed=int(episode["episode_metadata"]["seed"]),
        action=[step["action"].tolist() for step in steps],
        hand=[step["observation"]["proprio"]["hand"].tolist() for step in steps],
        mask=[bool(step["observation"]["image_masks"]["primary"]) for step in steps],
        shape=[list(step["observation"]["images"]["primary"].shape) for step in steps],
        mean=[float(step["observation"]["images"]["primary"].mean()) for step in steps],
        text=steps[0]["language_instruction"].decode(),
        flags=[[bool(step[k]) for k in ("is_first", "is_last", "is_terminal")] for step in steps],
    ))
print(json.dumps(dict(name=builder.info.name, rows=rows)))
"""


def episode(i, length=5, **changes):
    rng = np.random.default_rng(i)
    pictures = [np.full((16, 20, 3), 10 * i + t, np.uint8) for t in range(length)]
    made = dict(
        action=rng.standard_normal((length, 4)).astype(np.float32),
        images={"primary": [p if t % 2 == 0 else None for t, p in enumerate(pictures)]},
        proprio={"hand": rng.standard_normal((length, 3)).astype(np.float32)},
        instruction="touch the fox",
        metadata=dict(
            episode_id=f"e{i}",
            embodiment="sawyer_cards",
            action_space="sawyer_xyz_gripper",
            seed=2**40 + i,
            noise=0.5,
            success=True,
            camera={"primary": np.arange(12, dtype=np.float32).reshape(3, 4)},
        ),
    )
    return {**made, **changes}


def neighbours(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of 7 episodes of different length, in shards of 3."""
    out = tmp_path_factory.mktemp("rlds") / "seven"
    assert rlds.write(out, (episode(i, length=3 + i) for i in range(7)), shard=3) == 7
    return out


def test_tfds_reads_what_was_written(written):
    done = subprocess.run(
        [sys.executable, "-c", READ, str(written)], capture_output=True, text=True, check=True
    )
    read = json.loads(done.stdout.splitlines()[-1])
    assert read["name"] == "seven" and len(read["rows"]) == 7
    for row in read["rows"]:
        expected = episode(int(row["id"][1:]), length=len(row["action"]))
        assert row["text"] == "touch the fox" and row["seed"] == expected["metadata"]["seed"]
        np.testing.assert_array_equal(np.float32(row["action"]), expected["action"])
        np.testing.assert_array_equal(np.float32(row["hand"]), expected["proprio"]["hand"])
        np.testing.assert_array_equal(row["camera"], expected["metadata"]["camera"]["primary"])
        length = len(row["action"])
        last = [t == length - 1 for t in range(length)]
        assert row["flags"] == [[t == 0, last[t], last[t]] for t in range(length)]
        assert row["mask"] == [t % 2 == 0 for t in range(length)]
        assert row["shape"] == [[16, 20, 3]] * length
        gray = [10 * int(row["id"][1:]) + t if t % 2 == 0 else 127 for t in range(length)]
        np.testing.assert_allclose(row["mean"], gray, atol=1.0)


def test_files_and_nothing_beside_them(written):
    assert neighbours(written.parent) == ["seven"]
    assert neighbours(written) == [
        "dataset_info.json",
        "features.json",
        *(f"seven-train.tfrecord-{shard:05d}-of-00003" for shard in range(3)),
    ]


def test_bad_episodes_are_refused_and_leave_nothing(tmp_path):
    nan = episode(0)
    nan["action"][3, 1] = np.nan
    cases = {
        "action: not finite at steps \\[3\\]": [nan],
        "expected float32 \\[5": [episode(0, proprio={"hand": np.zeros((4, 3), np.float32)})],
        "action: got float64": [episode(0, action=np.zeros((5, 4)))],
        "2 pictures, expected 5": [episode(0, images={"primary": [None, None]})],
        "sizes \\[\\], expected one size": [episode(0, images={"primary": [None] * 5})],
        "expected the form of the first": [
            episode(0),
            episode(1, action=np.zeros((5, 3), np.float32)),
        ],
        "no episodes": [],
    }
    for message, episodes in cases.items():
        with pytest.raises(UserError, match=message):
            rlds.write(tmp_path / "out", episodes)
        assert neighbours(tmp_path) == []


def test_an_iterator_that_fails_leaves_nothing(tmp_path):
    def episodes():
        yield episode(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rlds.write(tmp_path / "out", episodes())
    assert neighbours(tmp_path) == []


def test_a_folder_with_something_in_it_is_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        rlds.write(tmp_path / "out", [episode(0)])
    assert neighbours(tmp_path / "out") == ["mine"]

"""The Bridge fixture against tensorflow-datasets itself, in a process of its own."""

import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from vla_jax.data import images
from vla_jax.data.sources import rlds as source_lib

TFDS = """
import sys, pathlib, pickle, numpy as np, tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
found = []
raw = {f"image_{c}": tfds.decode.SkipDecoding() for c in range(4)}
decoders = {"steps": {"observation": raw}}
in_order = tfds.ReadConfig(interleave_cycle_length=1)
dataset = builder.as_dataset(split=sys.argv[3], decoders=decoders, read_config=in_order)
for episode in tfds.as_numpy(dataset):
    steps, out = list(episode.pop("steps")), {}
    def put(prefix, nodes):
        if isinstance(nodes[0], dict):
            for name in nodes[0]:
                put(f"{prefix}/{name}", [node[name] for node in nodes])
        else:
            out[prefix] = np.stack(nodes) if prefix.startswith("steps/") else nodes[0]
    put("steps", steps)
    put("episode_metadata", [episode.pop("episode_metadata")])
    assert not episode, episode
    found.append(out)
pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(found))
"""


WRITE = """
import pathlib, pickle, sys, numpy as np, tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import gcs_utils
gcs_utils._is_gcs_disabled = True
F = tfds.features

class ArmData(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        images = F.FeaturesDict({"primary": F.Image(shape=(16, 16, 3), encoding_format="png")})
        proprio = F.FeaturesDict({"hand": F.Tensor(shape=(3,), dtype=np.float32)})
        step = F.FeaturesDict({
            "action": F.Tensor(shape=(4,), dtype=np.float32),
            "language_instruction": F.Text(),
            "observation": F.FeaturesDict({"images": images, "proprio": proprio}),
        })
        about = F.FeaturesDict({n: F.Text() for n in ("episode_id", "embodiment", "action_space")})
        both = F.FeaturesDict({"steps": F.Dataset(step), "episode_metadata": about})
        return tfds.core.DatasetInfo(builder=self, features=both)

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        rng = np.random.default_rng(0)
        for e in range(9):
            steps = [{
                "action": rng.normal(size=4).astype(np.float32),
                "language_instruction": "touch the möbel",
                "observation": {
                    "images": {"primary": rng.integers(0, 255, (16, 16, 3), np.uint8)},
                    "proprio": {"hand": rng.normal(size=3).astype(np.float32)},
                },
            } for _ in range(5 + e)]
            about = {"episode_id": f"e{e}", "embodiment": "arm", "action_space": "xyz_gripper"}
            yield e, {"steps": steps, "episode_metadata": about}

if __name__ == "__main__":
    builder = ArmData(data_dir=sys.argv[1], file_format="array_record")
    builder.download_and_prepare()
    found = []
    for episode in builder.as_data_source(split="train"):
        steps, about = list(episode["steps"]), episode["episode_metadata"]
        found.append({
            "id": about["episode_id"].decode(),
            "action": np.stack([s["action"] for s in steps]),
            "hand": np.stack([s["observation"]["proprio"]["hand"] for s in steps]),
            "pictures": np.stack([s["observation"]["images"]["primary"] for s in steps]),
        })
    pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps((str(builder.data_path), found)))
"""


@pytest.mark.slow
def test_array_record_that_tfds_wrote(tmp_path, context):
    """What TFDS writes as array_record, and its own data source reads, equals what we read."""
    pytest.importorskip("tensorflow_datasets")
    (tmp_path / "write.py").write_text(WRITE)
    out = tmp_path / "read.pickle"
    program = [sys.executable, "write.py", str(tmp_path / "sets"), str(out)]
    subprocess.run(program, check=True, timeout=500, cwd=tmp_path)
    path, expected = pickle.loads(out.read_bytes())
    assert list(pathlib.Path(path).glob("*.array_record-*"))
    raw = source_lib.raw(path)
    table, read = source_lib.recorded(path)
    assert len(raw) == len(table) == len(expected) == 9
    for i, (id_, episode) in enumerate(zip(table.ids, expected, strict=True)):
        assert id_ == episode["id"]
        rows = slice(int(table.start[i]), int(table.start[i + 1]))
        np.testing.assert_array_equal(table.action[rows], episode["action"])
        np.testing.assert_array_equal(table.proprio["hand"][rows], episode["hand"])
        pictures = raw.episode(i)["steps/observation/images/primary"]
        np.testing.assert_array_equal(pictures, episode["pictures"])
        last = images.decode(*read("primary", i, [rows.stop - 1]))
        np.testing.assert_array_equal(last, episode["pictures"][-1])
    assert list(table.language) == ["touch the möbel"]
    source = source_lib.make(context, path=path, holdout=0)
    assert len(source) == sum(5 + e for e in range(9))
    shown = source.sample(0, np.random.default_rng(0))["observation"]["images"]["primary"]
    np.testing.assert_array_equal(shown[-1], expected[0]["pictures"][0])


@pytest.mark.slow
def test_every_field_equals_that_of_tfds(fixtures_dir, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    path, out = fixtures_dir / "bridge_dataset" / "1.0.0", tmp_path / "tfds.pickle"
    split = "train[20%:]+val[:3]"
    program = [sys.executable, "-c", TFDS, str(path), str(out), split]
    subprocess.run(program, check=True, timeout=500)
    expected, raw = pickle.loads(out.read_bytes()), source_lib.raw(path, split)
    assert len(raw) == len(expected) == 23
    for i, episode in enumerate(expected):
        got = raw.episode(i)
        assert set(got) == set(episode) == set(raw.fields)
        for name, value in episode.items():
            if raw.fields[name]["kind"] == "image":
                value = np.stack([images.decode(picture, "tensorflow") for picture in value])
            elif raw.fields[name]["kind"] == "text":
                texts = [text.decode() for text in np.atleast_1d(np.asarray(value)).tolist()]
                value = np.array(texts).reshape(np.shape(value))
            np.testing.assert_array_equal(got[name], value, err_msg=name)
            if raw.fields[name]["kind"] != "text":
                assert got[name].dtype == np.asarray(value).dtype, name

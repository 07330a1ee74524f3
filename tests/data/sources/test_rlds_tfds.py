"""The Bridge fixture against tensorflow-datasets itself, in a process of its own."""

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
                value = np.stack([images.decode(picture) for picture in value])
            elif raw.fields[name]["kind"] == "text":
                texts = [text.decode() for text in np.atleast_1d(np.asarray(value)).tolist()]
                value = np.array(texts).reshape(np.shape(value))
            np.testing.assert_array_equal(got[name], value, err_msg=name)
            if raw.fields[name]["kind"] != "text":
                assert got[name].dtype == np.asarray(value).dtype, name

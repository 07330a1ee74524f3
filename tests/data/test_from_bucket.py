"""Data read out of a bucket, by an emulator of Google's: the same samples as from a disk."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.train import bucket
from vla_jax import storage, types
from vla_jax.codecs import text_tokenizer
from vla_jax.data import mixture as mixture_lib
from vla_jax.data.sources import _files

pytestmark = bucket.MARKS


@pytest.fixture(scope="module")
def store():
    with bucket.emulated() as emulator:
        yield emulator


def upload(folder, url: str) -> int:
    """Bytes of the files of a folder, now at `url` as well."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    for path in files:
        storage.write(storage.join(url, path.name), path.read_bytes())
    return sum(path.stat().st_size for path in files)


def samples(context, **spec):
    """All samples of one source in the order in which they are drawn."""
    mixture = mixture_lib.Mixture.make({"a": dict(source=dict(holdout=0.25, **spec))}, context)
    return [mixture.sample(n) for n in range(len(mixture.sources["a"]))]


def bytes_of(value) -> bytes:
    """Of every array in a sample."""
    if isinstance(value, dict):
        return b"".join(bytes_of(value[name]) for name in sorted(value))
    return np.ascontiguousarray(value).tobytes()


def contents(rows) -> list[bytes]:
    """What the rows hold, whatever their order and numbers."""
    parts = ("observation", "task", "targets")
    return sorted(b"".join(bytes_of(row[part]) for part in parts) for row in rows)


def the_same_from_there(context, kind: str, folder, url: str, path: str, runs: dict) -> None:
    size = upload(folder, url)
    here = samples(context, type=kind, path=str(folder) + path)
    there = samples(context, type=kind, path=url + path)
    assert len(here) > 40 and [bytes_of(r["observation"]) for r in here] == [
        bytes_of(r["observation"]) for r in there
    ]
    _files.counts.reset()
    drawn = samples(context, type=kind, path=url + path, access="contiguous", **runs)
    read, asked = _files.counts.bytes, _files.counts.requests
    assert contents(drawn) == contents(here) and len(set(contents(here))) > len(here) / 2
    assert 0 < read <= 1.2 * size and asked < len(here) / 2, (read, size, asked)
    in_order = [[bytes_of(row["observation"]) for row in rows] for rows in (drawn, here)]
    assert in_order[0] != in_order[1]


def test_robot_data(store, rlds, context, tmp_path):
    folder = rlds.write(tmp_path / "d", [rlds.episode(i, length=12) for i in range(8)], shards=2)
    runs = dict(num_runs=3, run_bytes=20_000)
    the_same_from_there(context, "rlds", folder, f"{bucket.NAME}/d/1.0.0", "", runs)


def test_captioned_pictures(store, tmp_path):
    texts = ["a red square", "a blue square", "a green picture", "describe the picture", "0123"]
    words = text_tokenizer.TextTokenizer.train(texts * 3)
    context = types.SourceContext(
        name="captions",
        stream="vl",
        image_sizes={"primary": (8, 8)},
        max_tokens=32,
        text_tokenizer=words,
        train=True,
    )
    (tmp_path / "web").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / f"web/{shard:05d}.tar", "w") as tar:
            for number in range(40):
                stream = io.BytesIO()
                Image.new("RGB", (20, 10), (6 * number, 120 * shard, 9)).save(stream, "png")
                for ending, data in ((".png", stream.getvalue()), (".txt", b"a red square")):
                    info = tarfile.TarInfo(f"{shard}-{number:03d}{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    runs = dict(num_runs=3, run_bytes=20_000)
    url = f"{bucket.NAME}/web"
    the_same_from_there(context, "image_text", tmp_path / "web", url, "/*.tar", runs)

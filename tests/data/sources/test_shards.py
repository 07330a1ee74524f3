import gzip
import struct

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.data.sources import (
    _array_record,
    _example,
    _files,
    _rlds_folder,
    _tfrecord,
)
from vla_jax.data.sources import (
    rlds as source_lib,
)


def test_crc_of_a_known_record(tmp_path):
    # google/crc32c's test vector, masked as TensorFlow does (core/lib/hash/crc32c.h).
    assert _tfrecord.masked_crc(b"\0" * 32) == (
        ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) & 0xFFFFFFFF
    )
    path = tmp_path / "shard"
    _tfrecord.write(path, [b"one", b"", b"three"])
    places = list(_tfrecord.scan(path))
    assert [data for _, data in places] == [b"one", b"", b"three"]
    reader = _tfrecord.Reader(path)
    assert reader.read(2, places[2][0], [(1, 3), (0, 1)]) == [b"hre", b"t"]
    with pytest.raises(plugin.UserError, match="got 6 of 90 bytes.*shorter"):
        reader.read(2, places[2][0], [(3, 90)])


def test_a_compressed_shard_is_scanned_and_unpacked(tmp_path):
    _tfrecord.write(tmp_path / "plain", [b"a record", b"another"])
    (tmp_path / "shard").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    assert list(_tfrecord.scan(tmp_path / "shard")) == list(_tfrecord.scan(tmp_path / "plain"))
    file = _files.File(tmp_path / "shard")
    assert _tfrecord.is_gzip(file) and not _tfrecord.is_gzip(_files.File(tmp_path / "plain"))
    _tfrecord.unpack(file, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "plain").read_bytes()
    (tmp_path / "shard").write_bytes((tmp_path / "shard").read_bytes()[:-9])
    *_, (_, last) = _tfrecord.scan(tmp_path / "shard")
    assert "broken GZIP" in str(last)
    _tfrecord.unpack(_files.File(tmp_path / "shard"), str(tmp_path / "again"))
    assert (tmp_path / "plain").read_bytes().startswith((tmp_path / "again").read_bytes())


def test_a_scan_goes_on_behind_a_corrupt_record(tmp_path):
    _tfrecord.write(tmp_path / "shard", [b"one", b"two", b"three"])
    whole = (tmp_path / "shard").read_bytes()
    second = 12 + 3 + 4

    def scan(at):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        (tmp_path / "shard").write_bytes(damaged)
        return [data for _, data in _tfrecord.scan(tmp_path / "shard")]

    first, broken, third = scan(second + 12)
    assert (first, third) == (b"one", b"three")
    assert "record 1 at byte 19" in str(broken) and "CRC32C" in str(broken)
    first, broken = scan(second)
    assert first == b"one" and "a length (7)" in str(broken), "what follows cannot be found"
    (tmp_path / "shard").write_bytes(whole[:-6])
    *rest, broken = [data for _, data in _tfrecord.scan(tmp_path / "shard")]
    assert rest == [b"one", b"two"] and "truncated" in str(broken)


def test_a_length_that_looks_like_gzip_is_read(tmp_path):
    data = bytes(0x8B1F)  # its length is written as 1f 8b 00 …
    header = struct.pack("<Q", len(data))
    parts = [header, struct.pack("<I", _tfrecord.masked_crc(header)), data]
    parts.append(struct.pack("<I", _tfrecord.masked_crc(data)))
    (tmp_path / "shard").write_bytes(b"".join(parts))
    assert list(_tfrecord.scan(tmp_path / "shard")) == [(12, data)]


def test_wire_format(rlds):
    numbers = np.array([0, 1, 127, 128, 300, -1, 2**62, -(2**63)])
    found = _example.parse(
        rlds.example({"f": np.arange(3.0), "i": numbers, "b": [b"x", b"", b"yz"], "n": np.zeros(0)})
    )
    assert found["f"].tolist() == [0, 1, 2] and found["f"].dtype == np.float32
    np.testing.assert_array_equal(found["i"], numbers)
    record = rlds.example({"b": [b"x", b"", b"yz"]})
    assert _example.parse(record)["b"].read(record) == [b"x", b"", b"yz"]
    assert len(found["n"]) == 0
    assert set(_example.parse(record, lambda name: False)) == set()


def test_unpacked_numbers_are_read():
    def field(number, payload, kind=2):
        return bytes([number << 3 | kind]) + (bytes([len(payload)]) if kind == 2 else b"") + payload

    floats = field(2, b"".join(field(1, struct.pack("<f", x), 5) for x in (1.5, 2.5)))
    integers = field(3, b"".join(field(1, bytes([x]), 0) for x in (7, 9)))
    entries = b"".join(
        field(1, field(1, name) + field(2, value))
        for name, value in ((b"f", floats), (b"i", integers))
    )
    found = _example.parse(field(1, entries))
    assert found["f"].tolist() == [1.5, 2.5] and found["i"].tolist() == [7, 9]


def test_noise_is_an_error_and_no_hang():
    rng = np.random.default_rng(0)
    for size in (1, 5, 50, 500):
        for _ in range(50):
            try:
                _example.parse(rng.bytes(size))
            except (ValueError, IndexError):
                pass


def test_a_record_that_is_no_example_is_named(folder, context):
    shard = next(folder.glob("*-00000-of-*"))
    _tfrecord.write(shard, [b"\x0b\x0b\x0b"] * 6)
    with pytest.raises(
        plugin.UserError, match="record 0 at byte 12: 3 bytes that are no tf.Example"
    ):
        source_lib.make(context, path=str(folder))


def test_array_record_gives_the_same_rows(folder, context, tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    other = tmp_path / "array"
    other.mkdir()
    (other / "features.json").write_text((folder / "features.json").read_text())
    info = (folder / "dataset_info.json").read_text().replace("tfrecord", "array_record")
    (other / "dataset_info.json").write_text(info)
    for shard in folder.glob("*.tfrecord-*"):
        writer = module.ArrayRecordWriter(
            str(other / shard.name.replace("tfrecord", "array_record")), "group_size:1"
        )
        for _, data in _tfrecord.scan(shard):
            writer.write(data)
        writer.close()
    plain = source_lib.make(context, path=str(folder))
    packed = source_lib.make(context, path=str(other))
    for i in (0, 17, 40):
        np.testing.assert_equal(
            packed.sample(i, np.random.default_rng(0)), plain.sample(i, np.random.default_rng(0))
        )
    assert _rlds_folder.open_folder(other).file_format == "array_record"
    shard = next(other.glob("*-00000-of-*"))
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(plugin.UserError, match="array_record"):
        list(_array_record.scan(shard))

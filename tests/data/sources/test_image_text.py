import io
import json
import os
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from vla_jax import plugin, types
from vla_jax.codecs import text_tokenizer
from vla_jax.data import mixture, order
from vla_jax.data.sources import _files, _tar, collage, image_text


def png(colour, size=(20, 10)):
    stream = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(stream, "png")
    return stream.getvalue()


def write(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["a red square", "a blue square", "a green picture", "describe the picture", "0123"]
    return text_tokenizer.TextTokenizer.train(texts * 3)


@pytest.fixture
def members():
    return {
        "red.png": png((255, 0, 0)),
        "red.txt": b"A red\n square\n",
        "more/blue.json": json.dumps({"caption": ["a blue square", "blue"], "text": "b"}).encode(),
        "more/blue.png": png((0, 0, 255)),
        "more/blue.cls": b"3",
    }


def context_of(tokenizer, train=True, size=(8, 8), max_tokens=32):
    return types.SourceContext(
        name="captions",
        stream="vl",
        image_sizes={"primary": size},
        max_tokens=max_tokens,
        text_tokenizer=tokenizer,
        train=train,
    )


def rng(seed):
    return np.random.default_rng(seed)


def test_pictures_and_captions_by_index(tmp_path, members, tokenizer):
    path = write(tmp_path / "a.tar", members)
    source = image_text.make(context_of(tokenizer), path=path, holdout=0)
    assert len(source) == 2
    for index, colour in ((1, (0, 0, 255)), (0, (255, 0, 0)), (1, (0, 0, 255))):
        row = source.sample(index, rng(0))
        image = row["observation"]["images"]["primary"]
        assert image.shape == (1, 8, 8, 3) and (image == colour).all()
        said = row["task"]["values"]["language"], row["task"]["masks"]["language"]
        text, mask = row["targets"]["text"], row["target_masks"]["text"]
        assert text[0] == tokenizer.bos_id and text[mask][-1] == tokenizer.eos_id
        assert text[mask][1:-1].tolist() == said[0][said[1]].tolist()
    assert source.captions(0) == ("A red square",)
    assert source.captions(1) == ("a blue square", "blue", "b")
    assert source.texts() == ["A red square", "a blue square", "blue", "b"]
    assert image_text.texts(path=path, captions=("text",), holdout=0) == ["A red square", "b"]


def test_a_row_is_a_function_of_index_and_rng(tmp_path, members, tokenizer):
    path = write(tmp_path / "a.tar", members)
    source = image_text.make(context_of(tokenizer), path=path, holdout=0, crop=0.5)
    copy = pickle.loads(pickle.dumps(source))
    said = set()
    for seed in range(20):
        row, again = source.sample(1, rng(seed)), copy.sample(1, rng(seed))
        np.testing.assert_array_equal(row["targets"]["text"], again["targets"]["text"])
        said.add(tokenizer.decode(row["targets"]["text"]))
    assert said == {"a blue square", "blue", "b"}


def test_an_instruction_instead_of_the_caption(tmp_path, members, tokenizer):
    path = write(tmp_path / "a.tar", members)
    source = image_text.make(
        context_of(tokenizer), path=path, holdout=0, language="describe the picture"
    )
    row = source.sample(0, rng(0))
    assert tokenizer.decode(row["task"]["values"]["language"]) == "describe the picture"
    assert tokenizer.decode(row["targets"]["text"]) == "a red square"


def test_transparency_is_laid_on_white(tmp_path, tokenizer):
    path = write(tmp_path / "a.tar", {"a.png": png((0, 0, 0, 51)), "a.txt": b"a picture"})
    row = image_text.make(context_of(tokenizer), path=path, holdout=0).sample(0, rng(0))
    assert (row["observation"]["images"]["primary"] == 204).all()


def test_held_out_pictures_are_chosen_by_key(tmp_path, tokenizer):
    members = {}
    for i in range(60):
        members |= {f"{i}.png": png((i, i, i)), f"{i}.txt": b"a picture"}
    path = write(tmp_path / "a.tar", members)
    parts = [
        {
            int(source.sample(i, rng(0))["observation"]["images"]["primary"][0, 0, 0, 0])
            for i in range(len(source))
        }
        for train in (True, False)
        for source in [image_text.make(context_of(tokenizer, train), path=path, holdout=0.2)]
    ]
    assert parts[0] | parts[1] == set(range(60)) and not parts[0] & parts[1]
    assert 4 <= len(parts[1]) <= 20


def test_held_out_crops_are_the_middle(tmp_path, tokenizer):
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    path = write(tmp_path / "a.tar", {"a.png": stream.getvalue(), "a.txt": b"a picture"})
    source = image_text.make(context_of(tokenizer, False), path=path, holdout=0.999999, crop=0.5)
    assert (source.sample(0, rng(0))["observation"]["images"]["primary"] == 255).all()


def test_shards_in_a_folder_and_the_stream_s_other_targets(tmp_path, members, tokenizer):
    write(tmp_path / "b.tar", {"z.png": png((9, 9, 9)), "z.txt": b"a picture"})
    write(tmp_path / "a.tar", members)
    targets = ("text", "point", "region_point", "region_name")
    source = image_text.make(
        context_of(tokenizer), path=str(tmp_path), holdout=0, targets=targets, regions=5
    )
    assert len(source) == 3 and source.captions(2) == ("a picture",)
    row = source.sample(2, rng(0))
    other = collage.make(context_of(tokenizer), targets=targets).context
    assert row["targets"]["region_point"].shape == (1, 5, 2)
    assert not row["target_masks"]["region_point"].any() and other.window == 1
    pattern = image_text.make(context_of(tokenizer), path=str(tmp_path / "b*.tar"), holdout=0)
    assert len(pattern) == 1 and pattern.fingerprint != source.fingerprint


def test_the_emoji_archives_are_image_text_shards():
    path = collage.ASSETS / "twemoji.tar"
    context = context_of(None)
    source = image_text.make(context, path=str(path), holdout=0)
    texts = source.texts()
    assert len(texts) == len(source) and "rainbow" in texts
    tokenizer = text_tokenizer.TextTokenizer.train(texts)
    source = image_text.make(context_of(tokenizer, max_tokens=64), path=str(path), holdout=0)
    row = source.sample(0, rng(0))
    assert row["observation"]["images"]["primary"].shape == (1, 8, 8, 3)
    with pytest.raises(plugin.UserError, match="vla data text-tokenizer"):
        image_text.make(context, path=str(path)).sample(0, rng(0))


def test_the_noto_fixture(fixtures_dir):
    path = str(fixtures_dir / "noto_emoji_256.tar")
    texts = image_text.make(context_of(None), path=path, holdout=0).texts()
    assert len(texts) == 256
    tokenizer = text_tokenizer.TextTokenizer.train(texts)
    context = context_of(tokenizer, size=(96, 96), max_tokens=64)
    source = image_text.make(context, path=path, holdout=0)
    for index in (0, 255):
        row = source.sample(index, rng(0))
        assert row["observation"]["images"]["primary"].std() > 10
        assert tokenizer.decode(row["targets"]["text"]) == source.captions(index)[0].lower()


def test_a_caption_that_is_too_long(tmp_path, members, tokenizer):
    path = write(tmp_path / "a.tar", members)
    context = context_of(tokenizer, max_tokens=4)
    with pytest.raises(plugin.UserError, match=r"a.tar: red: .*max_tokens is 4.*cut=True"):
        image_text.make(context, path=path, holdout=0).sample(0, rng(0))
    row = image_text.make(context, path=path, holdout=0, cut=True).sample(0, rng(0))
    assert row["target_masks"]["text"].all()


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"a.png": png((0, 0, 0))}, r"a.tar: a: no caption, it has \['png'\]"),
        ({"a.txt": b"a"}, "a.tar: a: no picture"),
        ({"a.png": b"", "a.txt": b"a"}, "0 bytes that are no readable image"),
        ({"a.png": png((0, 0, 0))[:40], "a.txt": b"a"}, "no readable image"),
        ({"a.jpg": b"\xff\xd8broken", "a.txt": b"a"}, "no readable image"),
        ({"a.png": png((0, 0, 0)), "a.txt": b" "}, "a.tar: a.txt: no caption"),
        ({"a.png": png((0, 0, 0)), "a.json": b'{"title": "x"}'}, "'caption', 'text'"),
        ({"a.png": png((0, 0, 0)), "a.json": b"{"}, "no JSON"),
        ({"a.png": png((0, 0, 0)), "a.json": b"[1]"}, "no caption"),
        ({}, "0 pictures"),
    ],
)
def test_broken_samples(tmp_path, tokenizer, broken, message):
    path = write(tmp_path / "a.tar", broken)
    with pytest.raises(plugin.UserError, match=message):
        image_text.make(context_of(tokenizer), path=path, holdout=0).sample(0, rng(0))


def test_broken_tars(tmp_path, members, tokenizer):
    context = context_of(tokenizer)
    whole = (tmp_path / "whole.tar", write(tmp_path / "whole.tar", members))[0].read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:600])
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "text.tar", "a.png")
    for name in ("cut", "text", "packed", "empty"):
        with pytest.raises(plugin.UserError, match=f"{name}.tar: got .*no whole, uncompressed tar"):
            image_text.make(context, path=str(tmp_path / f"{name}.tar"))
    with pytest.raises(plugin.UserError, match="no tar at"):
        image_text.make(context, path=str(tmp_path / "absent.tar"))
    source = image_text.make(context, path=str(tmp_path / "whole.tar"), holdout=0)
    (tmp_path / "whole.tar").write_bytes(whole[:512])
    with pytest.raises(plugin.UserError, match="shorter than it was when it was indexed"):
        source.sample(0, rng(0))
    with pytest.raises(plugin.UserError, match="crop=0"):
        image_text.make(context, path=str(tmp_path / "whole.tar"), crop=0)


def img2dataset(shard, count):
    """The members of a shard as img2dataset writes it: keys that begin with the shard's number."""
    members = {}
    for i in range(count):
        key = f"{shard:05d}{i:04d}"
        about = {"caption": f"a red square {key}", "url": "x", "key": key, "status": "success"}
        members |= {f"{key}.jpg": jpeg((10 * i, 0, 0)), f"{key}.txt": about["caption"].encode()}
        members[f"{key}.json"] = json.dumps(about).encode()
    return members


def jpeg(colour):
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(stream, "jpeg")
    return stream.getvalue()


def test_braces_as_a_shell_writes_them_out():
    assert list(_tar.braces("w/{0008..0010}.tar")) == ["w/0008.tar", "w/0009.tar", "w/0010.tar"]
    assert list(_tar.braces("{a,b}/{1..2}")) == ["a/1", "a/2", "b/1", "b/2"]
    assert list(_tar.braces("plain.tar")) == ["plain.tar"]


@pytest.mark.parametrize("pattern", ["{00000..00002}.tar", "*.tar", "0000[012].tar", ""])
def test_img2dataset_shards_by_pattern_locally_and_by_url(tmp_path, tokenizer, pattern):
    system = fsspec.filesystem("memory")
    for shard in range(3):
        path = write(tmp_path / f"{shard:05d}.tar", img2dataset(shard, 3))
        with open(path, "rb") as file:
            system.pipe_file(f"/web/{shard:05d}.tar", file.read())
    (tmp_path / "00000_stats.json").write_text("{}")
    context = context_of(tokenizer, max_tokens=64)
    local = image_text.make(context, path=f"{tmp_path}/{pattern}".rstrip("/"), holdout=0)
    remote = image_text.make(context, path=f"memory://web/{pattern}".rstrip("/"), holdout=0)
    assert local.fingerprint == remote.fingerprint and len(local) == 9
    assert local.captions(5) == ("a red square 000010002",)
    _files.counts.reset()
    row = remote.sample(4, rng(0))
    members = img2dataset(1, 3)
    expected = len(members["000010001.jpg"]) + len(members["000010001.json"])
    assert _files.counts.bytes == expected, "the caption and the picture, nothing else"
    np.testing.assert_array_equal(
        row["targets"]["text"], local.sample(4, rng(0))["targets"]["text"]
    )
    with pytest.raises(plugin.UserError, match="no tar at .*00003.tar"):
        image_text.make(context, path=f"{tmp_path}/{{00000..00003}}.tar")
    with pytest.raises(plugin.UserError, match="named twice"):
        image_text.make(context, path=[f"{tmp_path}/00000.tar", str(tmp_path)])


def test_an_index_is_made_once_and_anew_when_it_or_the_shard_changes(
    tmp_path, tokenizer, monkeypatch
):
    scans, scan, context = [], _tar.scan, context_of(tokenizer, max_tokens=64)
    monkeypatch.setattr(_tar, "scan", lambda file: scans.append(file.path) or scan(file))
    path = write(tmp_path / "a.tar", img2dataset(0, 4))
    given = dict(path=path, index_dir=str(tmp_path / "index"), holdout=0)
    first = image_text.make(context, **given)
    assert image_text.make(context, **given).fingerprint == first.fingerprint and len(scans) == 1
    (index,) = (tmp_path / "index").iterdir()
    whole = index.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:300] + b"\xff" + whole[301:]):
        index.write_bytes(damaged)
        scans.clear()
        assert image_text.make(context, **given).fingerprint == first.fingerprint
        assert len(scans) == 1 and index.read_bytes() == whole, "made anew, the same"
    write(tmp_path / "a.tar", img2dataset(1, 5))
    assert len(image_text.make(context, **given)) == 5 and len(scans) == 2
    index.rename(f"{path}.index.npz")
    image_text.make(context, path=path, holdout=0)
    assert len(scans) == 2, "an index beside its shard is found"


def test_a_json_without_a_caption_leaves_it_to_the_text(tmp_path, tokenizer):
    members = {"a.png": png((0, 0, 0)), "a.json": b'{"caption": null}', "a.txt": b"a picture"}
    source = image_text.make(
        context_of(tokenizer), path=write(tmp_path / "a.tar", members), holdout=0
    )
    assert source.captions(0) == ("a picture",)


def test_broken_samples_give_way_to_the_next_where_they_may(tmp_path, tokenizer):
    members = img2dataset(0, 4)
    members["000000001.jpg"] = b"\xff\xd8broken"
    members["000000002.txt"], members["000000002.json"] = b"", b'{"caption": ""}'
    given = dict(path=write(tmp_path / "a.tar", members), holdout=0)
    context = context_of(tokenizer, max_tokens=64)
    source = image_text.make(context, **given, bad_samples="skip")
    stream = mixture.Mixture.make({"web": dict(source=source)}, context)
    found = {}
    for n in range(4):
        row, index = stream.sample(n), stream.locate(n)[1]
        found[index] = (tokenizer.decode(row["targets"]["text"])[-1], int(row["skipped"]))
    assert found == {0: ("0", 0), 1: ("3", 2), 2: ("3", 1), 3: ("3", 0)}
    assert len(source.texts()) == 3, "the one with a broken picture has a caption"
    strict = image_text.make(context, **given)
    assert strict.fingerprint != source.fingerprint
    for index, words in ((1, "000000001.jpg: .*no readable"), (2, "000000002.*no caption")):
        with pytest.raises(plugin.UserError, match=words):
            strict.sample(index, rng(0))
    with pytest.raises(plugin.UserError, match="did you mean 'skip'"):
        image_text.make(context, **given, bad_samples="skipp")
    everything = {k: b"" if k.endswith("jpg") else v for k, v in members.items()}
    path = write(tmp_path / "b.tar", everything)
    none = dict(source=image_text.make(context, path=path, holdout=0, bad_samples="skip"))
    with pytest.raises(plugin.UserError, match="no readable image.*4 samples in a row"):
        mixture.Mixture.make({"web": none}, context)


def test_contiguous_access_reads_every_run_once_and_gives_the_same_rows(tmp_path, tokenizer):
    """By URL: an epoch is a permutation, its bytes are those of the shards, requests are few."""
    system, sizes = fsspec.filesystem("memory"), []
    for shard in range(3):
        path = write(tmp_path / f"{shard}.tar", img2dataset(shard, 20))
        sizes.append(os.path.getsize(path))
        with open(path, "rb") as file:
            system.pipe_file(f"/runs/{shard}.tar", file.read())
    context = context_of(tokenizer, max_tokens=64)
    given = dict(path="memory://runs/*.tar", holdout=0.2)
    how = dict(access="contiguous", num_runs=2, run_bytes=16_000)
    source = image_text.make(context, **given, **how)
    stream = mixture.Mixture.make({"web": dict(source=source)}, context)
    size = len(source)
    again = pickle.loads(pickle.dumps(source))
    _files.counts.reset()
    drawn = [stream.locate(n)[1] for n in range(size)]
    rows = [stream.sample(n) for n in range(size)]
    assert sorted(drawn) == list(range(size)) and drawn != sorted(drawn)
    runs = len(source.runs.bounds) - 1
    assert runs > 5 and _files.counts.requests <= runs
    assert _files.counts.bytes <= sum(sizes)
    alone = image_text.make(context, **given)
    assert alone.runs is None and alone.fingerprint != source.fingerprint
    for n in (0, size // 2, size - 1):
        generator = order.generator(0, "vl", "web", n)
        expected = alone.sample(drawn[n], generator)
        for found in (rows[n], again.sample(drawn[n], order.generator(0, "vl", "web", n))):
            np.testing.assert_array_equal(found["targets"]["text"], expected["targets"]["text"])
            np.testing.assert_array_equal(
                found["observation"]["images"]["primary"],
                expected["observation"]["images"]["primary"],
            )
    for change, words in (
        (dict(access="contiguos"), "did you mean"),
        (dict(num_runs=0), "num_runs=0"),
    ):
        with pytest.raises(plugin.UserError, match=words):
            image_text.make(context, **given, **how | change)

"""`vla data inspect` of pictures with words: tar shards and LLaVA-style JSON."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.data.sources import test_tfds_captions as tfds
from vla_jax import plugin
from vla_jax.cli import main as cli
from vla_jax.data import captioned, inspect


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((12, 20, 3), level, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def shards(tmp_path):
    """A folder of two tars: four pictures with captions in JSON, one in text, one without any."""
    (tmp_path / "web").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / "web" / f"{shard}.tar", "w") as tar:
            for i in range(3):
                number = 3 * shard + i
                members = {"png": png(40 * number)}
                if number < 4:
                    said = {"caption": f"drawing  {number}", "url": "x"}
                    members["json"] = json.dumps(said).encode()
                elif number == 4:
                    members["txt"] = b"number four"
                for ending, data in members.items():
                    info = tarfile.TarInfo(f"{number:03d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return tmp_path / "web"


def test_tar_shards(shards, capsys):
    assert captioned.kind_at(shards) == captioned.kind_at(shards / "0.tar") == "tar"
    assert cli.main(["data", "inspect", str(shards)]) == 0
    *lines, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert (found["shards"], found["samples"], found["without_a_caption_file"]) == (2, 6, 1)
    assert found["endings"] == {"json": 4, "png": 6, "txt": 1} and found["sizes"] == [[12, 20]]
    assert found["fields"] == pytest.approx({"caption": 4 / 6, "url": 4 / 6})
    assert (
        found["language_samples"][0] == "drawing 0" and found["without_a_caption_among_them"] == 1
    )
    assert any("6 samples" in line and "1 without a caption file" in line for line in lines)


def test_a_sheet_of_pictures(shards):
    picture = np.asarray(inspect.sheet(shards, None, 2, 3)).astype(int)
    tiles = [picture[y, 70 + 132 * c, 0] for y in (95, 200) for c in range(3)]
    assert np.abs(np.subtract(tiles, [0, 40, 80, 120, 160, 200])).max() <= 1


def test_llava(tmp_path):
    def turns(*said):
        return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(said)]

    records = [
        {
            "id": "1",
            "image": "a.jpg",
            "conversations": turns("<image>\nWhat?", "A cat.", "Where?", "Here."),
        },
        {"id": "2", "conversations": turns("Hi", "Hello.")},
    ]
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(records))
    found = captioned.summarize(path)
    assert (found["questions"], found["records_without_a_picture"]) == (2, 1)
    assert found["language_samples"] == ["What? → A cat.", "Where? → Here."]
    assert "2 questions" in captioned.text(found)
    with pytest.raises(plugin.UserError, match="pictures lie elsewhere"):
        inspect.sheet(path)


def test_what_is_broken_is_an_error(shards, tmp_path, capsys):
    data = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(data[: len(data) // 2 - 100])
    assert cli.main(["data", "inspect", str(shards)]) == 2
    assert "1.tar" in capsys.readouterr().err
    (tmp_path / "x.json").write_text('{"episodes": 3}')
    assert cli.main(["data", "inspect", str(tmp_path / "x.json")]) == 2
    assert "conversations" in capsys.readouterr().err


@pytest.mark.parametrize("several", [False, True])
def test_a_tfds_folder_of_captions_says_what_it_is(tmp_path, capsys, several):
    path = tfds.write(tmp_path / "web", several=several)
    out = tmp_path / "sheet.png"
    assert cli.main(["data", "inspect", path, "--sheet", str(out), "--columns", "4"]) == 0
    *text, last = capsys.readouterr().out.strip().splitlines()
    found = json.loads(last)
    assert found["kind"] == "TFDS folder of pictures with captions (web 1.0.0)"
    assert (found["pictures"], found["parts"]) == (12, {"train": 12})
    # Of the first of two shards.
    assert found["looked_at"] == 6 and found["captions_of_them"] == (18 if several else 6)
    assert found["sizes"] == [[10, 20]] and not found["without_a_caption_among_them"]
    first = "a möwe 0" if several else "a picture of 0"
    assert found["language_samples"][0] == first and f"  says: {first!r}" in text
    assert "  split train: 12 pictures" in text
    said = "captions/text" if several else "caption"
    assert f"  read as pictures: image, as captions: {said}" in text
    assert not any("name them" in line for line in text)
    picture = np.asarray(Image.open(out).convert("RGB"))
    seen = {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()}
    assert {tfds.colour(i) for i in range(12)} <= seen
    with pytest.raises(plugin.UserError, match="no standardizer reads"):
        inspect.summarize(path, standardizer="native")


def test_a_tfds_folder_whose_features_have_other_names(tmp_path):
    path = tmp_path / "web"
    tfds.write(path)
    described = json.loads((path / "features.json").read_text())
    features = described["featuresDict"]["features"]
    features["words"] = features.pop("caption")
    (path / "features.json").write_text(json.dumps(described))
    found = captioned.summarize(path)  # the records have no `words`
    assert "  name them: image='image', captions=('words',)" in captioned.text(found)
    assert found["without_a_caption_among_them"] == 6 and not found["language_samples"]
    del features["words"]
    (path / "features.json").write_text(json.dumps(described))
    with pytest.raises(plugin.UserError, match="no `steps`.*image"):
        inspect.summarize(path)

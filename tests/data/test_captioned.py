"""`vla data inspect` of pictures with words: tar shards and LLaVA-style JSON."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

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

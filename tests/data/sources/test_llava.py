import dataclasses
import itertools
import json
import pickle

import fsspec
import numpy as np
import pytest
from PIL import Image

from tests.data.sources import test_image_text as pictures
from vla_jax import plugin
from vla_jax.codecs import text_tokenizer
from vla_jax.data import mixture
from vla_jax.data.sources import _files, llava

WORDS = ["what is this", "where is it", "a cat", "ein Fuß", "[0.12, 0.34, 5.67, 8.90]"]
ALL = 0.999999  # held out
rng = np.random.default_rng


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer.TextTokenizer.train(WORDS * 3)


@pytest.fixture
def context(tokenizer):
    return pictures.context_of(tokenizer, size=(8, 16), max_tokens=48)


@pytest.fixture
def middle(tokenizer):
    """Of held-out pictures the middle is shown, of the others any part."""
    return pictures.context_of(tokenizer, train=False, size=(8, 16), max_tokens=48)


def turns(*texts):
    speakers = ("human", "gpt")
    return [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]


def record(i, *texts, **fields):
    return {"id": f"r{i}", "image": f"{i}.png", "conversations": turns(*texts), **fields}


def write(root, records, name="asked.json", **how):
    """A file of records, and a picture of 40 x 20 for each."""
    for i in range(len(records)):
        (root / f"{i}.png").write_bytes(pictures.png((10 * i, 0, 0), (40, 20)))
    if name.endswith("l"):
        text = "\n".join(json.dumps(r, **how) for r in records) + "\n"
    else:
        text = json.dumps(records, **how)
    (root / name).write_text(text, encoding="utf-8")
    return dict(path=str(root / name), images=str(root), holdout=0)


RECORDS = [
    record(0, "<image>\nWhat is this", "a cat", "where is it", "ein Fuß\n rechts"),
    record(1, "what is this <image>", "a cat"),
]


def said(tokenizer, row):
    """(language, text or None) of a row."""
    language, text = row["task"]["values"]["language"], None
    if row["target_masks"]["text"].any():
        text = tokenizer.decode(row["targets"]["text"])
    return tokenizer.decode(language), text


@pytest.mark.parametrize("name", ["asked.json", "asked.jsonl"])
@pytest.mark.parametrize("how", [{}, {"ensure_ascii": False}, {"indent": 2, "ensure_ascii": False}])
def test_every_answer_is_a_sample(tmp_path, context, tokenizer, name, how):
    if name.endswith("l") and "indent" in how:
        pytest.skip("lines have no indentation")
    given = write(tmp_path, RECORDS, name, **how)
    source = llava.make(context, **given)
    assert len(source) == 3
    rows = [source.sample(i, rng(0)) for i in (2, 0, 1)]
    assert [said(tokenizer, row) for row in rows] == [
        ("what is this", "a cat"),
        ("what is this", "a cat"),
        ("where is it", "ein fuß rechts"),
    ]
    for row, red in zip(rows, (10, 0, 0)):
        assert (row["observation"]["images"]["primary"][0, ..., 0] == red).all()
    assert sorted(set(llava.texts(path=given["path"], holdout=0))) == [
        "What is this",
        "a cat",
        "ein Fuß rechts",
        "what is this",
        "where is it",
    ]


def test_earlier_turns_stand_before_the_question(tmp_path, context, tokenizer):
    source = llava.make(context, **write(tmp_path, RECORDS), history=1)
    assert said(tokenizer, source.sample(1, rng(0)))[0] == "what is this a cat where is it"
    assert said(tokenizer, source.sample(0, rng(0)))[0] == "what is this"


def test_places_are_those_of_what_is_shown(tmp_path, middle, tokenizer):
    """A picture 40 x 20 in a stream of 2:1 is shown whole; a square one loses top and bottom."""
    context = middle
    box = "[0.50, 0.60, 1.00, 0.80]"
    records = [record(0, "where is it", box), record(1, f"what is this {box}", "a cat")]
    records.append(record(2, "where is it", "[0.50, 0.40, 1.00, 0.70]"))
    given = write(tmp_path, records) | dict(targets=("text", "point"), holdout=ALL)
    row = llava.make(context, **given, unit="fraction").sample(0, rng(0))
    np.testing.assert_allclose(row["targets"]["point"], [[0.75, 0.7]], atol=1e-6)
    assert row["target_masks"]["point"].all() and said(tokenizer, row)[1] == box
    padded = llava.make(context, **given, unit="square").sample(2, rng(0))
    np.testing.assert_allclose(padded["targets"]["point"], [[0.75, 0.6]], atol=1e-6)
    assert said(tokenizer, padded)[1] == "[0.50, 0.30, 1.00, 0.90]"
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    source = llava.make(context, **given, unit="fraction")
    row = source.sample(0, rng(0))  # rows 10 to 30 of 40 are shown, the box's are 24 to 32
    np.testing.assert_allclose(row["targets"]["point"], [[0.75, 0.85]], atol=1e-6)
    assert said(tokenizer, row)[1] == "[0.50, 0.70, 1.00, 1.00]"
    row = source.sample(1, rng(0))
    assert said(tokenizer, row) == ("what is this [0.50, 0.70, 1.00, 1.00]", "a cat")
    assert not row["target_masks"]["point"].any()
    plain = llava.make(context, **given).sample(0, rng(0))
    assert said(tokenizer, plain)[1] == box and not plain["target_masks"]["point"].any()


def test_a_place_that_is_cut_off_trains_nothing(tmp_path, middle):
    records = [record(0, "where is it", "[0.1, 0.0, 0.3, 0.1]", "what at [0.5, 0.1]", "a cat")]
    given = write(tmp_path, records) | dict(targets=("text", "point"), unit="fraction", holdout=ALL)
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    source = llava.make(middle, **given)
    for i in range(2):
        masks = source.sample(i, rng(0))["target_masks"]
        assert not masks["text"].any() and not masks["point"].any()


def test_places_in_a_field_of_the_record(tmp_path, context):
    records = [record(i, "where is it", "there", solution=[10, 5, 20, 10]) for i in range(2)]
    records[1]["solution"] = [[4, 2]]
    given = write(tmp_path, records) | dict(targets=("text", "point"), place="solution")
    source = llava.make(context, **given, unit="pixels", box="size")
    points = [source.sample(i, rng(0))["targets"]["point"][0] for i in range(2)]
    np.testing.assert_allclose(points, [[0.5, 0.5], [0.1, 0.1]], atol=1e-6)
    other = llava.make(context, **given | dict(place="bbox"), unit="pixels")
    with pytest.raises(plugin.UserError, match=r"record 0 \(r0\): field 'bbox': got None"):
        other.sample(0, rng(0))
    wrong = llava.make(context, **given, unit="fraction")
    with pytest.raises(plugin.UserError, match=r"record 0 \(r0\).*40 x 20.*is unit='fraction'"):
        wrong.sample(0, rng(0))


def test_one_of_several_points_is_drawn(tmp_path, context):
    records = [record(0, "where is it", "[(0.25, 0.5), (0.75, 0.5)]")]
    given = write(tmp_path, records) | dict(targets=("text", "point"), unit="fraction")
    source = llava.make(context, **given)
    seen = {float(source.sample(0, rng(seed))["targets"]["point"][0, 0]) for seed in range(20)}
    assert seen == {0.25, 0.75}


def regions(row):
    """[(middle, row of the table or None)] of a row's labelled regions."""
    points, names = (row["targets"][f"region_{kind}"][-1] for kind in ("point", "name"))
    there, named = (row["target_masks"][f"region_{kind}"][-1] for kind in ("point", "name"))
    assert not (named & ~there).any()
    return [
        (tuple(np.round(points[k].astype(float), 3).tolist()), int(names[k]) if named[k] else None)
        for k in np.flatnonzero(there)
    ]


NAMES = ("dog", "cat", "traffic_light")
REGIONS = dict(targets=("text", "point", "region_point", "region_name"), unit="fraction")


def test_places_that_are_called_something_are_regions(tmp_path, middle):
    context = dataclasses.replace(middle, names=NAMES, max_tokens=99)
    records = [
        record(0, "what is there", "A cat [0.1, 0.2, 0.3, 0.4] and the Traffic light (0.8, 0.5)."),
        record(1, "what is at [0.5, 0.0, 0.7, 0.4]", "a dog."),
        record(2, "where is it", "[[0.1, 0.2, 0.3, 0.4], [0.2, 0.5]]"),
        record(3, "what are [0.1, 0.2] and [0.3, 0.4]", "a dog"),
        record(4, "what is there", "a man left of the dog [0.1, 0.2, 0.3, 0.4]"),
    ]
    given = write(tmp_path, records) | REGIONS | dict(holdout=ALL, regions=3)
    source = llava.make(context, **given)
    found = [regions(source.sample(i, rng(0))) for i in range(5)]
    assert found == [
        [((0.2, 0.3), 1), ((0.8, 0.5), 2)],
        [((0.6, 0.2), 0)],
        [((0.2, 0.3), None), ((0.2, 0.5), None)],
        [((0.1, 0.2), None), ((0.3, 0.4), None)],
        [((0.2, 0.3), None)],  # the man's, whoever is named last
    ]
    # Rows 10 to 30 of 40 are shown: a box is cut, one that is mostly above is none.
    for i in range(2):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{i}.png")
    source = llava.make(context, **given)
    assert regions(source.sample(0, rng(0))) == [((0.2, 0.15), 1), ((0.8, 0.5), 2)]
    assert regions(source.sample(1, rng(0))) == []
    plain = llava.make(context, **given | dict(unit=None)).sample(0, rng(0))
    assert regions(plain) == []


def test_regions_in_fields_of_the_record(tmp_path, context):
    context = dataclasses.replace(context, names=NAMES)
    boxes = [[10, 5, 20, 10], [0, 0, 4, 4], [36, 16, 4, 4]]
    called = ["dog", "a lamp", "cat"]
    records = [
        record(0, "what is this", "a cat", boxes=boxes, classes=called),
        record(1, "what is this", "a cat", boxes=boxes[0], classes="dog"),
        record(2, "what is this", "a cat",
               objects=[dict(box=b, name=n) for b, n in zip(boxes, called)]),
    ]  # fmt: skip
    given = write(tmp_path, records) | REGIONS | dict(regions=3, unit="pixels", box="size")
    source = llava.make(context, **given, place="boxes", names="classes")
    expected = [((0.5, 0.5), 0), ((0.05, 0.1), None), ((0.95, 0.9), 1)]
    row = source.sample(0, rng(0))
    assert regions(row) == expected
    assert not row["target_masks"]["point"].any(), "which of the three is not said"
    row = source.sample(1, rng(0))
    assert regions(row) == expected[:1]
    np.testing.assert_allclose(row["targets"]["point"], [[0.5, 0.5]], atol=1e-6)
    nested = llava.make(context, **given, place="objects.box", names="objects.name")
    assert regions(nested.sample(2, rng(0))) == expected
    unnamed = llava.make(context, **given, place="boxes").sample(0, rng(0))
    assert regions(unnamed) == [(middle, None) for middle, _ in expected]
    # More than K: each is drawn sometimes, in order.
    two = llava.make(context, **given | dict(regions=2), place="boxes", names="classes")
    drawn = {tuple(regions(two.sample(0, rng(seed)))) for seed in range(40)}
    assert drawn == {tuple(pair) for pair in itertools.combinations(expected, 2)}
    with pytest.raises(
        plugin.UserError, match=r"\(r1\): field 'objects': got None, expected a list"
    ):
        nested.sample(1, rng(0))
    other = llava.make(context, **given, place="boxes", names="id")
    with pytest.raises(plugin.UserError, match=r"\(r0\): field 'id': got r0, expected 3 texts"):
        other.sample(0, rng(0))
    with pytest.raises(plugin.UserError, match="no head of stream 'vl' has a table of names"):
        llava.make(dataclasses.replace(context, names=()), **given, place="boxes", names="classes")
    renamed = llava.make(
        dataclasses.replace(context, names=NAMES[::-1]), **given, place="boxes", names="classes"
    )
    assert renamed.fingerprint != source.fingerprint


def test_held_out_pictures_take_all_their_questions_along(tmp_path, tokenizer):
    records = [record(i % 20, "what is this", f"a cat {i}") for i in range(60)]
    given = write(tmp_path, records) | dict(holdout=0.3)
    parts = []
    for train in (True, False):
        source = llava.make(pictures.context_of(tokenizer, train), **given)
        parts.append({source.turn(i)[2]["image"] for i in range(len(source))})
        assert len(source) == 3 * len(parts[-1])
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 20 and len(parts[1]) >= 2


def test_records_without_a_picture(tmp_path, context):
    records = [*RECORDS, {"id": "t", "conversations": turns("what is this", "a cat")}]
    given = write(tmp_path, records)
    with pytest.raises(plugin.UserError, match="record 2: no field 'image', as in 1 records"):
        llava.make(context, **given)
    source = llava.make(context, **given, text_only="leave_out")
    assert len(source) == 3 and source.summary() == {"left_out": 1}


def test_an_index_is_made_once_and_anew_when_the_file_changes(tmp_path, context, monkeypatch):
    given = write(tmp_path, RECORDS) | dict(index_dir=str(tmp_path / "index"))
    first = llava.make(context, **given)
    scans = []
    scan = llava._scan
    monkeypatch.setattr(llava, "_scan", lambda file: scans.append(1) or scan(file))
    again = llava.make(context, **given)
    assert not scans and again.fingerprint == first.fingerprint
    assert pickle.loads(pickle.dumps(again)).turn(2)[:2] == first.turn(2)[:2]
    changed = json.dumps([RECORDS[0], record(1, "what is this", "a dog")])
    (tmp_path / "asked.json").write_text(changed)
    assert llava.make(context, **given).fingerprint != first.fingerprint and scans == [1]


def test_by_url(tmp_path, context, tokenizer):
    write(tmp_path, RECORDS)
    system = fsspec.filesystem("memory")
    for name in ("asked.json", "0.png", "1.png"):
        system.pipe_file(f"/llava/{name}", (tmp_path / name).read_bytes())
    source = llava.make(
        context, path="memory://llava/asked.json", images="memory://llava/", holdout=0
    )
    _files.counts.reset()
    assert said(tokenizer, source.sample(2, rng(0))) == ("what is this", "a cat")
    size = len(json.dumps(RECORDS[1])) + (tmp_path / "1.png").stat().st_size
    assert _files.counts.bytes == size, "the record and its picture, nothing else"


def test_a_broken_picture_gives_way_to_the_next_sample(tmp_path, context, tokenizer):
    given = write(tmp_path, RECORDS)
    (tmp_path / "0.png").write_bytes(b"broken")
    with pytest.raises(plugin.UserError, match=r"record 0 \(r0\): field 'image': .*no readable"):
        llava.make(context, **given).sample(0, rng(0))
    (tmp_path / "1.png").unlink()
    with pytest.raises(plugin.UserError, match="field 'image': .*no such file"):
        llava.make(context, **given).sample(2, rng(0))
    write(tmp_path, RECORDS)
    (tmp_path / "0.png").write_bytes(b"broken")
    source = llava.make(context, **given, bad_samples="skip")
    rows = mixture.Mixture.make({"asked": dict(source=source)}, context)
    drawn = [rows.sample(n) for n in range(3)]
    assert {said(tokenizer, row)[1] for row in drawn} == {"a cat"}
    skipped = {rows.locate(n)[1]: int(row["skipped"]) for n, row in enumerate(drawn)}
    assert skipped == {0: 2, 1: 1, 2: 0}, (
        "both questions about it, in place of which came the third"
    )


def broken(**changes):
    return [RECORDS[1], {**record(1, "what is this", "a cat"), **changes}]


@pytest.mark.parametrize(
    "records, words",
    [
        (broken(image=3), r"record 1 \(r1\): field 'image': got 3"),
        (broken(image=["a.png", "b.png"]), "expected one picture"),
        (broken(conversations=None), "field 'conversations': got 'None'"),
        (broken(conversations=turns("what is this")), "expected questions and answers by turns"),
        (broken(conversations=turns("what", " ")), "field 'conversations', turn 1: got"),
        (broken(conversations=turns("<image>", "a cat")), "turn 0: got"),
        (broken(conversations=turns("a", "b")[::-1]), "expected {'from': 'human'"),
        ([RECORDS[0], "text"], "record 1: got b'\"text\"', expected a table"),
        ([], "no records"),
    ],
)
def test_mistakes_name_file_record_and_field(tmp_path, context, records, words):
    with pytest.raises(plugin.UserError, match=f"asked.json: .*{words}|asked.json: {words}"):
        llava.make(context, **write(tmp_path, records))


def test_broken_files(tmp_path, context):
    given = write(tmp_path, RECORDS)
    whole = (tmp_path / "asked.json").read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 1):
        (tmp_path / "asked.json").write_bytes(whole[:cut])
        with pytest.raises(plugin.UserError, match="asked.json: no whole JSON list, byte"):
            llava.make(context, **given)
    (tmp_path / "asked.json").write_bytes(whole.replace(b"a cat", b"a \xff\xfet", 1))
    with pytest.raises(plugin.UserError, match="record 0: no UTF-8 JSON"):
        llava.make(context, **given)
    (tmp_path / "asked.jsonl").write_bytes(b'{"id": 1\n')
    with pytest.raises(plugin.UserError, match="record 0: no UTF-8 JSON"):
        llava.make(context, **given | dict(path=str(tmp_path / "asked.jsonl")))


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(unit="pixel"), "did you mean 'pixels'"),
        (dict(box="corner"), "did you mean 'corners'"),
        (dict(text_only="keep"), "text_only: unknown 'keep'"),
        (dict(bad_samples="skp"), "did you mean 'skip'"),
        (dict(place="bbox"), "needs unit"),
        (dict(names="classes"), "needs place"),
        (dict(holdout=1.0), "holdout=1.0"),
        (dict(targets=("poimt",)), "did you mean 'point'"),
    ],
)
def test_bad_arguments(tmp_path, context, change, words):
    with pytest.raises(plugin.UserError, match=words):
        llava.make(context, **write(tmp_path, RECORDS) | change)


def test_a_text_that_is_too_long_is_named(tmp_path, tokenizer):
    given = write(tmp_path, RECORDS)
    context = pictures.context_of(tokenizer, max_tokens=4)
    with pytest.raises(plugin.UserError, match=r"record 0 \(r0\): .*max_tokens is 4.*cut=True"):
        llava.make(context, **given).sample(0, rng(0))
    row = llava.make(context, **given, cut=True).sample(0, rng(0))
    assert row["target_masks"]["text"].all()
    none = pictures.context_of(None)
    with pytest.raises(plugin.UserError, match="vla data text-tokenizer"):
        llava.make(none, **given).sample(0, rng(0))

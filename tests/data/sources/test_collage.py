import collections
import pickle

import numpy as np
import pytest

from vla_jax import plugin, types
from vla_jax.codecs import text_tokenizer
from vla_jax.data.sources import _collage_paint, _emoji, collage

TABLE = _emoji.card_table(collage.ASSETS)
NAMES = _emoji.split_names(tuple(TABLE), 0)
WEB = (*NAMES.a, *NAMES.b)


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer.TextTokenizer.train(collage.texts(), 600)


@pytest.fixture(scope="module")
def make(tokenizer):
    def make(train=True, image_size=(96, 96), max_tokens=12, window=1, table=WEB, **arguments):
        context = types.SourceContext(
            name="web",
            stream="vl",
            window=window,
            image_sizes={"primary": image_size},
            max_tokens=max_tokens,
            text_tokenizer=tokenizer,
            names=table,
            train=train,
        )
        return collage.make(context, **arguments)

    return make


@pytest.fixture(scope="module")
def source(make):
    return make()


def rng(seed):
    return np.random.default_rng(seed)


def image_of(row):
    return row["observation"]["images"]["primary"][-1]


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a.dtype == b.dtype and np.array_equal(a, b)


def test_rows_stack_into_a_batch(make):
    source = make(window=2, targets=("point", "region_point", "region_name", "text"))
    rows = [source.sample(i, rng(i)) for i in range(4)]

    def stack(*leaves):
        if isinstance(leaves[0], dict):
            return {k: stack(*(leaf[k] for leaf in leaves)) for k in leaves[0]}
        return np.stack(leaves)

    batch = types.Batch.make(**stack(*rows), row_id=np.arange(4, dtype=np.uint32))
    assert batch.observation.images["primary"].shape == (4, 2, 96, 96, 3)
    assert batch.observation.timestep_mask.tolist() == [[False, True]] * 4
    assert batch.targets["region_point"].shape == (4, 2, 5, 2)
    assert not batch.target_masks["text"].any()
    assert batch.target_masks["point"].tolist() == [[False, True]] * 4
    assert (batch.action_space == -1).all() and (batch.dataset_key == -1).all()


def test_a_row_is_a_function_of_index_and_rng(source, make):
    row = source.sample(3, rng(5))
    source.sample(4, rng(6))
    assert equal(row, source.sample(3, rng(5)))
    assert equal(row, make().sample(3, rng(5)))
    assert equal(row, pickle.loads(pickle.dumps(source)).sample(3, rng(5)))
    assert not np.array_equal(image_of(row), image_of(source.sample(4, rng(5))))
    assert not np.array_equal(image_of(row), image_of(source.sample(3, rng(6))))


def test_held_out_collages_come_from_another_domain_of_keys(source, make):
    held_out = make(train=False)
    assert held_out.fingerprint != source.fingerprint
    train = {image_of(source.sample(i, rng(i))).tobytes() for i in range(100)}
    assert len(train) == 100
    assert train.isdisjoint(image_of(held_out.sample(i, rng(i))).tobytes() for i in range(100))
    keys = [s._domain(0, rng(0)).bit_generator.state["state"]["key"] for s in (source, held_out)]
    assert [int(key[1]) for key in keys] == [0, 1]  # never equal, whatever the first word is


def test_instruction_point_and_regions_tell_of_the_same_pictures(source, tokenizer):
    for i in range(50):
        row, placed = source.sample(i, rng(i)), source.describe(i, rng(i))
        ids, mask = row["task"]["values"]["language"], row["task"]["masks"]["language"]
        assert tokenizer.decode(ids[mask]) == f"point to the {placed[0].name}"
        targets, masks = row["targets"], row["target_masks"]
        assert masks["region_name"][0].tolist() == [k < len(placed) for k in range(5)]
        names = [WEB[k] for k in targets["region_name"][0, : len(placed)]]
        assert names == [picture.name for picture in placed]
        assert len(set(names)) == len(names)
        assert 0 < targets["point"].min() and targets["point"].max() < 1
        centre = np.array([placed[0].x, placed[0].y]) / 96
        np.testing.assert_allclose(targets["point"][0], centre, atol=1e-6)
        np.testing.assert_array_equal(targets["region_point"][0, 0], targets["point"][0])


@pytest.mark.parametrize("size, squash", [((96, 96), 0.0), ((128, 192), 0.3)])
def test_labels_lie_on_the_pictures(size, squash, make):
    """The centre of what each picture alone changes in the collage is its label."""
    source = make(image_size=size, squash=squash)
    height, width = size
    off = []
    for i in range(20):
        for picture in source.describe(i, rng(i)):
            overlay = np.zeros((height, width, 4), np.uint8)
            _collage_paint._add_sprite(overlay, picture)
            y, x = np.nonzero(overlay[..., 3])
            box = np.array([x.min() + x.max() + 1, y.min() + y.max() + 1]) / 2
            reach = 0.5 * picture.side * 1.42 + 1
            assert np.abs(x + 0.5 - picture.x).max() <= reach
            assert np.abs(y + 0.5 - picture.y).max() <= reach
            off.append((box - (picture.x, picture.y)) / picture.side)
    assert np.abs(np.median(off, axis=0)).max() < 0.03  # drawings need not fill their square
    assert np.abs(off).max() < 0.5


def test_a_card_lies_under_its_picture(make):
    source = make(card=1.0, tint=0.0, count=(1, 1))
    for i in range(20):
        image, placed = image_of(source.sample(i, rng(i))), source.describe(i, rng(i))
        for x, y in placed[0].corners(1.03):  # between the picture's square and the card's edge
            if 0 <= x < 96 and 0 <= y < 96:
                assert image[int(y), int(x)].min() >= 200


def test_an_unturned_picture_is_its_drawing(make):
    source = make(archives=("twemoji",), size=(32.0, 32.0), angle=0.0, count=(1, 1))
    placed = source.describe(0, rng(0))[0]
    overlay = np.zeros((96, 96, 4), np.uint8)
    snapped = type(placed)(**{**placed.__dict__, "x": 48.0, "y": 40.0, "side": 40.0})
    _collage_paint._add_sprite(overlay, snapped)
    np.testing.assert_array_equal(overlay[20:60, 28:68], placed.sprite.levels[40])
    assert not overlay[:20].any() and not overlay[60:].any()


@pytest.mark.parametrize(
    "arguments, drawn, extra",
    [
        ({}, WEB, False),
        ({"names": "a"}, NAMES.a, False),
        ({"hide": NAMES.b}, NAMES.a, False),
        ({"archives": ("google",), "extra": 0.5}, WEB, True),
    ],
)
def test_only_the_allowed_pictures_are_ever_drawn(make, arguments, drawn, extra):
    source = make(**arguments)
    archives = arguments.get("archives", ("twemoji", "fluent_flat", "fluent_3d"))
    assert set(source.names) == set(drawn)
    seen, artists = collections.Counter(), collections.Counter()
    for i in range(600):
        placed = source.describe(i, rng(i))
        assert placed[0].name is not None
        for picture in placed:
            seen[picture.name] += 1
            artists[picture.sprite.archive] += 1
            if picture.name is None:
                shown = {picture.sprite.codepoint, *picture.sprite.codepoint.split("-")}
                assert all(shown.isdisjoint(codepoints) for codepoints in TABLE.values())
            else:
                assert picture.sprite.codepoint == TABLE[picture.name][0]
    assert (seen.pop(None, 0) > 0) == extra
    assert set(seen) == set(drawn)  # every name came up, and no other
    assert set(artists) == set(archives)
    assert min(artists.values()) > 0.8 * sum(artists.values()) / len(archives)


def test_clutter_has_no_label(make):
    source = make(archives=("google",), extra=1.0)
    row = source.sample(0, rng(0))
    assert row["target_masks"]["region_name"].sum() == 1
    assert len(source.describe(0, rng(0))) >= 2


def test_the_corpus_names_no_hidden_name():
    for letters, hidden in (("ab", NAMES.c), ("a", (*NAMES.b, *NAMES.c))):
        texts = collage.texts(names=letters)
        words = set(" ".join(texts).split())
        assert words.isdisjoint(hidden)
        assert {f"touch the {name}" for name in NAMES.a} <= set(texts)


def test_several_templates(make, tokenizer):
    source = make(template=("point to the {name}", "the {name}"))
    said = set()
    for i in range(20):
        row = source.sample(i, rng(i))
        text = tokenizer.decode(row["task"]["values"]["language"])
        said.add(text.replace(source.describe(i, rng(i))[0].name, "*"))
    assert said == {"point to the *", "the *"}


def test_the_fingerprint_follows_what_is_drawn(source, make):
    assert make().fingerprint == source.fingerprint
    for arguments in (
        {"split": 1, "table": ()},
        {"archives": ("twemoji",)},
        {"card": 0.5},
        {"table": tuple(reversed(WEB))},
        {"template": "the {name}"},
    ):
        assert make(**arguments).fingerprint != source.fingerprint


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"archives": ("twemojy",)}, "did you mean 'twemoji.tar'"),
        ({"names": "abc"}, "C names are never drawn"),
        ({"hide": ("hors",)}, "did you mean 'horse'"),
        ({"template": "point"}, "no {name}"),
        ({"targets": ("pointt",)}, "did you mean 'point'"),
        ({"max_tokens": 3}, "max_tokens is 3"),
        ({"view": "wrist"}, "no image size for view 'wrist'"),
        ({"card": 1.5}, r"card=1.5, expected a number in \[0, 1\]"),
        ({"count": (3, 2)}, "fewest <= most"),
        ({"count": (2, 500)}, "most <= 114"),
        ({"root": "/nowhere"}, "no such file"),
        ({"split": 1}, "table of names"),
    ],
)
def test_bad_arguments_are_user_errors(make, arguments, message):
    with pytest.raises(plugin.UserError, match=message):
        make(**arguments)


def test_without_a_text_tokenizer_the_error_comes_with_the_first_row(source):
    context = types.SourceContext(**{**source.context.__dict__, "text_tokenizer": None})
    other = collage.make(context)
    with pytest.raises(plugin.UserError, match="vla data text-tokenizer"):
        other.sample(0, rng(0))

"""Where a stream points: what it is asked, how its answers are judged, what is refused."""

import dataclasses
import math

import numpy as np
import pytest

from tests.evals import tiny_cards
from vla_jax import plugin
from vla_jax.data import mixture
from vla_jax.data.sources import collage
from vla_jax.evals import pointing
from vla_jax.train import assemble

TABLE = tiny_cards.NAMES.a + tiny_cards.NAMES.b


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_cards.save(tmp_path_factory.mktemp("cards") / "run")


@pytest.fixture(scope="module")
def pointer(folder):
    return pointing.Pointer(folder)


@pytest.fixture
def seen(pointer, monkeypatch):
    """Collages that `pointer` made, and what it was asked; `.answer(row)` points for it."""

    class Seen:
        def __init__(self):
            self.rows, self.batches, self.keys = [], [], []
            self.answer = lambda row: row["targets"]["region_point"][-1][0]

    sample, of_row, found = collage.Collage.sample, collage.Collage._domain, Seen()

    def remember(source, index, rng):
        found.rows.append(sample(source, index, rng))
        return found.rows[-1]

    def key(source, index, rng):
        made = of_row(source, index, rng)
        found.keys.append(tuple(made.bit_generator.state["state"]["key"].tolist()))
        return made

    def ask(batch):
        found.batches.append(batch)
        return found.answer(found.rows[-1])

    monkeypatch.setattr(collage.Collage, "sample", remember)
    monkeypatch.setattr(collage.Collage, "_domain", key)
    monkeypatch.setattr(pointer, "_ask", ask)
    return found


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)


def test_a_point_lies_in_the_picture_and_follows_what_is_shown(pointer):
    points = np.array([pointer.point(picture(seed), "point to the bee") for seed in range(8)])
    assert points.shape == (8, 2) and np.all((0 <= points) & (points <= 1))
    assert len(np.unique(points, axis=0)) == 8
    np.testing.assert_array_equal(points[3], pointer.point(picture(3), "point to the bee"))
    assert not np.array_equal(points[3], pointer.point(picture(3), "point to the owl"))


def test_the_answer_that_points_is_taken(pointer, monkeypatch):
    probs = np.full((1, 2, 2), 0.25, np.float32)
    answers = {
        "waypoint": {"point": np.array([[9, 9]])},  # no distribution over a picture
        "region_text": {"probs": probs},
        "point": {"point": np.array([[0.125, 0.75]], np.float32), "probs": probs},
    }
    monkeypatch.setattr(pointer, "_sample", lambda variables, batch: answers)
    assert pointer.point(picture(0), "point to the bee").tolist() == [0.125, 0.75]


def test_every_collage_asked_to_point_in_is_shown_as_it_was_drawn(pointer, seen):
    asked = [name for name, _ in pointer.collages(6, 3, TABLE)]
    assert set(asked) <= set(TABLE) and len(set(asked)) > 1
    words = tiny_cards.words()
    for name, row, batch in zip(asked, seen.rows, seen.batches, strict=True):
        ids, mask = (batch.task.values["language"][0], batch.task.masks["language"][0])
        assert words.decode(ids[mask]) == f"point to the {name}"
        shown = row["observation"]["images"]["primary"][-1]
        np.testing.assert_array_equal(batch.observation.images["primary"][0, 0], shown)


def test_collages_are_a_function_of_the_seed(pointer, seen):
    def drawn(count, seed):
        seen.rows.clear()
        names = [name for name, _ in pointer.collages(count, seed, TABLE)]
        return names, [row["observation"]["images"]["primary"].tobytes() for row in seen.rows]

    names, pictures = drawn(4, 7)
    assert drawn(4, 7) == (names, pictures) and len(set(pictures)) == 4
    assert drawn(2, 7) == (names[:2], pictures[:2])
    assert not set(drawn(4, 8)[1]) & set(pictures)


def test_no_collage_is_one_of_a_training(pointer, seen):
    list(pointer.collages(5, 0, TABLE))
    held_out, seen.keys[:] = {domain for _, domain in seen.keys}, []
    config = tiny_cards.config()
    context = assemble.source_context(config, "vl", (), (), tiny_cards.words())
    rows = mixture.Mixture.make(config.streams["vl"].mixture, context)
    for n in range(5):
        rows.sample(n)
    # The second half of the key of everything random in a collage: no two halves, no common row.
    assert held_out == {1} and {domain for _, domain in seen.keys} == {0}


def test_right_is_who_points_nearest_to_what_was_asked_for(pointer, seen):
    assert [right for _, right in pointer.collages(6, 1, TABLE)] == [True] * 6
    seen.rows.clear()
    rng, points = np.random.default_rng(0), []

    def anywhere(row):
        # Every other time at the corner, where places without a picture lie (0, 0).
        points.append(rng.random(2) if len(points) % 2 else np.zeros(2))
        return points[-1]

    seen.answer = anywhere
    found = [right for _, right in pointer.collages(20, 1, TABLE)]
    for right, row, point in zip(found, seen.rows, points, strict=True):
        real = row["target_masks"]["region_point"][-1]
        gaps = [math.dist(point, centre) for centre in row["targets"]["region_point"][-1][real]]
        assert right == (min(gaps) == gaps[0])
    assert 0 < sum(found) < 20


def test_wrong_is_who_points_at_another_picture(pointer, seen):
    seen.answer = lambda row: row["targets"]["region_point"][-1][1]
    found = [right for _, right in pointer.collages(8, 1, TABLE)]
    others = [row["target_masks"]["region_point"][-1][1] for row in seen.rows]
    # A collage of one picture alone: what its empty second place says is nearest to that one.
    assert found == [not other for other in others] and sum(others) >= 6


def test_the_names_may_stand_in_any_order(pointer, seen):
    first = [name for name, _ in pointer.collages(4, 2, TABLE)]
    others = tiny_cards.NAMES.c + TABLE[::-1]
    assert [name for name, _ in pointer.collages(4, 2, others)] == first


def test_collages_that_a_training_uses_for_points_alone(pointer, seen, monkeypatch):
    spec = tiny_cards.COLLAGES | dict(targets=("point",))
    member = dict(collages=dict(source=spec, weight=1.0))
    first = list(pointer.collages(3, 2, TABLE))
    stream = dataclasses.replace(pointer.stream, mixture=member)
    monkeypatch.setattr(pointer, "stream", stream)
    assert list(pointer.collages(3, 2, TABLE)) == first


def test_what_cannot_be_asked_is_refused(pointer, folder, monkeypatch):
    with pytest.raises(plugin.UserError, match="unknown 'vll', did you mean 'vl'.*robot, still"):
        pointing.Pointer(folder, "vll")
    with pytest.raises(plugin.UserError, match=r"'still': none of its heads \['plain'\] points"):
        pointing.Pointer(folder, "still").point(picture(0), "point to the bee")
    with pytest.raises(plugin.UserError, match="expected it to end with .16, 16, 3"):
        pointer.point(np.zeros((8, 8, 3), np.uint8), "point to the bee")
    with pytest.raises(plugin.UserError, match="max_tokens"):
        pointer.point(picture(0), "point to the bee " * 9)
    with pytest.raises(plugin.UserError, match=f"unknown '{TABLE[-1]}'"):
        list(pointer.collages(1, 0, TABLE[:-1]))
    shards = dict(web=dict(source=dict(type="image_text", path="x"), weight=1.0))
    monkeypatch.setattr(pointer, "stream", dataclasses.replace(pointer.stream, mixture=shards))
    with pytest.raises(plugin.UserError, match="no member that shows 'collage'.*'image_text'"):
        list(pointer.collages(1, 0, TABLE))


def test_the_member_that_can_be_asked_is_found(pointer, seen, monkeypatch):
    """Behind others, in a group; in the mixture where the validation has none."""
    asked = list(pointer.collages(3, 2, TABLE))
    web = dict(source=dict(type="image_text", path="x"), weight=1.0)
    group = dict(members=dict(emoji=dict(source=tiny_cards.COLLAGES)), weight=1.0)
    for validation in ({}, dict(web=web)):
        stream = dataclasses.replace(
            pointer.stream, mixture=dict(a=web, b=group), validation=validation
        )
        monkeypatch.setattr(pointer, "stream", stream)
        assert list(pointer.collages(3, 2, TABLE)) == asked

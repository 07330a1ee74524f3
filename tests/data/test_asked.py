"""What a row is asked by: probabilities, wordings, and never an empty instruction by accident."""

import collections
import json
import uuid

import numpy as np
import pytest

from vla_jax import plugin, storage
from vla_jax.data import asked, augment
from vla_jax.data.sources import rlds as source_lib

KEYS = [augment.row_key(np.random.default_rng(i)) for i in range(4000)]


def frequencies(given, language, goal):
    given = asked.ways("here", given, goals=True)
    counts = collections.Counter(asked.draw(given, language, goal, key) for key in KEYS)
    return {way: count / len(KEYS) for way, count in counts.items()}


def test_draws_have_their_probabilities_and_only_what_the_row_has():
    both = dict(language=0.5, goal=0.3, both=0.1, none=0.1)
    got = frequencies(both, True, True)
    wanted = {(True, False): 0.5, (False, True): 0.3, (True, True): 0.1, (False, False): 0.1}
    assert got == pytest.approx(wanted, abs=0.03)  # four standard errors
    got = frequencies(both, False, True)
    assert got == pytest.approx({(False, True): 0.75, (False, False): 0.25}, abs=0.03)
    # Octo's delete_task_conditioning: one of the two, and the goal where there are no words.
    octo = dict(language=0.5, goal=0.5)
    assert frequencies(octo, False, True) == {(False, True): 1.0}
    assert set(frequencies(octo, True, True)) == {(True, False), (False, True)}
    # What may be drawn is not there: all that the row has.
    assert frequencies(dict(both=1.0), True, False) == {(True, False): 1.0}
    assert frequencies(None, True, True) == {(True, True): 1.0}


def source(folder, context, **reading):
    return source_lib.make(context, path=str(folder), holdout=0, **reading)


def words(row):
    """Lengths of the row's words (the tests' text tokenizer); () = no instruction."""
    mask = row["task"]["masks"]["language"]
    return tuple(row["task"]["values"]["language"][mask].tolist())


def test_language_dropout_and_only_it_empties_an_instruction(folder, context):
    rows = source(folder, context, asked=dict(language=0.7, none=0.3))
    got = [words(rows.sample(0, np.random.default_rng(i))) for i in range(600)]
    assert np.mean([not w for w in got]) == pytest.approx(0.3, abs=0.08)
    rows = source(folder, context)
    assert all(words(rows.sample(i, np.random.default_rng(i))) for i in range(len(rows)))


def paraphrased(tmp_path, given):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(given))
    return str(path)


def test_every_wording_is_reached_the_last_one_too(folder, context, tmp_path):
    """Octo never draws the last key (octo_defects.md A3) and makes "" of a full stop (A7)."""
    path = paraphrased(tmp_path, {"touch the cat": ["reach cat.", "go to a cat", "the cat now"]})
    rows = source(folder, context, paraphrases=path)
    index = next(i for i in range(len(rows)) if rows.episodes.ids[rows._samples[i][0]] == "e1")
    counts = collections.Counter(
        words(rows.sample(index, np.random.default_rng(i))) for i in range(800)
    )
    wanted = {(5, 3, 3), (5, 4), (2, 2, 1, 3), (3, 3, 3)}
    assert set(counts) == wanted and min(counts.values()) > 140
    rarely = source(folder, context, paraphrases=path, paraphrase=0.25)
    kept = [words(rarely.sample(index, np.random.default_rng(i))) == (5, 3, 3) for i in range(400)]
    assert np.mean(kept) == pytest.approx(0.75, abs=0.09)
    url = f"memory://{uuid.uuid4().hex}/words.json"
    storage.write(url, storage.read(path))
    far = source(folder, context, paraphrases=url)
    assert {words(far.sample(index, np.random.default_rng(i))) for i in range(80)} == wanted
    other = paraphrased(tmp_path, {"touch the cat": ["reach cat"]})
    assert source(folder, context, paraphrases=other).fingerprint != rows.fingerprint


def test_evaluation_hears_the_recorded_words(folder, context, tmp_path):
    import dataclasses

    path = paraphrased(tmp_path, {"touch the cat": ["a b c d"], "touch the dog": ["a b c d"]})
    held = dataclasses.replace(context, train=False)
    rows = source_lib.make(held, path=str(folder), holdout=0.5, paraphrases=path)
    got = {words(rows.sample(i, np.random.default_rng(i))) for i in range(len(rows))}
    assert got == {(5, 3, 3)}


def test_several_instructions_of_an_episode(folder, context):
    from vla_jax.data import episodes, robot

    def episode(number, language):
        return episodes.Episode(
            id=str(number),
            steps=np.arange(2),
            action=np.zeros((2, 4), np.float32),
            proprio={"hand": np.zeros((2, 3), np.float32)},
            language=language,
            embodiment="arm",
            action_space="xyz_gripper",
            metadata={"success": np.array([number == 0]), "scene": f"s{number}"},
        )

    parts = [episode(0, [("a", "bb", "a", "")] * 2), episode(1, ["ccc", ""])]
    rows = [(part, {}, 0, i, 0) for i, part in enumerate(parts)]
    table = episodes.collect("here", "data", rows, ())
    assert table.language == ("a", "ccc") and table.others == (("bb",), ())
    assert table.language_index.tolist() == [0, 0, 1, -1]
    assert table.metadata == {"success": (True, False), "scene": ("s0", "s1")}
    import dataclasses

    context = dataclasses.replace(context, image_sizes={})
    reading = robot.Reading(holdout=0, language="optional")
    made = robot.RobotRows(context, table, lambda *_: [], reading)
    got = {words(made.sample(0, np.random.default_rng(i))) for i in range(40)}
    assert got == {(1,), (2,)}
    assert words(made.sample(3, np.random.default_rng(0))) == ()


def test_mistakes(folder, context, tmp_path):
    for arguments, match in (
        (dict(asked=dict(langage=1.0)), "did you mean 'language'"),
        (dict(asked=dict(language=0.5)), "sum to 1"),
        (dict(asked=dict(goal=1.0)), "there are no goal pictures"),
        (dict(paraphrases="nowhere.json"), "no such file"),
        (dict(paraphrases=paraphrased(tmp_path, {"a": ["", "b"]})), "none empty"),
        (dict(paraphrase=2.0), "expected 0 to 1"),
    ):
        with pytest.raises(plugin.UserError, match=match):
            source(folder, context, **arguments)

import fnmatch

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.nn import layout, visibility

G = layout.Group
GROUPS = (
    G("language", 2),
    G("text", 3),
    G("image", 2, 3),
    G("proprio", 1, 3),
    G("readout_x", 1, 3),
)
ROWS = layout.Layout.make(GROUPS, 3)
RULES = (
    ("readout_*", "readout_*", "now"),
    ("*", "readout_*", "never"),
    ("text", "text", "causal_position"),
    ("text", "language", "all"),
    ("language", "text", "never"),
    ("language", "language", "all"),
    ("proprio", "proprio", "past"),
    ("language", "*", "never"),
    ("*", "*", "past_or_now"),
)


def by_double_loop(rows, rules):
    mask = np.zeros((rows.length, rows.length), bool)
    for q in range(rows.length):
        for k in range(rows.length):
            names = rows.groups[rows.group[q]].name, rows.groups[rows.group[k]].name
            rule = next(
                rule
                for *patterns, rule in rules
                if all(fnmatch.fnmatchcase(n, p) for n, p in zip(names, patterns))
            )
            t, u = rows.time[q], rows.time[k]
            mask[q, k] = {
                "all": True,
                "past_or_now": u <= t,
                "now": u == t,
                "past": u < t,
                "causal_position": k <= q,
                "never": False,
            }[rule]
    return mask


def test_mask_equals_a_plain_double_loop():
    np.testing.assert_array_equal(visibility.mask(ROWS, RULES), by_double_loop(ROWS, RULES))


@pytest.mark.parametrize("rule", visibility.NAMES)
def test_every_rule_alone_equals_the_double_loop(rule):
    rules = (("*", "*", rule),)
    np.testing.assert_array_equal(visibility.mask(ROWS, rules), by_double_loop(ROWS, rules))


def test_mask_is_cached_and_read_only():
    assert visibility.mask(ROWS, RULES) is visibility.mask(ROWS, RULES)
    with pytest.raises(ValueError):
        visibility.mask(ROWS, RULES)[0, 0] = True


def test_unmatched_pair_names_both_groups():
    with pytest.raises(plugin.UserError, match="'language' sees 'text'"):
        visibility.mask(ROWS, (("language", "language", "all"),))


def test_malformed_rules():
    with pytest.raises(plugin.UserError, match="did you mean 'past_or_now'"):
        visibility.make([("*", "*", "past_and_now")])
    with pytest.raises(plugin.UserError, match="query pattern"):
        visibility.make([("*", "all")])
    assert visibility.make([["*", "*", "all"]]) == (("*", "*", "all"),)


def reaches(source, target, conditioning=None, rules=RULES):
    return visibility.reaches(GROUPS, rules, source, target, conditioning)


def test_reaches_is_transitive():
    chain = (
        ("readout_x", "image", "all"),
        ("image", "proprio", "now"),
        ("proprio", "text", "past"),
        ("*", "*", "never"),
    )
    assert reaches("text", "readout_x", rules=chain)
    assert not reaches("readout_x", "text", rules=chain)
    assert not reaches("language", "readout_x", rules=chain)
    assert reaches("language", "language", rules=chain)


def test_reaches_counts_what_tokenizers_read():
    blind = (("readout_x", "image", "now"), ("image", "image", "now"), ("*", "*", "never"))
    assert not reaches("language", "readout_x", rules=blind)
    assert reaches("language", "readout_x", {"image": ("language",)}, rules=blind)
    # What is read is the tokens before the trunk: what they attend to does not come along.
    seen = (("language", "text", "all"), *blind)
    assert not reaches("text", "readout_x", {"image": ("language",)}, rules=seen)


def test_reaches_knows_groups_that_are_read_and_have_no_tokens():
    blind = (("readout_x", "image", "now"), ("image", "image", "now"), ("*", "*", "never"))
    told = {"image": ("sentence",), "sentence": ()}
    assert reaches("sentence", "readout_x", told, rules=blind)
    assert not reaches("sentence", "text", told, rules=blind)
    with pytest.raises(plugin.UserError, match="did you mean 'sentence'"):
        reaches("sentense", "text", told, rules=blind)


def test_reaches_agrees_with_powers_of_the_mask():
    reach = np.linalg.matrix_power(
        visibility.mask(ROWS, RULES).astype(int) + np.eye(ROWS.length, dtype=int), 4
    )
    for a in GROUPS:
        for b in GROUPS:
            path = reach[np.ix_(ROWS.slot(b.name).ravel(), ROWS.slot(a.name).ravel())].any()
            assert reaches(a.name, b.name) == path, (a.name, b.name)


def test_reaches_refuses_unknown_groups():
    with pytest.raises(plugin.UserError, match="did you mean 'image'"):
        reaches("imagee", "text")


def test_prefix_sees_nothing_behind_it():
    assert visibility.prefix_length(ROWS, RULES) == 5  # the task
    newest = visibility.prefix_length(ROWS, RULES, recomputed=("readout_x",))
    assert newest == ROWS.length - 1
    assert visibility.prefix_length(ROWS, (("*", "*", "all"),)) == 0


def test_pictures():
    text = visibility.picture(ROWS, RULES)
    assert "language x2" in text and "readout_x t=2 x1" in text
    line = next(row for row in text.split("\n") if row.strip().startswith("text"))
    assert "+" in line and "#" in line and "·" in line
    picture = visibility.image(ROWS, RULES, cell=3)
    assert picture.shape == (3 * ROWS.length, 3 * ROWS.length, 3) and picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 4

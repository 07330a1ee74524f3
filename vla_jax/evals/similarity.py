"""How alike two artists' drawings are: the untrained nearest neighbour among four cards.

The demo's web pictures are other artists' than the cards'. How much of "it knows a drawing that it
never met" is owed to the drawings being alike? For each card and three random other names: which of
the four names is nearest, by silhouette, by pixels, by mean colour? Chance is one in four. Pictures
are cropped to what is drawn, since artists leave different margins; of several web artists the
nearest drawing of a name counts: both make the drawings look as alike as they are.
The report prints these fractions beside the policy's numbers. Nothing here is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla_jax import plugin

CHOICES = 4  # the cards on the table
PIXELS = 16  # height and width of the pictures compared pixel by pixel
OUTLINE = 48  # height and width of the silhouettes compared
MEASURES = ("silhouette", "pixels", "color")


def likeness(
    cards: Mapping[str, np.ndarray],
    web: Sequence[Mapping[str, np.ndarray]],
    draws: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """`{"silhouette", "pixels", "color": fraction right of four}` of cards matched to web pictures.

    `cards` is one artist's pictures, `web` one mapping per web artist: name → uint8 [h, w, 4]. A
    fraction is the mean over names and `draws` random sets of three other names (a tie counts as
    wrong). Raises UserError when the names differ or are fewer than four.
    """
    names = sorted(cards)
    if not web or len(names) < CHOICES or draws < 1:
        raise plugin.UserError(
            f"likeness: got {len(names)} cards, {len(web)} web artists, {draws} draws; expected "
            f"{CHOICES} or more cards, 1 or more artists, 1 or more draws"
        )
    for artist, pictures in enumerate(web):
        if set(pictures) != set(names):
            raise plugin.UserError(
                f"likeness: web artist {artist} and the cards differ in "
                f"{sorted(set(names) ^ set(pictures))}; expected the same names in both"
            )
    card_features = [_features(cards[name]) for name in names]
    web_features = [[_features(pictures[name]) for name in names] for pictures in web]
    others = _others(np.random.default_rng(seed), len(names), draws)  # [N, draws, 3]
    result = {}
    for measure in MEASURES:
        stacked = np.stack([f[measure] for f in card_features])
        distance = np.min(
            [
                _distances(stacked, np.stack([f[measure] for f in artist]), measure)
                for artist in web_features
            ],
            axis=0,
        )  # [N, N]: card row, web column, the nearest artist
        right = np.diagonal(distance)[:, None, None]
        wrong = np.take_along_axis(distance[:, None, :], others, axis=2)  # [N, draws, 3]
        result[measure] = float(np.mean(np.all(right < wrong, axis=2)))
    return result


def _others(rng: np.random.Generator, number: int, draws: int) -> np.ndarray:
    """For each name, sets of three different other names: int [number, draws, 3]."""
    score = rng.random((number, draws, number))
    score[np.arange(number), :, np.arange(number)] = np.inf  # never the name itself
    return np.argsort(score, axis=2)[:, :, : CHOICES - 1]


def _features(rgba: np.ndarray) -> dict[str, np.ndarray]:
    """What each measure looks at, of one picture uint8 [h, w, 4]: one flat float vector each."""
    import cv2  # late: it is slow to import, and the report's other parts do without

    drawn = rgba[..., 3] > 127
    if drawn.any():
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rgba = rgba.astype(np.float32) / 255
    alpha = rgba[..., 3:]  # [h, w, 1]
    white = rgba[..., :3] * alpha + 1 - alpha  # [h, w, 3], composited on white
    small = cv2.resize(white, (PIXELS, PIXELS), interpolation=cv2.INTER_AREA)
    silhouette = cv2.resize(alpha, (OUTLINE, OUTLINE), interpolation=cv2.INTER_LINEAR)
    weight = max(float(alpha.sum()), 1e-6)
    return {
        "silhouette": (silhouette > 0.5).astype(np.float32).reshape(-1),
        "pixels": small.reshape(-1),
        "color": (rgba[..., :3] * alpha).sum(axis=(0, 1)) / weight,  # of the drawn part only
    }


def _distances(cards: np.ndarray, web: np.ndarray, measure: str) -> np.ndarray:
    """From features [N, F], float [N, N]: 1 - IoU for silhouettes, else squared distances."""
    if measure == "silhouette":
        both = cards @ web.T
        either = cards.sum(1)[:, None] + web.sum(1)[None, :] - both
        return 1 - both / np.maximum(either, 1)
    return np.stack([np.square(card[None, :] - web).sum(1) for card in cards])

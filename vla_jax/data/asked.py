"""What a row is asked by: an instruction in one of its wordings, a goal picture, both, nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from vla_jax import plugin, storage
from vla_jax.data import augment as augment_lib
from vla_jax.data.episodes import Episodes
from vla_jax.data.reading import Reading
from vla_jax.types import SourceContext

WAYS = ("language", "goal", "both", "none")


def check(where: str, episodes: Episodes, rows: np.ndarray) -> None:
    """UserError unless each of these rows of the table has an instruction."""
    missing = rows[episodes.language_index[rows] < 0]
    if len(missing):
        episode = int(np.searchsorted(episodes.start, missing[0], side="right")) - 1
        raise plugin.UserError(
            f"{where}: {len(missing)} of {len(rows)} steps have no instruction (episode "
            f"{episodes.ids[episode]}); set language='optional' to train without one, or "
            "filter='labelled' to leave such episodes out"
        )


class Instructions:
    """Piece ids of every instruction and its other wordings, made once.

    Args:
      where: for messages.
      context: the stream's, with a text tokenizer.
      episodes: the table.
      reading: its `paraphrases` and `paraphrase`.

    Raises UserError for a paraphrase file that is none, or holds an empty wording.
    """

    def __init__(self, where: str, context: SourceContext, episodes: Episodes, reading: Reading):
        given = _paraphrases(where, reading.paraphrases)
        share = reading.paraphrase
        if share is not None and not 0 <= share <= 1:
            raise plugin.UserError(f"{where}: paraphrase={share}, expected 0 to 1")
        self.share, self.vary, texts = share, context.train, {}
        self.wordings = []  # per distinct instruction: places in the table of ids
        held = episodes.others or ((),) * len(episodes.language)
        for text, others in zip(episodes.language, held, strict=True):
            words = dict.fromkeys([text, *others, *given.get(text, ())])
            self.wordings.append([texts.setdefault(word, len(texts)) for word in words])
        tokenizer, size = context.text_tokenizer, context.max_tokens
        pairs = [tokenizer.instruction(text, size) for text in texts]
        pairs.append(tokenizer.no_text(size))  # the last row: no instruction
        self.ids = np.stack([ids for ids, _ in pairs])
        self.mask = np.stack([mask for _, mask in pairs])
        self.texts = tuple(texts)

    def draw(self, index: int, key: bytes) -> tuple[np.ndarray, np.ndarray]:
        """(int32 [T], bool [T]) of instruction `index` in one of its wordings; -1 = none."""
        if index < 0:
            return self.ids[-1], self.mask[-1]
        words = self.wordings[index]
        place = words[0]
        if self.vary and len(words) > 1:
            which = augment_lib.uniform(key, "paraphrase")
            if self.share is None:
                place = words[int(which * len(words))]
            elif augment_lib.uniform(key, "paraphrase/whether") < self.share:
                place = words[1 + int(which * (len(words) - 1))]
        return self.ids[place], self.mask[place]


def ways(where: str, given: Mapping[str, float] | None, goals: bool) -> dict[str, float] | None:
    """The probabilities of `Reading.asked`, checked; None where everything is always shown."""
    if given is None:
        return None
    for name in given:
        if name not in WAYS:
            raise plugin.UserError(plugin.unknown(f"{where}: asked", name, WAYS))
    values = {name: float(given.get(name, 0.0)) for name in WAYS}
    if min(values.values()) < 0 or abs(sum(values.values()) - 1) > 1e-6:
        raise plugin.UserError(
            f"{where}: asked={dict(given)}: expected probabilities that sum to 1"
        )
    if not goals and values["goal"] + values["both"] > 0:
        raise plugin.UserError(
            f"{where}: asked={dict(given)}: there are no goal pictures; set goals=dict(views=…)"
        )
    return values


def draw(given: Mapping[str, float] | None, language: bool, goal: bool, key: bytes):
    """(show the instruction, show the goal): one draw among what the row has.

    A row that has nothing of what may be drawn shows all that it has.
    """
    if given is None:
        return language, goal
    has = {"language": language, "goal": goal, "both": language and goal, "none": True}
    shares = [given[name] if has[name] else 0.0 for name in WAYS]
    total = sum(shares)
    if total == 0:
        return language, goal
    ends = np.cumsum(shares)
    place = augment_lib.uniform(key, "asked") * total
    last = int(np.flatnonzero(shares)[-1])
    way = WAYS[min(int(np.searchsorted(ends, place, side="right")), last)]
    return way in ("language", "both"), way in ("goal", "both")


def contents(where: str, path: str | None) -> str:
    """A hash of the paraphrase file, for fingerprints; UserError where there is none."""
    return hashlib.sha256(_file(where, path)).hexdigest() if path else ""


def _file(where: str, path: str) -> bytes:
    if not storage.is_file(path):
        raise plugin.UserError(f"{where}: paraphrases={path}: no such file")
    return storage.read(path)


def _paraphrases(where: str, path: str | None) -> dict[str, list[str]]:
    if path is None:
        return {}
    try:
        given = json.loads(_file(where, path))
    except ValueError as error:
        raise plugin.UserError(f"{where}: paraphrases={path}: not JSON ({error})") from error
    expected = "expected {instruction: [other words for it, …]}"
    if not isinstance(given, dict):
        raise plugin.UserError(
            f"{where}: paraphrases={path}: got {type(given).__name__}, {expected}"
        )
    for text, others in given.items():
        whole = isinstance(others, list) and all(isinstance(o, str) and o.strip() for o in others)
        if not whole:
            raise plugin.UserError(
                f"{where}: paraphrases={path}: {text!r} has {others!r}, {expected}, none empty"
            )
    return {text: [other.strip() for other in others] for text, others in given.items()}

"""Pictures with captions from WebDataset-style tar shards, read in place by index.

    000.jpg (or .jpeg .png .webp)   the picture; a transparent one is laid on white
    000.json                        {"caption": "…"} (see `captions`), and where that has none, or
    000.txt                         the caption itself

That is also the layout that img2dataset writes (github.com/rom1504/img2dataset), whose captions may
be empty and whose pictures may be broken: see `bad_samples`.

A row carries the caption twice, for whoever reads it: as the task's `language` (contrastive: the
text side), and as the target `text` with BOS and EOS (next-token prediction). A stream that trains
next-token prediction must not show its model the caption as an instruction: it gives `language`,
for instance "describe the picture".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from vla_jax import plugin, types
from vla_jax.data.sources import _picture_row, _tar

DEBUG = {}

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("json", "txt")


class ImageText:
    """An IndexedSource of captioned pictures; `make` says what it is made of."""

    def __init__(
        self,
        context,
        shards,
        samples,
        *,
        captions,
        language,
        view,
        targets,
        regions,
        cut,
        crop,
        bad_samples,
    ):
        self.context, self._shards, self._samples = context, shards, samples
        self._captions, self._language, self._targets = captions, language, targets
        self._view, self._regions, self._cut, self._crop = view, regions, cut, crop
        self.skips = bad_samples == "skip"  # see Mixture.sample
        self._size = _picture_row.image_size(context, view)
        _picture_row.blank_targets(context, targets, regions)  # unknown names raise here
        tokenizer = getattr(context.text_tokenizer, "fingerprint", None)
        how = (self._size, captions, language, targets, view, regions, cut, crop, context.train)
        how = (*how, bad_samples, context.max_tokens, context.window, context.resize, tokenizer)
        digest = hashlib.sha256(f"{shards.fingerprint(samples)} {how!r}".encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int, rng: np.random.Generator) -> dict:
        """Row `index` of the vl stream; `rng` chooses among several captions, and the crop.

        Raises UserError for a picture that does not decode, a sample without a caption, a caption
        longer than max_tokens (unless `cut`), and a context without a text tokenizer.
        """
        if self.context.text_tokenizer is None:
            raise plugin.UserError(
                f"{self.context.name}: captions need a text tokenizer and the config names none; "
                "make one with `vla data text-tokenizer` and set text_tokenizer"
            )
        sample = int(self._samples[index])
        choices = self.captions(index)
        caption = choices[int(rng.integers(len(choices)))]
        targets, masks = _picture_row.blank_targets(self.context, self._targets, self._regions)
        language, text = _picture_row.encoded(
            self.context.text_tokenizer,
            self._shards.where(sample),
            caption if self._language is None else self._language,
            caption if "text" in targets else None,
            self.context.max_tokens,
            self._cut,
        )
        if text is not None:
            targets["text"], masks["text"] = text
        image = self._picture(sample)
        train = rng if self.context.train else None
        shown = _picture_row.part(image.shape, self._size, self._crop, train)
        image = _picture_row.cut(image, shown, self._size, self.context.resize)
        return _picture_row.row(self.context, self._view, image, language, targets, masks)

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a sample; UserError when it has none."""
        sample, found, said = int(self._samples[index]), [], {}
        for ending in (e for e in CAPTIONS if e in self._shards.members(sample)):
            try:
                said[ending] = self._shards.read(sample, ending).decode()
                text = said[ending]
                found = [text] if ending == "txt" else _fields(json.loads(text), self._captions)
            except ValueError as error:
                if isinstance(error, plugin.UserError):
                    raise
                raise plugin.UserError(
                    f"{self._shards.where(sample)}.{ending}: no UTF-8 text, or no JSON ({error})"
                ) from error
            found = [line for caption in found if (line := " ".join(caption.split()))]
            if found:
                return tuple(found)
        fields = f"expected one of the fields {self._captions}" if "json" in said else "empty"
        raise plugin.UserError(
            f"{self._shards.where(sample)}.{ending}: no caption: {fields}; "
            f"got {said[ending][:80]!r}"
        )

    def texts(self) -> list[str]:
        """Every caption of every sample: what a text tokenizer may be trained on."""
        found = []
        for i in range(len(self)):
            try:
                found += self.captions(i)
            except plugin.UserError:
                if not self.skips:
                    raise
        return found

    def _picture(self, sample: int) -> np.ndarray:
        ending = next(e for e in PICTURES if e in self._shards.members(sample))
        data = self._shards.read(sample, ending)
        return _picture_row.decoded(data, f"{self._shards.where(sample)}.{ending}")


def make(
    context,
    *,
    path: str | Sequence[str],
    captions: Sequence[str] = ("caption", "text"),
    language: str | None = None,
    view: str = "primary",
    targets: Sequence[str] = ("text",),
    regions: int = 0,
    cut: bool = False,
    crop: float = 1.0,
    holdout: float = 0.1,
    bad_samples: str = "error",
    index_dir: str | None = None,
) -> ImageText:
    """A source of captioned pictures for the vl stream.

    Args:
      context: SourceContext; with `train` False the held-out pictures, without augmentation.
      path: a tar, a folder of tars, a pattern ("web/{000..127}.tar"), or several; URLs, too.
      captions: JSON fields to take captions from, each a string or a list of them; all that are
        there are candidates, one is drawn per row.
      language: the instruction; None: the caption.
      view: the view that the picture stands for.
      targets: those of the stream; targets that captions know nothing about come masked out.
      regions: K of the masked-out region targets: as many as the stream's other sources have.
      cut: shorten captions that are longer than the stream's max_tokens instead of raising.
      crop: in training, the smallest share of the side that a random crop keeps (1: the whole).
      holdout: share of the pictures, chosen by their keys, that is held out of training.
      bad_samples: "error", or "skip": a sample whose picture or caption cannot be read gives way
        to the next one, and is counted.
      index_dir: where the shards' indices are kept, so that only the first start scans them.

    Raises:
      UserError: nothing at `path`, a broken or compressed tar, a picture without a caption or the
        other way round, no picture left, or a number out of range.
    """
    where = context.name
    _picture_row.check_reading(where, crop, holdout, bad_samples)
    shards = _tar.Shards(_tar.find(where, path), index_dir)
    _check_pairs(shards)
    samples = np.flatnonzero((shards.share < holdout) != context.train)
    if not len(samples):
        raise plugin.UserError(
            f"{where}: {len(shards)} pictures at {path!r}, none of them in the "
            f"{'training' if context.train else 'held-out'} part (holdout={holdout})"
        )
    return ImageText(
        context,
        shards,
        samples,
        view=view,
        captions=tuple(captions),
        language=language,
        targets=tuple(targets),
        cut=cut,
        crop=crop,
        regions=regions,
        bad_samples=bad_samples,
    )


def _check_pairs(shards: _tar.Shards) -> None:
    """UserError for a picture without a caption, or the other way round."""
    for kind, endings in (("picture", PICTURES), ("caption", CAPTIONS)):
        without = np.flatnonzero(~shards.have(endings))
        if len(without):
            first = int(without[0])
            raise plugin.UserError(
                f"{shards.where(first)}: no {kind}, it has {sorted(shards.members(first))}; "
                f"expected one of {endings} beside it in the same tar ({len(without)} samples lack "
                "one)"
            )


def texts(
    *,
    path: str | Sequence[str],
    captions: Sequence[str] = ("caption", "text"),
    holdout: float = 0.1,
    bad_samples: str = "error",
    index_dir: str | None = None,
) -> list[str]:
    """The training captions, what a text tokenizer may be trained on; arguments as in `make`."""
    context = types.SourceContext(name="texts", stream="", image_sizes={"primary": (1, 1)})
    how = dict(captions=captions, holdout=holdout, bad_samples=bad_samples, index_dir=index_dir)
    return make(context, path=path, **how).texts()


def _fields(record, names: Sequence[str]) -> list[str]:
    """The strings in the named fields of a JSON object, in the order of the names."""
    if not isinstance(record, dict):
        return []
    values = [record.get(name) for name in names]
    listed = [value if isinstance(value, list) else [value] for value in values]
    return [text for texts in listed for text in texts if isinstance(text, str)]

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

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from vla_jax import plugin, types
from vla_jax.data import runs
from vla_jax.data.sources import _picture_row, _sidecar, _tar

DEBUG = {}

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("json", "txt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(_picture_row.Reading):
    """How captioned pictures become samples; see also _picture_row.Reading.

    Attributes:
      captions: JSON fields to take captions from, each a string or a list of them; all that are
        there are candidates, one is drawn per row.
      language: the instruction; None: the caption.
      access: "random" (local disks), or "contiguous" (object stores): samples come from `num_runs`
        runs of about `run_bytes` bytes of a shard at a time, each read by one request.
    """

    captions: tuple[str, ...] = ("caption", "text")
    language: str | None = None
    access: str = "random"
    num_runs: int = 16
    run_bytes: int = 2**22

    def check(self, where: str) -> None:
        """UserError, beginning with `where`, for a value out of range."""
        super().check(where)
        self.one_of(where, "access", runs.ACCESS)
        if self.num_runs < 1 or self.run_bytes < 1:
            raise plugin.UserError(
                f"{where}: num_runs={self.num_runs}, run_bytes={self.run_bytes}, expected >= 1"
            )


class ImageText:
    """An IndexedSource of captioned pictures; `make` says what it is made of.

    `runs` is how contiguous access orders its samples, None where any of them is read alone.
    """

    def __init__(self, context, shards: _tar.Shards, samples: np.ndarray, reading: Reading):
        self.context, self._shards, self._samples = context, shards, samples
        self._reading = reading
        self.skips = reading.bad_samples == "skip"  # see Mixture.sample
        self._size = _picture_row.image_size(context, reading.view)
        # Unknown names raise here.
        _picture_row.blank_targets(context, reading.targets, reading.regions)
        self.runs = None
        if reading.access == "contiguous":
            used = (*PICTURES, *CAPTIONS)
            self.runs = shards.in_runs(samples, used, reading.num_runs, reading.run_bytes)
        tokenizer = getattr(context.text_tokenizer, "fingerprint", None)
        said = (shards.fingerprint(samples), self._size, reading.described(), context.train)
        said = (*said, context.max_tokens, context.window, context.resize, tokenizer)
        self.fingerprint = hashlib.sha256(repr(said).encode()).hexdigest()[:16]

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
        targets, masks = _picture_row.blank_targets(
            self.context, self._reading.targets, self._reading.regions
        )
        language, text = _picture_row.encoded(
            self.context.text_tokenizer,
            self._shards.where(sample),
            caption if self._reading.language is None else self._reading.language,
            caption if "text" in targets else None,
            self.context.max_tokens,
            self._reading.cut,
        )
        if text is not None:
            targets["text"], masks["text"] = text
        image = self._picture(sample)
        train = rng if self.context.train else None
        shown = _picture_row.part(image.shape, self._size, self._reading.crop, train)
        image = _picture_row.cut(image, shown, self._size, self.context.resize)
        return _picture_row.row(self.context, self._reading.view, image, language, targets, masks)

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a sample; UserError when it has none."""
        sample, found, said = int(self._samples[index]), [], {}
        for ending in (e for e in CAPTIONS if e in self._shards.members(sample)):
            try:
                said[ending] = self._shards.read(sample, ending).decode()
                text = said[ending]
                found = (
                    [text] if ending == "txt" else _fields(json.loads(text), self._reading.captions)
                )
            except ValueError as error:
                if isinstance(error, plugin.UserError):
                    raise
                raise plugin.UserError(
                    f"{self._shards.where(sample)}.{ending}: no UTF-8 text, or no JSON ({error})"
                ) from error
            found = [line for caption in found if (line := " ".join(caption.split()))]
            if found:
                return tuple(found)
        fields = (
            f"expected one of the fields {self._reading.captions}" if "json" in said else "empty"
        )
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


def make(context, *, path: str | Sequence[str], **reading: Reading) -> ImageText:
    """A source of captioned pictures for the vl stream.

    Args:
      context: SourceContext; with `train` False the held-out pictures, without augmentation.
      path: a tar, a folder of tars, a pattern ("web/{00000..00127}.tar", "web/*.tar"), or several
        of them; local or by URL.
      reading: captions, view, targets, holdout, access, …: see Reading.

    Raises:
      UserError: nothing at `path`, a broken or compressed tar, a picture without a caption or the
        other way round, no picture left, or an argument out of range.
    """
    made = Reading.make(context.name, reading)
    shards = _tar.Shards(_tar.find(context.name, path), made.index_dir)
    _check_pairs(shards)
    samples = np.flatnonzero(_picture_row.part_of(context, path, shards.share, made.holdout))
    return ImageText(context, shards, samples, made)


def index(
    path: str | Sequence[str], *, index_dir: str | None = None, workers: int | None = None
) -> dict:
    """Makes the indexes of tars (`path` as in `make`); see _sidecar.build, whose answer it is."""
    return _sidecar.build(_tar.find(str(path), path), _tar.KIND, _tar.scan, index_dir, workers)


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

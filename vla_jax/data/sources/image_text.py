"""Pictures with captions from WebDataset-style tar shards, read in place by index.

    000.jpg (or .jpeg .png .webp)   the picture; a transparent one is laid on white
    000.json                        {"caption": "…"} (see `captions`), or
    000.txt                         the caption itself

A row carries the caption twice, for whoever reads it: as the task's `language` (contrastive: the
text side), and as the target `text` with BOS and EOS (next-token prediction). A stream that trains
next-token prediction must not show its model the caption as an instruction: it gives `language`,
for instance "describe the picture".
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from vla_jax import plugin, types
from vla_jax.data import images
from vla_jax.data.sources import _picture_row, _tar

DEBUG = {}

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("json", "txt")


class ImageText:
    """An IndexedSource of captioned pictures; `make` says what it is made of."""

    def __init__(
        self, context, shards, samples, *, captions, language, view, targets, regions, cut, crop
    ):
        self.context, self._shards, self._samples = context, shards, samples
        self._captions, self._language, self._targets = captions, language, targets
        self._view, self._regions, self._cut, self._crop = view, regions, cut, crop
        self._size = _picture_row.image_size(context, view)
        _picture_row.blank_targets(context, targets, regions)  # unknown names raise here
        digest = hashlib.sha256()
        for sample in samples:
            digest.update(f"{sample.shard} {sample.key} {sorted(sample.members.items())}".encode())
        tokenizer = getattr(context.text_tokenizer, "fingerprint", None)
        how = (self._size, captions, language, targets, view, regions, cut, crop, context.train)
        digest.update(repr((how, context.max_tokens, context.window, tokenizer)).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int, rng: np.random.Generator) -> dict:
        """Row `index` of the vl stream; `rng` chooses among several captions, and the crop.

        Raises UserError for a picture that does not decode, a sample without a caption, a caption
        longer than max_tokens (unless `cut`), and a context without a text tokenizer.
        """
        tokenizer = self.context.text_tokenizer
        if tokenizer is None:
            raise plugin.UserError(
                f"{self.context.name}: captions need a text tokenizer and the config names none; "
                "make one with `vla data text-tokenizer` and set text_tokenizer"
            )
        sample = self._samples[index]
        choices = self.captions(index)
        caption = choices[int(rng.integers(len(choices)))]
        said = caption if self._language is None else self._language
        length = self.context.max_tokens
        targets, masks = _picture_row.blank_targets(self.context, self._targets, self._regions)
        try:
            language = tokenizer.encode_padded(said, length, cut=self._cut)
            if "text" in targets:
                targets["text"], masks["text"] = tokenizer.encode_padded(
                    caption, length, ends=True, cut=self._cut
                )
        except plugin.UserError as error:
            hint = "; or cut captions with cut=True"
            raise plugin.UserError(f"{self._shards.where(sample)}: {error}{hint}") from None
        image = self._resized(self._picture(sample), rng)
        return _picture_row.row(self.context, self._view, image, language, targets, masks)

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of a sample; UserError when it has none."""
        sample = self._samples[index]
        ending = next((e for e in CAPTIONS if e in sample.members), None)
        where = f"{self._shards.where(sample)}.{ending}"
        try:
            text = self._shards.read(sample, ending).decode()
            found = [text] if ending == "txt" else _fields(json.loads(text), self._captions)
        except ValueError as error:
            raise plugin.UserError(f"{where}: no UTF-8 text, or no JSON ({error})") from error
        found = tuple(line for caption in found if (line := " ".join(caption.split())))
        if not found:
            fields = f"expected one of the fields {self._captions}" if ending == "json" else "empty"
            raise plugin.UserError(f"{where}: no caption: {fields}; got {text[:80]!r}")
        return found

    def texts(self) -> list[str]:
        """Every caption of every sample: what a text tokenizer may be trained on."""
        return [caption for i in range(len(self)) for caption in self.captions(i)]

    def _picture(self, sample: _tar.Sample) -> np.ndarray:
        ending = next(e for e in PICTURES if e in sample.members)
        data = self._shards.read(sample, ending)
        return _decode(data, f"{self._shards.where(sample)}.{ending}")

    def _resized(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The largest part of the stream's aspect ratio, scaled to its size.

        Held out: the middle one. In training: at a random place, and a random share of its side.
        """
        height, width = self._size
        zoom = min(image.shape[0] / height, image.shape[1] / width)
        share, across, down = 1.0, 0.5, 0.5
        if self.context.train:
            share, across, down = rng.random(3)
            share = self._crop + (1 - self._crop) * share
        rows = max(1, round(zoom * height * share))
        columns = max(1, round(zoom * width * share))
        y = round(down * (image.shape[0] - rows))
        x = round(across * (image.shape[1] - columns))
        part = np.ascontiguousarray(image[y : y + rows, x : x + columns])
        return images.resize(part, (height, width), self.context.resize)


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
) -> ImageText:
    """A source of captioned pictures for the vl stream.

    Args:
      context: SourceContext; with `train` False the held-out pictures, without augmentation.
      path: a tar, a folder of tars, a glob pattern, or several of them.
      captions: JSON fields to take captions from, each a string or a list of them; all that are
        there are candidates, one is drawn per row.
      language: the instruction; None: the caption.
      view: the view that the picture stands for.
      targets: those of the stream; targets that captions know nothing about come masked out.
      regions: K of the masked-out region targets: as many as the stream's other sources have.
      cut: shorten captions that are longer than the stream's max_tokens instead of raising.
      crop: in training, the smallest share of the side that a random crop keeps (1: the whole).
      holdout: share of the pictures, chosen by their keys, that is held out of training.

    Raises:
      UserError: nothing at `path`, a broken or compressed tar, a picture without a caption or the
        other way round, no picture left, or a number out of range.
    """
    where = context.name
    if not 0 < crop <= 1 or not 0 <= holdout < 1:
        raise plugin.UserError(
            f"{where}: got crop={crop}, holdout={holdout}; expected 0 < crop <= 1, 0 <= holdout < 1"
        )
    shards = _tar.Shards(_tar.find(where, path))
    _check_pairs(shards)
    samples = [s for s in shards.samples if (_share(s.key) < holdout) != context.train]
    if not samples:
        raise plugin.UserError(
            f"{where}: {len(shards.samples)} pictures at {path!r}, none of them in the "
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
    )


def _check_pairs(shards: _tar.Shards) -> None:
    """UserError for a picture without a caption, or the other way round."""
    for sample in shards.samples:
        for kind, endings in (("picture", PICTURES), ("caption", CAPTIONS)):
            if not any(ending in sample.members for ending in endings):
                raise plugin.UserError(
                    f"{shards.where(sample)}: no {kind}, it has {sorted(sample.members)}; "
                    f"expected one of {endings} beside it in the same tar"
                )


def texts(
    *,
    path: str | Sequence[str],
    captions: Sequence[str] = ("caption", "text"),
    holdout: float = 0.1,
) -> list[str]:
    """The training captions, what a text tokenizer may be trained on; arguments as in `make`."""
    context = types.SourceContext(name="texts", stream="", image_sizes={"primary": (1, 1)})
    return make(context, path=path, captions=captions, holdout=holdout).texts()


def _fields(record, names: Sequence[str]) -> list[str]:
    """The strings in the named fields of a JSON object, in the order of the names."""
    if not isinstance(record, dict):
        return []
    values = [record.get(name) for name in names]
    listed = [value if isinstance(value, list) else [value] for value in values]
    return [text for texts in listed for text in texts if isinstance(text, str)]


def _share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, whatever else is in the shards."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _decode(data: bytes, where: str) -> np.ndarray:
    """uint8 [height, width, 3]; transparency laid on white, turned as its EXIF says."""
    try:
        if data[:2] == b"\xff\xd8" and b"Exif" not in data[:4096]:
            return images.decode(data)
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if not image.has_transparency_data:
            return np.asarray(image.convert("RGB"))
        rgba = np.asarray(image.convert("RGBA"))
    except (ValueError, OSError, SyntaxError) as error:
        raise plugin.UserError(
            f"{where}: {len(data)} bytes that are no readable image ({error}); repack the tar"
        ) from error
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)

"""Questions and answers about pictures from LLaVA-style JSON, and a folder of pictures.

    [{"id": "1",                                     (or one record per line, .jsonl)
      "image": "coco/000000033471.jpg",              below `images`
      "conversations": [
        {"from": "human", "value": "<image>\\nWhat is on the table?"},
        {"from": "gpt",   "value": "A cat."},        a sample: this question, this answer
        {"from": "human", "value": "Where is it?"},
        {"from": "gpt",   "value": "[0.31, 0.40, 0.52, 0.66]"}]}, …]

(LLaVA, docs/Finetune_Custom_Data.md.) The question is the task's `language`, the answer the target
`text`. With `unit`, boxes and points mean places of the picture: in both texts they are rewritten
as fractions of the part that is shown, and the target `point` is the middle of what is shown of a
place: the one in the record's field `place`, or one of those that an answer consists of. A place
that a crop has cut off masks its targets.

All places of a sample are regions, up to K = `regions` of them: `region_point`, and, where one is
called by a name of the stream's table, `region_name`. A place in an answer is called what stands
right before it ("a cat [0.31, 0.40, 0.52, 0.66] and a dog [0.10, 0.22, 0.30, 0.35]"), the only one
in a question what the answer is, one in a field what the field `names` says.

Records stay in their file, and are read by byte range: in memory are places and numbers of turns.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vla_jax import plugin, types
from vla_jax.data.sources import _files, _picture_row, _places, _regions, _sidecar, _tar

DEBUG = {}

KIND = "llava 1"
HUMAN, MODEL = ("human", "user"), ("gpt", "assistant", "model")
TAG = "<image>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(_picture_row.Reading):
    """How records become samples; see also _picture_row.Reading.

    All that is asked about a picture is held out with it.

    Attributes:
      history: how many earlier turns of the conversation stand before the question.
      unit: what numbers in brackets mean, one of _places.UNITS; None: they are text, and a crop
        would falsify them.
      place: a field of the record that holds a box or point, or a list of them ("objects.box": the
        `box` of each entry of the list `objects`); None: they stand in questions and answers.
      names: a field with the name of each of them, in the same way.
      box: "corners" (left, top, right, bottom) or "size" (left, top, width, height).
      text_only: "error" or "leave_out", for records without a picture.
    """

    history: int = 0
    unit: str | None = None
    place: str | None = None
    names: str | None = None
    box: str = "corners"
    text_only: str = "error"

    def check(self, where: str) -> None:
        """UserError, beginning with `where`, for a value out of range."""
        super().check(where)
        self.one_of(where, "unit", ("None", *_places.UNITS))
        self.one_of(where, "box", _places.FORMS)
        self.one_of(where, "text_only", ("error", "leave_out"))
        if self.place is not None and self.unit is None:
            raise plugin.UserError(
                f"{where}: place={self.place!r} needs unit, what its numbers mean"
            )
        if self.names is not None and self.place is None:
            raise plugin.UserError(f"{where}: names={self.names!r} needs place, what they are of")


class Llava:
    """An IndexedSource of questions about pictures; `make` says what it is made of."""

    def __init__(self, context, files, samples, images: str, reading: Reading, left_out: int):
        self.context, self._files, self._samples, self._images = context, files, samples, images
        self._reading, self._left_out = reading, left_out
        self.skips = reading.bad_samples == "skip"  # see Mixture.sample
        self._size = _picture_row.image_size(context, reading.view)
        # Unknown names raise here.
        _picture_row.blank_targets(context, reading.targets, reading.regions)
        self._rows = {_places.name(name): row for row, name in enumerate(context.names)}
        if reading.names is not None and "region_name" in reading.targets and not self._rows:
            raise plugin.UserError(
                f"{context.name}: names={reading.names!r} and the target region_name, but no head "
                f"of stream {context.stream!r} has a table of names; add one (region_text)"
            )
        tokenizer = getattr(context.text_tokenizer, "fingerprint", None)
        said = (self._size, reading.described(), context.train, context.max_tokens, context.window)
        digest = hashlib.sha256(repr((*said, context.resize, tokenizer, images)).encode())
        digest.update(np.ascontiguousarray(samples))
        if "region_name" in reading.targets:
            digest.update(repr(context.names).encode())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._samples)

    def summary(self) -> dict:
        """Counts for the mixture's table: records without a picture that were left out."""
        return {"left_out": self._left_out} if self._left_out else {}

    def sample(self, index: int, rng: np.random.Generator) -> dict:
        """Row `index` of the vl stream; `rng` chooses the crop.

        Raises UserError for a picture that is not there or does not decode, numbers that are no
        places of it, a text longer than max_tokens (unless `cut`), and a context without a text
        tokenizer.
        """
        if self.context.text_tokenizer is None:
            raise plugin.UserError(
                f"{self.context.name}: questions need a text tokenizer and the config names none; "
                "make one with `vla data text-tokenizer` and set text_tokenizer"
            )
        how = self._reading
        said, answer, record, where = self.turn(index)
        image = self._picture(record, where)
        train = rng if self.context.train else None
        shown = _picture_row.part(image.shape, self._size, how.crop, train)
        targets, masks = _picture_row.blank_targets(self.context, how.targets, how.regions)
        asked, told, place = said, answer, None
        if how.unit:
            move = (how.unit, how.box, image.shape, shown)
            try:
                asked, told = (_places.rewritten(text, *move) for text in (said, answer))
                place = self._place(record, answer, rng, *move)
                regions = _regions.shown(self._called(record, said, answer), *move)
            except ValueError as error:
                raise plugin.UserError(f"{where}: {error}") from error
            _regions.label(regions, self._rows, targets, masks, rng)
        language, text = _picture_row.encoded(
            self.context.text_tokenizer,
            where,
            said if asked is None else asked,
            told if "text" in targets else None,
            self.context.max_tokens,
            how.cut,
        )
        if asked is not None:  # the question speaks of what is shown
            if text is not None:
                targets["text"], masks["text"] = text
            if place is not None and "point" in targets:
                targets["point"][-1], masks["point"][-1] = place.reshape(-1, 2).mean(axis=0), True
        image = _picture_row.cut(image, shown, self._size, self.context.resize)
        return _picture_row.row(self.context, how.view, image, language, targets, masks)

    def turn(self, index: int) -> tuple[str, str, dict, str]:
        """(what is asked, the answer, the record, what to call it in an error)."""
        file, offset, length, number, turn, _ = (int(v) for v in self._samples[index].tolist())
        record = json.loads(self._files[file].read(offset, length))
        where = f"{self._files[file].path}: record {number} ({record.get('id')})"
        texts = [_plain(entry["value"]) for entry in record["conversations"]]
        begin = max(0, turn - 2 * self._reading.history)
        return " ".join(texts[begin : turn + 1]), texts[turn + 1], record, where

    def texts(self) -> list[str]:
        """Every question and answer, what a text tokenizer may be trained on."""
        return [text for i in range(len(self)) for text in self.turn(i)[:2]]

    def _place(self, record: Mapping, answer: str, rng, *move) -> np.ndarray | None:
        """The place in the record's field, or one of the answer's; None: none, or cut off."""
        if self._reading.place is None:
            choices = _places.found(answer) if _places.alone(answer) else ()
            if not choices:
                return None
            numbers = choices[int(rng.integers(len(choices)))]
        else:
            numbers, *more = _regions.given(record, self._reading.place)
            if more:
                return None  # which of them is not said
        return _places.seen(_places.fractions(numbers, *move[:-1]), *move[-2:])

    def _called(self, record: Mapping, said: str, answer: str) -> list[_regions.Called]:
        how = self._reading
        if how.place is None:
            return _regions.of_texts(said, answer)
        return _regions.of_fields(record, how.place, how.names)

    def _picture(self, record: Mapping, where: str) -> np.ndarray:
        path = _files.join(self._images, _image(record))
        try:
            data = _files.read(path)
        except plugin.UserError as error:
            raise plugin.UserError(f"{where}: field 'image': {error}") from error
        return _picture_row.decoded(data, f"{where}: field 'image': {path}")


def make(context, *, path: str | Sequence[str], images: str, **reading: Reading) -> Llava:
    """A source of questions and answers for the vl stream.

    Args:
      context: SourceContext; with `train` False the held-out pictures, without augmentation.
      path: a .json or .jsonl file, or several; local or by URL.
      images: the folder that the records' `image` is below.
      reading: view, targets, unit, holdout, …: see Reading.

    Raises:
      UserError: no such file, a record that is no JSON or lacks a field (file, record and field
        named), no sample left, or an argument out of range.
    """
    made = Reading.make(context.name, reading)
    files, rows, shares, left_out = [], [], [], 0
    for number, name in enumerate([path] if isinstance(path, str) else path):
        file, found = _sidecar.indexed(name, KIND, _scan, made.index_dir)
        files.append(file)
        bare = found["picture"] == 0
        records = np.unique(found["turns"][bare][:, 2])
        if len(records) and made.text_only == "error":
            raise plugin.UserError(
                f"{file.path}: record {records[0]}: no field 'image', as in {len(records)} "
                "records; text_only='leave_out' leaves them out"
            )
        left_out += len(records)
        turns = found["turns"][~bare]
        rows.append(np.concatenate([np.full((len(turns), 1), number), turns], axis=1))
        shares.append(found["share"][~bare])
    share = np.concatenate(shares)
    inside = _picture_row.part_of(context, path, share, made.holdout, "questions")
    samples = np.concatenate(rows)[inside]
    return Llava(context, files, samples, _files.normal(images), made, left_out)


def texts(
    *,
    path: str | Sequence[str],
    holdout: float = 0.1,
    text_only: str = "error",
    index_dir: str | None = None,
) -> list[str]:
    """The training questions and answers, what a text tokenizer may be trained on."""
    context = types.SourceContext(name="texts", stream="", image_sizes={"primary": (1, 1)})
    how = dict(holdout=holdout, text_only=text_only, index_dir=index_dir)
    return make(context, path=path, images=".", **how).texts()


def index(path: str, *, index_dir: str | None = None, workers: int | None = None) -> dict:
    """Makes the index of a file of records; see _sidecar.build, whose answer it is."""
    return _sidecar.build([path], KIND, _scan, index_dir, workers)


def _scan(file: _files.File) -> Mapping[str, np.ndarray]:
    """Of every turn: [offset, length, number of its record, turn, digest], picture?, share."""
    turns, picture, shares = [], [], []
    for number, (offset, raw) in enumerate(_records(file)):
        record = _checked(file.path, number, raw)
        name = _image(record)
        key = (name or str(record.get("id", number))).encode()
        # Of the record, so that a fingerprint changes with it.
        digest = int.from_bytes(hashlib.sha256(raw).digest()[:7], "big")
        for turn in range(0, len(record["conversations"]), 2):
            turns.append((offset, len(raw), number, turn, digest))
            picture.append(name is not None)
            shares.append(_tar.share(key))
    if not turns:
        raise plugin.UserError(f"{file.path}: no records; expected a list of them, or one per line")
    return {
        "turns": np.asarray(turns, np.int64),
        "picture": np.asarray(picture, np.int8),
        "share": np.asarray(shares, np.float64),
    }


def _records(file: _files.File) -> Iterator[tuple[int, bytes]]:
    """(byte offset, bytes) of every record of a JSON list, or of a file of lines."""
    data = file.read(0, file.stamp.size)
    begin = len(data) - len(data.lstrip(b"\xef\xbb\xbf \t\r\n"))
    if data[begin : begin + 1] != b"[":
        offset = 0
        for line in data.splitlines(keepends=True):
            if line.strip():
                yield offset, line.strip()
            offset += len(line)
        return
    decoder, at = json.JSONDecoder(), begin + 1
    text = data.decode("utf-8", errors="surrogateescape")
    # Characters are bytes where all is ASCII, as json.dump writes it; else they are counted.
    ascii_only, place = text.isascii(), len(data[:at].decode("utf-8", errors="surrogateescape"))
    while True:
        while text[place : place + 1] in (" ", "\t", "\r", "\n", ","):
            place, at = place + 1, at + 1
        if text[place : place + 1] == "]":
            return
        try:
            _, end = decoder.raw_decode(text, place)
        except ValueError as error:
            raise plugin.UserError(
                f"{file.path}: no whole JSON list, byte {at}: {error}; copy or repair the file"
            ) from error
        length = (
            end - place if ascii_only else len(text[place:end].encode("utf-8", "surrogateescape"))
        )
        yield at, data[at : at + length]
        place, at = end, at + length


def _checked(path: str, number: int, raw: bytes) -> dict:
    """A record whose fields are as the module's drawing says; UserError names what is not."""
    where = f"{path}: record {number}"
    try:
        record = json.loads(raw)
    except ValueError as error:
        raise plugin.UserError(f"{where}: no UTF-8 JSON ({error}); repair this line") from error
    if not isinstance(record, dict):
        raise plugin.UserError(f"{where}: got {raw[:60]!r}, expected a table with conversations")
    where += f" ({record.get('id')})"
    image = record.get("image")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is not None and (not isinstance(image, str) or not image):
        raise plugin.UserError(
            f"{where}: field 'image': got {record['image']!r}, expected one picture's path"
        )
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        raise plugin.UserError(
            f"{where}: field 'conversations': got {str(turns)[:60]!r}, expected questions and "
            "answers by turns"
        )
    for i, turn in enumerate(turns):
        speakers = MODEL if i % 2 else HUMAN
        said = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(said, str) or not _plain(said) or turn.get("from") not in speakers:
            raise plugin.UserError(
                f"{where}: field 'conversations', turn {i}: got {str(turn)[:80]}, expected "
                f"{{'from': {speakers[0]!r}, 'value': some text}}"
            )
    return record


def _image(record: Mapping) -> str | None:
    image = record.get("image")
    return image[0] if isinstance(image, list) else image


def _plain(text: str) -> str:
    return " ".join(text.replace(TAG, " ").split())

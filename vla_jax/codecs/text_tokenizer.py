"""Words in and out: a unigram model of text pieces, kept in the checkpoint. Three kinds of bytes:

    ours                    SentencePiece trained on the corpus: pad 0, unknown 1, BOS 2, EOS 3
    T5's `spiece.model`     SentencePiece: pad 0, EOS 1, unknown 2, no BOS
    T5's `tokenizer.json`   the same as a fast tokenizer of Hugging Face's (package `tokenizers`)

Which kind they are is read off the bytes: JSON begins with a brace, as no SentencePiece model does,
and a model without BOS is T5's. A text of T5's ends with EOS, also where it is cut to fit.

In ours, pieces never cross a space, so the pieces of an instruction are those of its words one
after another: the pieces of "point to the" begin those of "point to the cat" (what pooling through
templates relies on). Text is folded to lower case and NFKC before it is cut.

No jax, no TensorFlow. Method: Kudo 2018 (unigram language model), github.com/google/sentencepiece.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable

import numpy as np
import sentencepiece

from vla_jax import plugin, storage

PAD, UNKNOWN, BOS, EOS = 0, 1, 2, 3  # of ours
T5_FILES = ("tokenizer.json", "spiece.model")  # in a folder, the first that is there
_TOO_LARGE = re.compile(r"Please set it to a value <= (\d+)")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


class TextTokenizer:
    """Text to piece ids and back; equal, hashed and pickled by the model's bytes.

    `ends_texts` is True for T5's: EOS stands after every padded text, and padding begins one that
    is to be said (`bos_id` is `pad_id`). Raises UserError for bytes that are no such model.

    Args:
      model: `.bytes` of another one, or a file read: SentencePiece model or `tokenizer.json`.
      where: what to call it in an error.
    """

    def __init__(self, model: bytes, where: str = "text tokenizer"):
        self.bytes = bytes(model)
        self.fingerprint = hashlib.sha256(self.bytes).hexdigest()[:16]
        read = _Fast if self.bytes.lstrip()[:1] == b"{" else _SentencePiece
        self._model = read(self.bytes, where)
        self.vocabulary_size = self._model.size
        self.pad_id, self.bos_id, self.eos_id = self._model.pad_bos_eos
        if min(self.pad_id, self.eos_id) < 0:
            raise plugin.UserError(
                f"{where}: the ids of pad and EOS are {self.pad_id} and {self.eos_id} (-1 = "
                "absent), both are needed; retrain it with `vla data text-tokenizer`"
            )
        self.ends_texts = self.bos_id < 0
        if self.ends_texts:
            self.bos_id = self.pad_id

    @classmethod
    def load(cls, model: storage.Path | bytes, pieces: int | None = None) -> TextTokenizer:
        """The tokenizer in a file, in a T5's folder, or in bytes; UserError if there is none.

        UserError too if it has not as many `pieces` as a config says.
        """
        if isinstance(model, bytes):
            return cls(model)
        path = storage.normal(model)
        if storage.is_dir(path):
            there = [storage.join(path, n) for n in T5_FILES if n in storage.names(path)]
            if not there:
                raise plugin.UserError(f"text tokenizer: {path} holds neither of {T5_FILES}")
            path = there[0]
        if not storage.is_file(path):
            raise plugin.UserError(
                f"text tokenizer: no file {path}; make one with `vla data text-tokenizer`, or give "
                "the spiece.model or tokenizer.json of a T5"
            )
        found = cls(storage.read(path), where=path)
        if pieces not in (None, found.vocabulary_size):
            raise plugin.UserError(
                f"config.text_pieces: got {pieces}, but {path} has {found.vocabulary_size}; give "
                f"the file that is meant, or --config.text_pieces={found.vocabulary_size}"
            )
        return found

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocabulary_size: int | None = None,
        *,
        character_coverage: float = 1.0,
        byte_fallback: bool = False,
    ) -> TextTokenizer:
        """A unigram model of `texts`, byte for byte the same for the same texts in the same order.

        Args:
          texts: lines; a text that occurs more often weighs more.
          vocabulary_size: V, with the four special ids; None: as many pieces as the texts support.
          character_coverage: share of the characters that get a piece of their own.
          byte_fallback: spell unknown characters as bytes (256 pieces) instead of the unknown id.

        Raises:
          UserError: no text, or a V that the texts cannot fill (the largest possible is named).
        """
        texts = [line for text in texts if (line := " ".join(text.split()))]
        if not texts:
            raise plugin.UserError("text tokenizer: no text to train on")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type="unigram",
                # Without a size: ask for more than there can be and take what there is.
                vocab_size=vocabulary_size or 1 << 20,
                hard_vocab_limit=vocabulary_size is not None,
                normalization_rule_name="nmt_nfkc_cf",
                character_coverage=character_coverage,
                byte_fallback=byte_fallback,
                pad_id=PAD,
                unk_id=UNKNOWN,
                bos_id=BOS,
                eos_id=EOS,
                num_threads=1,
                shuffle_input_sentence=False,
                input_sentence_size=0,
                max_sentence_length=1 << 16,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _training_error(error, vocabulary_size, len(texts)) from None
        return cls(model.getvalue())

    def save(self, path: storage.Path) -> None:
        """Writes the model file that `load` reads."""
        storage.write(path, self.bytes)

    def encode(self, text: str) -> list[int]:
        """Piece ids of `text`, without BOS and EOS; an empty text has none."""
        return self._model.encode(text)

    def encode_padded(
        self, text: str, max_tokens: int, *, ends: bool = False, cut: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [T], mask bool [T]) of `text`, padded to T = `max_tokens` on the right.

        T5's are what its own tokenizers give with padding="max_length" (and truncation, if `cut`).

        Args:
          text: what to encode.
          max_tokens: T.
          ends: put BOS before and EOS after it (targets of next-token prediction).
          cut: keep the first T ids of a longer text instead of raising; its EOS falls off too, or
            with T5's takes the last place.

        Raises:
          UserError: the text has more than T pieces and `cut` is False.
        """
        pieces = self.encode(text)
        if ends:
            pieces = [self.bos_id, *pieces]
        if ends or self.ends_texts:
            pieces.append(self.eos_id)
        if len(pieces) > max_tokens:
            if not cut:
                added = " with BOS and EOS" if ends else " with EOS" if self.ends_texts else ""
                raise plugin.UserError(
                    f"text tokenizer: {text!r} has {len(pieces)} pieces{added}, max_tokens is "
                    f"{max_tokens}; raise the stream's max_tokens or shorten the text"
                )
            last = [self.eos_id] if self.ends_texts else []
            pieces = pieces[: max_tokens - len(last)] + last
        ids = np.full(max_tokens, self.pad_id, np.int32)
        ids[: len(pieces)] = pieces
        return ids, np.arange(max_tokens) < len(pieces)

    def instruction(self, text: str, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [T], mask bool [T]) of an instruction, for data and policies alike.

        T5's are cut to fit, as Octo cuts them; ours are refused (UserError) where they are too
        long. An empty one is none: see `no_text`.
        """
        text = text.strip()
        if not text:
            return self.no_text(max_tokens)
        return self.encode_padded(text, max_tokens, cut=self.ends_texts)

    def no_text(self, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [T], mask bool [T]) of no instruction: an empty text's ids, and nothing real.

        T5's still hold EOS, which is what Octo's encoder reads there.
        """
        ids, mask = self.encode_padded("", max_tokens)
        return ids, np.zeros_like(mask)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of piece ids (padding, BOS and EOS say nothing); ours has lost its case."""
        special = (self.pad_id, self.bos_id, self.eos_id)
        return self._model.decode([int(i) for i in ids if int(i) not in special])

    def pieces(self, text: str) -> list[str]:
        """How `text` is cut, to look at ("▁" begins a word)."""
        return self._model.pieces(text)

    def __eq__(self, other) -> bool:
        return isinstance(other, TextTokenizer) and self.bytes == other.bytes

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self):
        return TextTokenizer, (self.bytes,)

    def __repr__(self) -> str:
        return f"TextTokenizer({self.vocabulary_size} pieces, {self.fingerprint})"


class _SentencePiece:
    """A serialized SentencePiece model."""

    def __init__(self, model: bytes, where: str):
        processor = sentencepiece.SentencePieceProcessor()
        try:
            if not model:
                raise RuntimeError("it is empty")
            processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise plugin.UserError(
                f"{where}: {len(model)} bytes that are no SentencePiece model ({error}) and no "
                "tokenizer.json; make one with `vla data text-tokenizer`"
            ) from None
        self.size = processor.GetPieceSize()
        self.pad_bos_eos = processor.pad_id(), processor.bos_id(), processor.eos_id()
        self.encode, self.decode = processor.EncodeAsIds, processor.DecodeIds
        self.pieces = processor.EncodeAsPieces


class _Fast:
    """A `tokenizer.json` of a T5."""

    def __init__(self, model: bytes, where: str):
        import tokenizers  # only here: most processes never meet such a file

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(model)
        except Exception as error:  # the package raises plain Exceptions
            raise plugin.UserError(
                f"{where}: {len(model)} bytes of JSON that are no tokenizer.json ({error}); copy "
                "the file again"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = self._tokenizer.get_vocab_size()
        pad, eos = (self._tokenizer.token_to_id(piece) for piece in ("<pad>", "</s>"))
        kind = type(self._tokenizer.model).__name__
        if kind != "Unigram" or pad is None or self._tokenizer.encode("").ids != [eos]:
            raise plugin.UserError(
                f"{where}: a tokenizer.json of kind {kind} that turns the empty text into "
                f"{self._tokenizer.encode('').tokens}; expected a T5's: kind Unigram, with <pad>, "
                "and </s> after every text"
            )
        self.pad_bos_eos = pad, -1, eos

    def encode(self, text: str) -> list[int]:
        """Piece ids without EOS."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of piece ids."""
        return self._tokenizer.decode(ids)

    def pieces(self, text: str) -> list[str]:
        """How the text is cut."""
        return self._tokenizer.encode(text, add_special_tokens=False).tokens


def _training_error(error: RuntimeError, vocabulary_size, lines: int) -> plugin.UserError:
    where = f"text tokenizer: vocabulary_size={vocabulary_size} over {lines} texts"
    if largest := _TOO_LARGE.search(str(error)):
        return plugin.UserError(f"{where}: too large; the largest possible is {largest[1]}")
    if smallest := _TOO_SMALL.search(str(error)):
        return plugin.UserError(
            f"{where}: too small, the texts alone have {smallest[1]} characters and special ids; "
            f"give more than {smallest[1]}"
        )
    return plugin.UserError(f"{where}: SentencePiece says {error}")

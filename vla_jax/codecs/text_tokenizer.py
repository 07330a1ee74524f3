"""Words in and out: a SentencePiece unigram model, trained on the corpus, kept in the checkpoint.

Pieces never cross a space, so the pieces of an instruction are those of its words one after
another: the pieces of "point to the" begin those of "point to the cat" (what pooling through
templates relies on). Text is folded to lower case and NFKC before it is cut.

Ids: 0 padding, 1 unknown, 2 BOS, 3 EOS, then pieces. No jax, no TensorFlow.

Method: Kudo 2018 (unigram language model), github.com/google/sentencepiece.
"""

from __future__ import annotations

import hashlib
import io
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import sentencepiece

from vla_jax import plugin

PAD, UNKNOWN, BOS, EOS = 0, 1, 2, 3
_TOO_LARGE = re.compile(r"Please set it to a value <= (\d+)")
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


class TextTokenizer:
    """Text to piece ids and back; equal, hashed and pickled by the model's bytes.

    Args:
      model: the serialized SentencePiece model: `.bytes` of another one, or a `.model` file read.
      where: what to call it in an error.
    """

    def __init__(self, model: bytes, where: str = "text tokenizer"):
        self.bytes = bytes(model)
        self.fingerprint = hashlib.sha256(self.bytes).hexdigest()[:16]
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            if not self.bytes:
                raise RuntimeError("it is empty")
            self._processor.LoadFromSerializedProto(self.bytes)
        except RuntimeError as error:
            raise plugin.UserError(
                f"{where}: {len(self.bytes)} bytes that are no SentencePiece model ({error}); "
                "make one with `vla data text-tokenizer`"
            ) from None
        self.vocabulary_size = self._processor.GetPieceSize()
        self.pad_id = self._processor.pad_id()
        self.bos_id = self._processor.bos_id()
        self.eos_id = self._processor.eos_id()
        if min(self.pad_id, self.bos_id, self.eos_id) < 0:
            raise plugin.UserError(
                f"{where}: pad, BOS, EOS ids are {self.pad_id}, {self.bos_id}, {self.eos_id} "
                "(-1 = absent), all three are needed; retrain it with `vla data text-tokenizer`"
            )

    @classmethod
    def load(cls, model: str | pathlib.Path | bytes) -> TextTokenizer:
        """The tokenizer in a `.model` file or its bytes; UserError if it is missing or no model."""
        if isinstance(model, bytes):
            return cls(model)
        path = pathlib.Path(model)
        if not path.is_file():
            raise plugin.UserError(
                f"text tokenizer: no file {path}; make one with `vla data text-tokenizer`"
            )
        return cls(path.read_bytes(), where=str(path))

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

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the model file that `load` reads."""
        pathlib.Path(path).write_bytes(self.bytes)

    def encode(self, text: str) -> list[int]:
        """Piece ids of `text`, without BOS and EOS; an empty text has none."""
        return self._processor.EncodeAsIds(text)

    def encode_padded(
        self, text: str, max_tokens: int, *, ends: bool = False, cut: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [T], mask bool [T]) of `text`, padded to T = `max_tokens`.

        Args:
          text: what to encode.
          max_tokens: T.
          ends: put BOS before and EOS after it (targets of next-token prediction).
          cut: keep the first T ids of a longer text (its EOS falls off too) instead of raising.

        Raises:
          UserError: the text has more than T pieces and `cut` is False.
        """
        pieces = self.encode(text)
        if ends:
            pieces = [self.bos_id, *pieces, self.eos_id]
        if len(pieces) > max_tokens and not cut:
            raise plugin.UserError(
                f"text tokenizer: {text!r} has {len(pieces)} pieces"
                f"{' with BOS and EOS' if ends else ''}, max_tokens is {max_tokens}; "
                "raise the stream's max_tokens or shorten the text"
            )
        pieces = pieces[:max_tokens]
        ids = np.full(max_tokens, self.pad_id, np.int32)
        ids[: len(pieces)] = pieces
        return ids, np.arange(max_tokens) < len(pieces)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of piece ids (padding, BOS and EOS say nothing); case is lost."""
        special = (self.pad_id, self.bos_id, self.eos_id)
        return self._processor.DecodeIds([int(i) for i in ids if int(i) not in special])

    def pieces(self, text: str) -> list[str]:
        """How `text` is cut, to look at ("▁" begins a word)."""
        return self._processor.EncodeAsPieces(text)

    def __eq__(self, other) -> bool:
        return isinstance(other, TextTokenizer) and self.bytes == other.bytes

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self):
        return TextTokenizer, (self.bytes,)

    def __repr__(self) -> str:
        return f"TextTokenizer({self.vocabulary_size} pieces, {self.fingerprint})"


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

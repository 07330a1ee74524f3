import pickle

import numpy as np
import pytest

from vla_jax import plugin
from vla_jax.codecs import text_tokenizer

WORDS = "apple pineapple banana cat caterpillar dog hot bulldog fish goldfish snake star starfish"
TEXTS = [f"{ask} the {word}" for word in WORDS.split() for ask in ("touch", "point to")]


@pytest.fixture(scope="module")
def tokenizer():
    return text_tokenizer.TextTokenizer.train(TEXTS, 36)


def test_training_is_deterministic(tokenizer):
    again = text_tokenizer.TextTokenizer.train(TEXTS, 36)
    assert again.bytes == tokenizer.bytes
    assert again == tokenizer and hash(again) == hash(tokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    assert text_tokenizer.TextTokenizer.train(TEXTS, 34) != tokenizer


def test_case_is_folded_and_text_comes_back(tokenizer):
    assert tokenizer.vocabulary_size == 36
    assert tokenizer.encode("Touch the PINEAPPLE") == tokenizer.encode("touch the pineapple")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        ids, _ = tokenizer.encode_padded(text, 24, ends=True)
        assert tokenizer.decode(ids) == text


def test_a_template_begins_its_instructions(tokenizer):
    prefix = tokenizer.encode("point to the")
    for word in WORDS.split():
        assert tokenizer.encode(f"point to the {word}") == prefix + tokenizer.encode(word)


def test_padding_and_ends(tokenizer):
    ids, mask = tokenizer.encode_padded("touch the cat", 12)
    pieces = tokenizer.encode("touch the cat")
    assert ids.dtype == np.int32 and mask.dtype == np.bool_ and ids.shape == mask.shape == (12,)
    assert ids[mask].tolist() == pieces
    assert (ids[~mask] == tokenizer.pad_id).all()
    ids, mask = tokenizer.encode_padded("touch the cat", 12, ends=True)
    assert ids[mask].tolist() == [tokenizer.bos_id, *pieces, tokenizer.eos_id]
    assert not tokenizer.encode_padded("", 4)[1].any()


def test_a_text_that_does_not_fit_is_an_error(tokenizer):
    size = len(tokenizer.encode("touch the pineapple"))
    tokenizer.encode_padded("touch the pineapple", size)
    with pytest.raises(plugin.UserError, match=rf"pineapple' has {size} pieces.*max_tokens is"):
        tokenizer.encode_padded("touch the pineapple", size - 1)
    ids, mask = tokenizer.encode_padded("touch the pineapple", 3, cut=True, ends=True)
    assert mask.all() and ids[0] == tokenizer.bos_id and tokenizer.eos_id not in ids


def test_a_vocabulary_the_texts_cannot_fill_names_the_largest():
    largest = text_tokenizer.TextTokenizer.train(TEXTS).vocabulary_size
    with pytest.raises(plugin.UserError, match=f"largest possible is {largest}$"):
        text_tokenizer.TextTokenizer.train(TEXTS, largest + 1)
    assert text_tokenizer.TextTokenizer.train(TEXTS, largest).vocabulary_size == largest
    with pytest.raises(plugin.UserError, match="too small"):
        text_tokenizer.TextTokenizer.train(TEXTS, 8)
    with pytest.raises(plugin.UserError, match="no text"):
        text_tokenizer.TextTokenizer.train([" ", ""])


def test_bytes_files_and_pickles(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "text.model")
    for other in (
        text_tokenizer.TextTokenizer.load(tmp_path / "text.model"),
        text_tokenizer.TextTokenizer.load(str(tmp_path / "text.model")),
        text_tokenizer.TextTokenizer.load(tokenizer.bytes),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert other == tokenizer
        assert other.encode("touch the cat") == tokenizer.encode("touch the cat")


def test_no_model_is_an_error(tmp_path):
    with pytest.raises(plugin.UserError, match="no file .*absent.model"):
        text_tokenizer.TextTokenizer.load(tmp_path / "absent.model")
    (tmp_path / "broken.model").write_bytes(b"broken")
    with pytest.raises(plugin.UserError, match="broken.model: 6 bytes that are no SentencePiece"):
        text_tokenizer.TextTokenizer.load(tmp_path / "broken.model")

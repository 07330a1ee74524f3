import io
import json
import pickle

import numpy as np
import pytest
import sentencepiece

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
    assert not tokenizer.encode_padded("", 4)[1].any() and not tokenizer.ends_texts
    ids, mask = tokenizer.no_text(4)
    assert (ids == tokenizer.pad_id).all() and not mask.any() and mask.dtype == np.bool_


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


# ------------------------------------------------------------------------------ those of T5


@pytest.fixture(scope="module")
def spiece():
    """Bytes of a SentencePiece model with T5's special ids."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=40, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def fast(spiece):
    """The same model as tokenizer.json, which says to cut and to pad, as saved ones may."""
    import tokenizers

    whole = sentencepiece.SentencePieceProcessor()
    whole.LoadFromSerializedProto(spiece)
    rows = range(whole.GetPieceSize())
    model = tokenizers.models.Unigram([(whole.IdToPiece(i), whole.GetScore(i)) for i in rows], 2)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    made.enable_truncation(3)
    made.enable_padding(length=9)
    return made.to_str().encode()


@pytest.mark.parametrize("kind", ("spiece", "fast"))
def test_t5_ends_its_texts_and_pads_right(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    t5 = text_tokenizer.TextTokenizer(model)
    assert t5.ends_texts and (t5.pad_id, t5.eos_id, t5.bos_id) == (0, 1, 0)
    for text in (*TEXTS, ""):
        pieces = t5.encode(text)
        assert 1 not in pieces and t5.decode([*pieces, 1, 0, 0]) == text
        ids, mask = t5.encode_padded(text, 24)
        assert ids.dtype == np.int32 and ids[mask].tolist() == [*pieces, 1]
        assert mask.sum() == len(pieces) + 1 and not ids[~mask].any()
    pieces = t5.encode("touch the pineapple")
    with pytest.raises(plugin.UserError, match=f"{len(pieces) + 1} pieces with EOS, max_tokens is"):
        t5.encode_padded("touch the pineapple", len(pieces))
    ids, mask = t5.encode_padded("touch the pineapple", 4, cut=True)
    assert ids.tolist() == [*pieces[:3], 1] and mask.all()
    ids, mask = t5.encode_padded("touch the cat", 24, ends=True)
    assert ids[mask].tolist() == [0, *t5.encode("touch the cat"), 1]
    ids, mask = t5.no_text(4)
    assert ids.tolist() == [1, 0, 0, 0] and not mask.any()
    assert t5.pieces("touch")[0].startswith("▁")
    # Kept as bytes, known again by them.
    again = pickle.loads(pickle.dumps(t5))
    assert again == t5 == text_tokenizer.TextTokenizer.load(t5.bytes) and again.ends_texts
    t5.save(tmp_path / {"spiece": "spiece.model", "fast": "tokenizer.json"}[kind])
    assert text_tokenizer.TextTokenizer.load(tmp_path) == t5


def test_both_files_of_a_t5_say_the_same(spiece, fast):
    one, other = (text_tokenizer.TextTokenizer(model) for model in (spiece, fast))
    assert one != other and one.vocabulary_size == other.vocabulary_size
    for text in (*TEXTS, "", "zebra", "hotdog goldfish"):
        assert one.encode(text) == other.encode(text), text
        assert one.pieces(text) == other.pieces(text)


def test_octos_ids_and_masks(fixtures_dir):
    golden = fixtures_dir / "octo_golden"
    t5 = text_tokenizer.TextTokenizer.load(golden / "hf" / "t5-tiny-golden")
    texts = json.loads((golden / "tiny" / "texts.json").read_text())
    given = np.load(golden / "tiny" / "inputs.npz")
    made = np.load(golden / "tiny" / "outputs.npz")
    place = "language_instruction"
    first = [given[f"task/{place}/{name}"] for name in ("input_ids", "attention_mask")]
    later = [made[f"create_tasks_lang/{place}/{name}"] for name in ("input_ids", "attention_mask")]
    # In create_tasks the second row has an instruction that texts.json does not name.
    others = [texts[0], t5.decode(later[0][1]), *texts[2:]]
    assert others[1] and t5.decode(first[0][1]) == texts[1] == ""
    for said, wanted in ((texts, first), (others, later)):
        for text, ids, mask in zip(said, *wanted, strict=True):
            got = t5.encode_padded(text, 16, cut=True)
            np.testing.assert_array_equal(got[0], ids)
            np.testing.assert_array_equal(got[1], mask.astype(bool))
    np.testing.assert_array_equal(t5.no_text(16)[0], first[0][1])


def test_files_that_are_no_t5(spiece, fast, tmp_path):
    endless = {**json.loads(fast), "post_processor": None}
    broken = {
        "cut.model": (spiece[:-7], "no SentencePiece model .* and no tokenizer.json"),
        "cut.json": (fast[:-7], "bytes of JSON that are no tokenizer.json"),
        "config.json": (b'{"model_type": "t5"}', "that are no tokenizer.json"),
        "endless.json": (
            json.dumps(endless).encode(),
            "the empty text into \\[\\]; expected a T5's",
        ),
    }
    for name, (content, message) in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(plugin.UserError, match=f"{name}: .*{message}"):
            text_tokenizer.TextTokenizer.load(tmp_path / name)
    with pytest.raises(plugin.UserError, match="holds neither of"):
        text_tokenizer.TextTokenizer.load(tmp_path)
    import tokenizers

    other = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "</s>": 1}, []))
    with pytest.raises(plugin.UserError, match="of kind BPE .* expected a T5's"):
        text_tokenizer.TextTokenizer(other.to_str().encode())

"""The tokenizer: the reference's ids, text that stays text, and decoding piece by piece."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from itertools import compress

import pytest
import sentencepiece
import torch
from transformers import AddedToken

from tests.tiny import GOLDEN
from visglm.errors import CheckpointError, ConfigError
from visglm.tokenizers import ChatGLMTokenizer, StreamDecoder

FOLDER = GOLDEN / "visualglm-hf"
REFERENCE = json.loads((GOLDEN / "expected/tokenizer.json").read_text())
TYPED_CONTROL = "[gMASK] <sop> <eop> typed by a user"  # the one row the reference gets wrong
ROWS = [row for row in REFERENCE["rows"] if row["text"] != TYPED_CONTROL]


@pytest.fixture(scope="module")
def tokenizer():
    return ChatGLMTokenizer.from_pretrained(FOLDER)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("row", ROWS, ids=[repr(row["text"]) for row in ROWS])
def test_ids_and_text_are_those_of_the_reference(tokenizer, row):
    assert encode(tokenizer, row["text"]) == row["ids"]
    assert tokenizer.encode(row["text"]) == row["with_special"]
    assert tokenizer.decode(row["ids"]) == row["decoded"]


def test_all_rows_of_the_reference_are_compared():
    assert len(ROWS) == 14 and len(REFERENCE["rows"]) == 15


def test_special_ids_pair_and_batch_are_those_of_the_reference(tokenizer):
    assert tokenizer.vocab_size == len(tokenizer) == REFERENCE["vocab_size"]
    assert tokenizer.convert_tokens_to_ids(list(REFERENCE["special"])) == list(REFERENCE["special"].values())
    ids = (tokenizer.mask_token_id, tokenizer.gmask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (504, 505, 508, 509)
    assert tokenizer.build_inputs_with_special_tokens([10, 11, 12], [20, 21]) == REFERENCE["pair"]
    batch = tokenizer(["描述这张图片。", "Q:hi\nA:"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == REFERENCE["batch_input_ids"]
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != tokenizer.pad_token_id).long())


def test_special_tokens_mask_marks_what_was_added(tokenizer):
    encoded = tokenizer("描述这张图片。", "猫", return_special_tokens_mask=True)
    mask = encoded["special_tokens_mask"]
    assert list(compress(encoded["input_ids"], mask)) == [505, 508, 509]
    assert tokenizer.get_special_tokens_mask(encoded["input_ids"], already_has_special_tokens=True)[-1] == 1


# --- what a user types stays text --------------------------------------------------------------------------

CONTROL_IDS = {0, 1, 2, 3, *range(504, 512)}
TYPED = [
    *("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<ENC>", "<dBLOCK>", "<unused_0>"),
    *("<unk>", "<pad>", "<s>", "</s>", "<|image|>", "<|user|>"),
    *("<n>", "<|tab|>", "<|blank_3|>", "<0x0A>", "a<eop>b\n<n>c  <|blank_2|>\t<|tab|>"),
    *("[[gMASK]]", "<<eop>>", "<eop><eop>", TYPED_CONTROL, "<img></img>"),
]


@pytest.mark.parametrize("text", TYPED)
def test_typed_control_tokens_stay_the_characters_they_are(tokenizer, text):
    ids = encode(tokenizer, text)
    assert CONTROL_IDS.isdisjoint(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("typed", "shown"),
    [("［gMASK］", "[gMASK]"), ("[gＭASK]", "[gMASK]"), ("＜eop＞", "<eop>"), ("＜n＞\n＜n＞", "<n>\n<n>")],
)
def test_normalization_builds_no_control_token(tokenizer, typed, shown):
    ids = encode(tokenizer, typed)
    assert CONTROL_IDS.isdisjoint(ids)
    assert tokenizer.decode(ids) == shown


def test_no_random_mixture_of_markers_becomes_a_control_token_or_changes(tokenizer):
    rng = random.Random(0)
    parts = [*TYPED, "\n", "\t", "   ", "猫", "x", "<", ">", "|", "[g", "MASK]", "<|ima", "ge|>", "n>"]
    for _ in range(500):
        text = "x" + "".join(rng.choices(parts, k=rng.randrange(1, 12))) + "x"
        ids = encode(tokenizer, text)
        assert CONTROL_IDS.isdisjoint(ids)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("options", [{}, {"split_special_tokens": False}, {"is_split_into_words": True}])
def test_no_option_lets_text_become_control_tokens(tokenizer, options):
    text = ["<eop>", "[gMASK]"] if options.get("is_split_into_words") else "<eop> [gMASK]"
    assert CONTROL_IDS.isdisjoint(tokenizer(text, add_special_tokens=False, **options)["input_ids"])


def test_added_tokens_are_not_read_from_text_either():
    tokenizer = ChatGLMTokenizer.from_pretrained(FOLDER, extra_special_tokens=["<|user|>"])
    assert tokenizer.convert_tokens_to_ids("<|user|>") == 512
    assert 512 not in encode(tokenizer, "<|user|>")
    assert "[sMASK]" in tokenizer.all_special_tokens


@pytest.mark.parametrize("length", [1, 2, 79, 80, 81, 82, 165])
def test_runs_of_spaces_survive(tokenizer, length):
    text = "a" + " " * length + "b"
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert len(ids) <= 3 + length // 80 + 1


# --- the vocabulary ----------------------------------------------------------------------------------------


def test_the_image_slot_takes_the_id_behind_the_end_token_or_the_one_given(tokenizer):
    assert tokenizer.image_token == "<|image|>"
    assert tokenizer.image_token_id == 510
    assert tokenizer.decode([510, 510]) == "<|image|><|image|>"
    assert tokenizer.decode([510, 414], skip_special_tokens=True) == "描述"
    other = ChatGLMTokenizer.from_pretrained(FOLDER, image_token_id=600)
    assert other.image_token_id == 600 and other.convert_ids_to_tokens(510) == "<ENC>"


@pytest.mark.parametrize("image_token_id", [3, 505, 509])
def test_the_image_slot_shares_no_id(image_token_id):
    with pytest.raises(ConfigError, match=f"image_token_id is {image_token_id}.*leave image_token_id out"):
        ChatGLMTokenizer.from_pretrained(FOLDER, image_token_id=image_token_id)


def test_first_release_keeps_ids_in_front_for_image_pieces(tokenizer):
    shifted = ChatGLMTokenizer(str(FOLDER / "ice_text.model"), num_image_tokens=100)
    text = "描述这张图片。\nHello"
    assert shifted.encode(text) == [index + 100 for index in tokenizer.encode(text)]
    assert shifted.decode(encode(shifted, text)) == tokenizer.decode(encode(tokenizer, text))
    assert (shifted.pad_token_id, shifted.image_token_id, len(shifted)) == (103, 610, 612)
    assert shifted.convert_ids_to_tokens([7, 104]) == ["<image_7>", "<n>"]


def test_tokens_and_ids_correspond(tokenizer):
    vocab = tokenizer.get_vocab()
    assert sorted(vocab.values()) == list(range(512))
    assert tokenizer.convert_ids_to_tokens(list(vocab.values())) == list(vocab)
    assert tokenizer.convert_tokens_to_ids(list(vocab)) == list(vocab.values())


def test_ids_behind_the_vocabulary_decode_to_the_unknown_token(tokenizer):
    assert tokenizer.decode([414, 9999]) == "描述<unk>"


@pytest.fixture(scope="module")
def plain_vocabulary(tmp_path_factory):
    """A vocabulary that holds whitespace pieces, but none of ChatGLM's control tokens."""
    prefix = tmp_path_factory.mktemp("vocabulary") / "plain"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sits on a mat", "the dog runs", "猫 坐 在 垫子 上"] * 20),
        model_prefix=str(prefix),
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["<n>", "<|tab|>", *(f"<|blank_{length}|>" for length in range(2, 9))],
        minloglevel=2,
    )
    return f"{prefix}.model"


def test_control_tokens_that_the_vocabulary_lacks_go_behind_it(plain_vocabulary, tmp_path):
    tokenizer = ChatGLMTokenizer(plain_vocabulary)
    size = tokenizer.vocab_size
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(size, size + 5))
    assert tokenizer.image_token_id not in range(size + 5)
    text = "a cat [gMASK]<eop>\n" + " " * 20 + "x"
    ids = encode(tokenizer, text)
    assert max(ids) < size and tokenizer.decode(ids) == text
    tokenizer.save_pretrained(tmp_path)
    assert ChatGLMTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_without_newlines_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sits on a mat", "the dog runs"] * 20),
        model_prefix=str(tmp_path / "bare"),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ConfigError, match="no piece <n>"):
        ChatGLMTokenizer(str(tmp_path / "bare.model"))


# --- files -------------------------------------------------------------------------------------------------


def test_save_and_load_give_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "ice_text.model").read_bytes() == (FOLDER / "ice_text.model").read_bytes()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "ChatGLMTokenizer" and config["image_token_id"] == 510
    assert "auto_map" not in config
    loaded = ChatGLMTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.all_special_ids == tokenizer.all_special_ids
    assert [loaded.encode(row["text"]) for row in ROWS] == [row["with_special"] for row in ROWS]
    loaded.save_pretrained(tmp_path)  # onto itself
    assert ChatGLMTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_a_chosen_image_slot_and_shift_survive_saving(tmp_path):
    tokenizer = ChatGLMTokenizer.from_pretrained(FOLDER, image_token_id=700, num_image_tokens=20)
    tokenizer.save_pretrained(tmp_path)
    loaded = ChatGLMTokenizer.from_pretrained(tmp_path)
    assert (loaded.image_token_id, loaded.num_image_tokens, loaded.eos_token_id) == (700, 20, 529)


def test_the_tokenizer_survives_pickling(tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer)).encode("描述\n[gMASK]") == tokenizer.encode("描述\n[gMASK]")


def test_a_missing_vocabulary_is_named(tmp_path):
    shutil.copy(FOLDER / "tokenizer_config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"ice_text\.model is missing") as caught:
        ChatGLMTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"nowhere\.model"):
        ChatGLMTokenizer("nowhere.model")


def test_a_web_page_in_place_of_the_vocabulary_is_refused(tmp_path):
    (tmp_path / "ice_text.model").write_text("<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(CheckpointError, match="no sentencepiece model"):
        ChatGLMTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["remove_space", "do_lower_case"])
def test_settings_that_would_be_ignored_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        ChatGLMTokenizer.from_pretrained(FOLDER, **{name: True})


# --- decoding ----------------------------------------------------------------------------------------------


def test_decoding_agrees_with_sentencepiece(tokenizer):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "ice_text.model"))
    rng = random.Random(1)
    plain = [index for index in range(341, 504)]  # without whitespace pieces and lone bytes
    for _ in range(200):
        ids = rng.choices(plain, k=rng.randrange(1, 20))
        assert tokenizer.decode(ids) == reference.decode(ids)


STREAMED = [row["text"] for row in ROWS] + TYPED + ["世界上最可爱的猫😀", "e\u0301\u0301", "\n \n"]


@pytest.mark.parametrize("text", STREAMED)
def test_a_stream_adds_up_and_shows_no_half_character(tokenizer, text):
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    for size in (1, 2, 3, 7):
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(ids[start : start + size]) for start in range(0, len(ids), size)]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) + decoder.finish() == whole


def test_a_stream_of_any_ids_adds_up(tokenizer):
    rng = random.Random(2)
    for _ in range(300):
        ids = rng.choices(range(520), k=rng.randrange(0, 25))
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push([index]) for index in ids]
        assert "".join(pieces) + decoder.finish() == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_stream_waits_for_the_end_of_a_character(tokenizer):
    ids = encode(tokenizer, "世")  # ▁ and three bytes
    decoder = StreamDecoder(tokenizer)
    assert [decoder.push([index]) for index in ids] == ["", "", "", "世"]
    decoder = StreamDecoder(tokenizer)
    assert decoder.push(torch.tensor(ids[:-1])) == ""
    assert decoder.finish() == "\ufffd" and decoder.finish() == ""


def test_tokens_cannot_be_added(tokenizer):
    """They were counted, and never found in any text."""
    for tokens in (["<gut>", "<schlecht>"], "<gut>", [AddedToken("<gut>")]):
        for is_special in (False, True):
            with pytest.raises(ConfigError, match="takes no new tokens; got '<gut>'"):
                tokenizer.add_tokens(tokens, special_tokens=is_special)
    with pytest.raises(ConfigError, match="takes no new tokens"):
        tokenizer.add_special_tokens({"extra_special_tokens": ["<gut>"]})
    before = len(tokenizer)
    assert tokenizer.add_tokens(["[gMASK]", "<sop>"]) == 0 and len(tokenizer) == before


def test_a_stream_decoder_asks_the_tokenizer_how_it_spells(tokenizer):
    class Other:
        all_special_ids = [0]

        def decode(self, ids, skip_special_tokens=True):
            return bytes(ids).decode("utf-8", "replace")

    decoder = StreamDecoder(Other())
    pieces = [decoder.push([byte]) for byte in "a猫".encode()]
    assert pieces == ["a", "", "", "猫"] and decoder.finish() == ""

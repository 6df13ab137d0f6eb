import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from catalign.data.text import Ragged, Vocabulary, clean, load_tokenizer, train_wordpiece
from catalign.errors import CatalignError

TEXTS = ["Red running shoes, 40% off!", "Blue RUNNING shorts. Café style", "red shirt; unbelievable shirts?"] * 5
ROWS = st.lists(st.lists(st.integers(0, 1000), max_size=7), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def vocabulary():
    return train_wordpiece(TEXTS, 200)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("  a\n\tb\xa0c ", "a b c"),
        ("<p>Soft &amp; warm</p><br/>wool", "Soft & warm wool"),
        ("&lt;b&gt;bold&lt;/b&gt; &amp;nbsp; x", "bold x"),
        ("size < 5 and > 3", "size < 5 and > 3"),
        ("<style>p {color: red}</style>ok<!-- no -->", "ok"),
        ("cut off </", "cut off"),
        ("5 &lt; 6", "5 < 6"),
        ("", ""),
    ],
)
def test_clean(raw, plain):
    assert clean(raw) == plain


@given(st.text())
def test_clean_leaves_no_double_space(text):
    assert not re.search(r"\s\s|^\s|\s$", clean(text))


@given(ROWS, st.data(), st.none() | st.integers(0, 9), st.integers(-1, 5))
def test_pad_equals_a_plain_loop(rows, data, length, fill):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    padded, mask = Ragged.of(rows).pad(np.array(chosen, dtype=np.int64), length, fill)
    columns = max((len(rows[row]) for row in chosen), default=0) if length is None else length
    expected = [(rows[row][:columns] + [fill] * columns)[:columns] for row in chosen]
    expected_mask = [[column < len(rows[row]) for column in range(columns)] for row in chosen]
    assert padded.shape == mask.shape == (len(chosen), columns)
    assert padded.dtype == np.int64
    assert mask.dtype == bool
    assert padded.tolist() == expected
    assert mask.tolist() == expected_mask


@given(ROWS)
def test_ragged_rows(rows):
    ragged = Ragged.of(rows)
    assert [row.tolist() for row in ragged] == rows
    assert ragged[-1].tolist() == rows[-1]
    assert ragged.lengths.tolist() == [len(row) for row in rows]


def test_ragged_refuses_rows_that_are_not_there():
    ragged = Ragged.of([[1], [2, 3]])
    for row in (2, -3):
        with pytest.raises(IndexError):
            ragged[row]
    for rows in ([0, 2], [-1]):
        with pytest.raises(IndexError):
            ragged.pad(np.array(rows))
    with pytest.raises(CatalignError, match="offsets"):
        Ragged(np.arange(3), np.array([0, 2]))


def test_ragged_save_and_load(tmp_path):
    rows = [[1, 2], [], [3]]
    Ragged.of(rows).save(tmp_path, "title")
    loaded = Ragged.load(tmp_path, "title")
    assert isinstance(loaded.values, np.memmap)
    assert [row.tolist() for row in loaded] == rows
    assert loaded.pad(np.array([2, 0]))[0].tolist() == [[3, 0], [1, 2]]


def test_training_ignores_the_order_of_texts():
    """Words tie often here; the library alone numbers pieces in an order that changes from run to run."""
    texts = ["".join(np.random.default_rng(row).choice(list("abcdefghijkl"), 6)) for row in range(300)] * 2
    first = train_wordpiece(texts, 300).tokenizer.to_str()
    assert train_wordpiece(texts[::-1], 300).tokenizer.to_str() == first
    assert train_wordpiece(iter(texts), 300).tokenizer.to_str() == first


def test_training_needs_words():
    with pytest.raises(CatalignError, match=r"data\.columns\.text"):
        train_wordpiece(["", "  "], 200)


def test_encode_and_decode(vocabulary):
    long, empty, short = vocabulary.encode(["Red RUNNING shoes.", "", "café"])
    assert long.dtype == np.int32
    assert len(empty) == 0
    assert vocabulary.decode(long) == "red running shoes."
    assert vocabulary.decode(short) == "cafe"
    assert not set(long) & set(vocabulary.specials)
    assert vocabulary.encode(["Red RUNNING shoes."], 2)[0].tolist() == long[:2].tolist()
    assert vocabulary.encode(["日本"])[0].tolist() == [vocabulary.unk] * 2


def test_what_objectives_need_to_know(vocabulary):
    pieces = [vocabulary.tokenizer.id_to_token(token) for token in range(vocabulary.size)]
    assert len(set(vocabulary.specials)) == 5
    assert vocabulary.continuation.tolist() == [piece.startswith("##") for piece in pieces]
    assert vocabulary.continuation.any()
    assert {pieces[token] for token in np.flatnonzero(vocabulary.sentence_ends)} == {".", "!", "?", ";"}
    words = np.array(vocabulary.encode(["unseenword red"])[0])
    assert (~vocabulary.continuation[words]).sum() == 2


def test_counts(vocabulary):
    tokens = [Ragged.of(vocabulary.encode(["red red", "blue", "red"])), Ragged.of(vocabulary.encode(["", "red", "!"]))]
    red, blue = vocabulary.tokenizer.token_to_id("red"), vocabulary.encode(["blue"])[0]
    counts = vocabulary.counted(tokens, np.array([0, 1])).counts
    assert counts[red] == 3
    assert (counts[blue] > 0).all()
    assert counts.sum() == 3 + len(blue)
    assert counts.shape == (vocabulary.size,)
    assert not vocabulary.counts.any()


def test_save_and_load(vocabulary, tmp_path):
    counted = vocabulary.counted([Ragged.of(vocabulary.encode(TEXTS))], np.arange(len(TEXTS)))
    counted.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded.specials == vocabulary.specials
    assert loaded.size == vocabulary.size
    assert (loaded.counts == counted.counts).all()
    assert [e.tolist() for e in loaded.encode(TEXTS)] == [e.tolist() for e in vocabulary.encode(TEXTS)]


@pytest.mark.parametrize("file", ["tokenizer.json", "token_counts.npy", "vocabulary.json"])
def test_load_refuses_a_cut_file(vocabulary, tmp_path, file):
    vocabulary.save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CatalignError):
        Vocabulary.load(tmp_path)


def _save_byte_level(folder):
    """A byte-level BPE as GPT-2's: no special token at all."""
    from transformers import PreTrainedTokenizerFast

    pieces = ["Ġ", *"redsho,.", "Ġr", "Ġre", "Ġred", "sh"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(numbers, [("Ġ", "r"), ("Ġr", "e"), ("Ġre", "d"), ("s", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return len(pieces)


def test_load_tokenizer_without_specials(tmp_path):
    size = _save_byte_level(tmp_path)
    vocabulary = load_tokenizer(str(tmp_path))
    assert vocabulary.size == size + 5
    assert len(set(vocabulary.specials)) == 5
    red, _, _, _, _, comma = vocabulary.encode(["red shoe,"])[0][[0, 1, 2, 3, 4, -1]].tolist()
    pieces = {vocabulary.tokenizer.id_to_token(token): goes_on for token, goes_on in enumerate(vocabulary.continuation)}
    assert vocabulary.tokenizer.id_to_token(red) == "Ġred"
    assert vocabulary.tokenizer.id_to_token(comma) == ","
    assert pieces["sh"]
    assert pieces["o"]
    assert not pieces["Ġred"]
    assert not pieces[","]
    assert not pieces["[MASK]"]
    assert vocabulary.sentence_ends[vocabulary.tokenizer.token_to_id(".")]


def test_load_tokenizer_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CatalignError, match=r"leave data\.tokenizer null"):
        load_tokenizer(str(tmp_path / "absent"))

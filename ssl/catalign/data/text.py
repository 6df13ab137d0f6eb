"""Text as token ids: cleaning, tokenizers, vocabularies."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from catalign.artifacts import atomic, read_json, write_json
from catalign.data.ragged import Ragged
from catalign.errors import CatalignError

SPECIALS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""The special tokens every vocabulary has, and what they are called where the tokenizer brings none."""

_SENTENCE_ENDS = frozenset(".!?;…。！？；")
_WORD_STARTS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece mark the first token of a word
_MARKUP = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|</?[a-z][^<>]*>|</?$", re.IGNORECASE | re.DOTALL)
_CHUNK = 4096  # texts tokenised at a time: bounds the memory of their intermediate encodings


def clean(text: str) -> str:
    """Plain text on one line: HTML tags dropped, entities unescaped (also doubly escaped), white space collapsed."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _MARKUP.sub(" ", text)
    if "&" in text:
        text = html.unescape(text)
    return " ".join(text.split())


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer and what objectives need to know of its tokens.

    Attributes:
        tokenizer: The Hugging Face tokenizer; it adds no special tokens, pads nothing, cuts nothing.
        size: Number of token ids, V.
        pad, unk, cls, sep, mask: Ids of the special tokens.
        continuation: (V,) bool, True for pieces that go on with the word before them. A text's first token starts a
            word whatever this says (byte-level BPE). All False for a tokenizer that marks word ends (CLIP's): there a
            piece alone does not tell.
        sentence_ends: (V,) bool, True for tokens that end a sentence.
        counts: (V,) int64 occurrences in the training split; zeros until counted.
    """

    tokenizer: Tokenizer
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    size: int = field(init=False)
    continuation: np.ndarray = field(init=False, repr=False)
    sentence_ends: np.ndarray = field(init=False, repr=False)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False)

    def __post_init__(self) -> None:
        size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # some tokenizers skip ids
        pieces = [self.tokenizer.id_to_token(token) or "" for token in range(size)]
        set_field = object.__setattr__  # the dataclass is frozen for its users
        set_field(self, "size", size)
        set_field(self, "continuation", _continuation(pieces, self.specials))
        ends = [piece.lstrip("".join(_WORD_STARTS)).removeprefix("##") in _SENTENCE_ENDS for piece in pieces]
        set_field(self, "sentence_ends", np.array(ends))
        if not len(self.counts):
            set_field(self, "counts", np.zeros(size, dtype=np.int64))

    @property
    def specials(self) -> list[int]:
        """Ids of pad, unk, cls, sep and mask."""
        return [self.pad, self.unk, self.cls, self.sep, self.mask]

    def __len__(self) -> int:
        return self.size

    def encode(self, texts: Iterable[str], max_tokens: int | None = None) -> list[np.ndarray]:
        """Tokenise, without special tokens.

        Args:
            texts: n texts.
            max_tokens: Tokens kept of each; all of them if None.

        Returns:
            n int32 arrays; an empty one for a text without tokens.
        """
        remaining, encoded = iter(texts), []
        while chunk := list(islice(remaining, _CHUNK)):
            encodings = self.tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
            encoded += [np.array(encoding.ids[:max_tokens], dtype=np.int32) for encoding in encodings]
        return encoded

    def framed(self, texts: Iterable[str], max_tokens: int | None = None) -> tuple[Ragged, np.ndarray]:
        """Texts as encoders read them: cleaned, tokenised, between [CLS] and [SEP].

        Args:
            texts: n texts.
            max_tokens: Tokens kept of each, specials not counted; all of them if None.

        Returns:
            n rows of token ids, and (n,) bool, whether a text has a token that the vocabulary knows.
        """
        tokens = self.encode(map(clean, texts), max_tokens)
        known = np.array([(ids != self.unk).any() for ids in tokens], dtype=bool)
        return Ragged.of([[self.cls, *ids, self.sep] for ids in tokens]), known

    def decode(self, tokens: Iterable[int]) -> str:
        """Token ids as text, specials included except padding."""
        return self.tokenizer.decode([int(t) for t in tokens if t != self.pad], skip_special_tokens=False)

    def counted(self, tokens: Iterable[Ragged], rows: np.ndarray) -> Vocabulary:
        """This vocabulary with ``counts`` of the tokens in some rows (the training split's) of every field."""
        counts = np.zeros(self.size, dtype=np.int64)
        for ragged in tokens:
            for chunk in np.array_split(rows, len(rows) // _CHUNK + 1):
                padded, mask = ragged.pad(chunk)
                counts += np.bincount(padded[mask], minlength=self.size)
        return replace(self, counts=counts)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json``, ``vocabulary.json`` and ``token_counts.npy``."""
        folder = Path(folder)
        with atomic(folder / "tokenizer.json") as temporary:
            self.tokenizer.save(str(temporary))
        write_json(folder / "vocabulary.json", {name: getattr(self, name) for name in [*SPECIALS, "size"]})
        with atomic(folder / "token_counts.npy") as temporary:
            np.save(temporary, self.counts)

    @classmethod
    def load(cls, folder: str | Path) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            CatalignError: A file is absent, broken, or not of the same vocabulary as the others.
        """
        folder = Path(folder)
        known = read_json(folder / "vocabulary.json")
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            counts = np.load(folder / "token_counts.npy", allow_pickle=False)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CatalignError(f"vocabulary {folder} cannot be read: {error}", "prepare the catalogue again") from None
        vocabulary = cls(tokenizer, **{name: known[name] for name in SPECIALS}, counts=counts)
        if not vocabulary.size == known["size"] == len(counts):
            raise CatalignError(f"vocabulary {folder}: its files disagree in size", "prepare the catalogue again")
        return vocabulary


def _continuation(pieces: list[str], specials: list[int]) -> np.ndarray:
    if any(piece.startswith("##") for piece in pieces):
        goes_on = np.array([piece.startswith("##") and len(piece) > 2 for piece in pieces])
    elif any(piece.startswith(_WORD_STARTS) for piece in pieces):
        # Punctuation has no marker either, but it is no part of the word before it.
        goes_on = np.array([piece[:1].isalnum() and not piece.startswith(_WORD_STARTS) for piece in pieces])
    else:
        goes_on = np.zeros(len(pieces), dtype=bool)
    goes_on[specials] = False
    return goes_on


def train_wordpiece(texts: Iterable[str], size: int, *, min_frequency: int = 2) -> Vocabulary:
    """Train a lower-casing WordPiece (Schuster & Nakajima 2012; Devlin et al. 2019) on a catalogue's texts.

    The same texts, in any order, give the same vocabulary on every machine. Memory grows with the distinct words only.

    Args:
        texts: The training split's texts; they are read once.
        size: Tokens at most, specials included.
        min_frequency: Pieces rarer than this are not kept.

    Raises:
        CatalignError: The texts hold no words.
    """
    words = _count_words(texts)
    if not words:
        raise CatalignError("no text to train a tokenizer on", "check data.columns.text: are these columns empty?")
    characters: Counter[str] = Counter()
    for word, count in words.items():
        characters.update(dict.fromkeys(word, count))
    alphabet = sorted(sorted(characters), key=lambda c: -characters[c])[: min(1000, size // 4)]
    # The library numbers "##x" pieces in the order of a randomly seeded hash map, and merges depend on the numbers.
    # Passing these pieces as special tokens numbers them here; the trained pieces then go into a tokenizer without.
    inner = {f"##{character}" for word in words for character in word[1:]} & {f"##{c}" for c in alphabet}
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIALS.values(), *sorted(inner)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained = _wordpiece({})
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # these are words already
    trained.train_from_iterator((" ".join(repeat(word, count)) for word, count in sorted(words.items())), trainer)
    return _vocabulary(_wordpiece(trained.get_vocab()), SPECIALS)


def _wordpiece(pieces: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token=SPECIALS["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _count_words(texts: Iterable[str]) -> Counter[str]:
    spaced: Counter[str] = Counter()  # white space splits at C speed; the library then sees each distinct text once
    for text in texts:
        spaced.update(text.split())
    tokenizer = _wordpiece({})
    words: Counter[str] = Counter()
    for text, count in spaced.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            words[word] += count
    return words


def load_tokenizer(name: str) -> Vocabulary:
    """Load any fast Hugging Face tokenizer; special tokens it lacks are added to it.

    Args:
        name: A name on the hub (read from the local cache when offline) or a folder.

    Raises:
        CatalignError: It does not exist, cannot be reached, or has no fast form.
    """
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    except AttributeError:
        raise CatalignError(f"tokenizer {name!r} has no fast form (tokenizer.json)", "name one that has") from None
    except Exception as error:  # OSError offline or absent, ValueError or KeyError for a broken folder, hub errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CatalignError(
            f"tokenizer {name!r} cannot be loaded: {reason}",
            "check the name and the network, give a folder that holds it, or leave data.tokenizer null to train one",
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    own = {
        "pad": loaded.pad_token,
        "unk": loaded.unk_token,
        "cls": loaded.cls_token or loaded.bos_token,
        "sep": loaded.sep_token or loaded.eos_token,
        "mask": loaded.mask_token,
    }
    return _vocabulary(tokenizer, {key: own[key] or token for key, token in SPECIALS.items()})


def _vocabulary(tokenizer: Tokenizer, specials: dict[str, str]) -> Vocabulary:
    tokenizer.add_special_tokens([token for token in specials.values() if tokenizer.token_to_id(token) is None])
    ids = tokenizer.get_vocab(with_added_tokens=True)
    pad, unk, cls, sep, mask = (ids[specials[key]] for key in SPECIALS)
    return Vocabulary(tokenizer, pad, unk, cls, sep, mask)

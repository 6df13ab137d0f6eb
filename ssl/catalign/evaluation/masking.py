"""Texts without the words of an attribute's values, so that a classifier must know what it cannot copy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

_WORD = re.compile(r"([^\W_]+)(?:['’][sS]?(?![^\W_]))?")  # with a possessive ending
_HYPHENS = "-‐‑"
_JOINT = re.compile(rf"\s*[{_HYPHENS}]?\s*")
_SPAN = 3
_CONNECTIVES = frozenset({"and", "for", "in", "of", "the", "with"})
_IRREGULAR = {"men": "man", "women": "woman", "children": "child", "scarve": "scarf"}


class Mask:
    """Removes the words of all values of an attribute from a text, whichever value the product has.

    What is removed depends on the text alone: not on the product's own value, so a gap does not give it away. A word
    goes in every form: capitals, plural and possessive (``Women``, ``woman's``), hyphenated, split or joined
    (``Tshirts``, ``T-Shirt``, ``t shirt``; ``Flip Flops``, ``flipflop``). Words such as ``and`` stay, and so do
    synonyms and words that merely contain one (``Bluetooth``).

    Args:
        values: The attribute's values.

    Example:
        >>> Mask(["Navy Blue", "Black"])("Nike blue-black Bluetooth watch")
        'Nike Bluetooth watch'
    """

    def __init__(self, values: Iterable[str]) -> None:
        self.words: set[str] = set()
        for value in values:
            words = [match[1] for match in _WORD.finditer(value)]
            self.words |= {base(word) for word in words if word.lower() not in _CONNECTIVES}
            if len(words) <= _SPAN:
                self.words.add(base("".join(words)))
        self.words.discard("")

    def __call__(self, text: str) -> str:
        """The text without them, white space collapsed, and hyphens that join nothing any more."""
        words, kept, end, place = list(_WORD.finditer(text)), [], 0, 0
        while place < len(words):
            count = self._matching(text, words[place : place + _SPAN])
            if count:
                kept.append(text[end : words[place].start()])
                end = words[place + count - 1].end()
            place += count or 1
        return " ".join(word for word in " ".join([*kept, text[end:]]).split() if word not in _HYPHENS)

    def _matching(self, text: str, words: list[re.Match[str]]) -> int:
        """How many of these words, at most, are together one that is removed."""
        for count in range(len(words), 0, -1):
            some = words[:count]
            joined = all(_JOINT.fullmatch(text, a.end(), b.start()) for a, b in pairwise(some))
            if joined and base("".join(word[1] for word in some)) in self.words:
                return count
        return 0


def base(word: str) -> str:
    """A word's form for comparison: lower case, singular by simple rules of English."""
    word = word.lower()
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    word = _IRREGULAR.get(word, word)
    if len(word) > 4 and word.endswith("ie"):
        return word[:-2] + "y"
    return word[:-1] if word.endswith(("che", "oe", "se", "she", "xe", "ze")) else word

"""Titles and descriptions of synthetic products: synonyms, word order, dropped words, a rare slip of the keyboard."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from catalign.data.synthetic import Product

NOUNS = {
    "t-shirt": ["t-shirt", "tee", "crew neck top"],
    "jacket": ["jacket", "coat", "zip-up jacket"],
    "dress": ["dress", "strappy dress", "sundress"],
    "skirt": ["skirt", "pleated skirt", "flared skirt"],
    "trousers": ["trousers", "pants", "slacks"],
    "sneakers": ["sneakers", "trainers", "running shoes"],
    "boots": ["boots", "ankle boots", "lace-up boots"],
    "handbag": ["handbag", "purse", "shoulder bag"],
    "backpack": ["backpack", "rucksack", "school bag"],
    "watch": ["watch", "wristwatch", "timepiece"],
    "cap": ["cap", "baseball cap", "hat"],
    "sunglasses": ["sunglasses", "shades", "sunnies"],
}
_PLURAL = frozenset({"trousers", "sneakers", "boots", "sunglasses"})
COLOUR_WORDS = {
    "black": ["black", "black", "jet black", "ebony"],
    "white": ["white", "white", "ivory", "snow white"],
    "grey": ["grey", "grey", "charcoal", "silver grey"],
    "red": ["red", "red", "scarlet", "crimson"],
    "orange": ["orange", "orange", "tangerine", "apricot"],
    "yellow": ["yellow", "yellow", "lemon", "mustard"],
    "green": ["green", "green", "emerald", "forest green"],
    "turquoise": ["turquoise", "turquoise", "teal", "aqua"],
    "blue": ["blue", "blue", "royal blue", "cobalt"],
    "purple": ["purple", "purple", "violet", "plum"],
    "pink": ["pink", "pink", "rose", "blush pink"],
    "brown": ["brown", "brown", "chestnut", "chocolate"],
}
PATTERN_WORDS = {
    "plain": ["", "", "plain", "solid"],
    "striped": ["striped", "stripe", "pinstriped"],
    "dotted": ["dotted", "polka dot", "spotted"],
    "checked": ["checked", "checkered", "plaid"],
}
_SEASON_WORDS = {
    "spring": ["spring", "springtime"],
    "summer": ["summer", "beach"],
    "autumn": ["autumn", "fall"],
    "winter": ["winter", "cold weather"],
}
_TITLES: list[Sequence[str]] = [
    ("brand", "season", "colour", "pattern", "material", "noun"),
    ("brand", "colour", "pattern", "material", "noun"),
    ("brand", "noun", "-", "colour", "pattern", "material"),
    ("colour", "pattern", "material", "noun", "by", "brand"),
    ("material", "noun", "in", "colour", "pattern", "from", "brand"),
]
_DROPPED = {"brand": 0.1, "season": 0.4, "colour": 0.05, "pattern": 0.1, "material": 0.35}
_OPENERS = [
    "{These} {pattern} {noun} from {brand} {come} in {colour}.",
    "Meet the {colour} {noun} of the new {brand} {season} line.",
    "{brand} presents {a}{pattern} {noun} in {colour}.",
    "Looking for {a}{noun} in {colour}?",
    "{a}{noun} for every {season} day, made by {brand}.",
]
_PATTERNS = {
    "plain": [
        "One even {colour} tone goes with everything you own.",
        "There is no print, only clean {colour}.",
        "The solid {colour} look stays simple.",
    ],
    "striped": [
        "Wide stripes run across the {colour} ground.",
        "The {colour} stripes make {them} easy to spot.",
        "A classic striped print on {colour}.",
    ],
    "dotted": [
        "Playful dots cover the {colour} ground.",
        "Polka dots on {colour} add some fun.",
        "The dotted print sits on {colour}.",
    ],
    "checked": [
        "A bold check in {colour} sets {them} apart.",
        "The checkered print mixes {colour} with contrast.",
        "Plaid squares on {colour} recall a picnic.",
    ],
}
_MATERIALS = {
    "cotton": [
        "Soft cotton feels light on the skin.",
        "Pure cotton, machine wash warm.",
        "The cotton fabric breathes well.",
    ],
    "denim": [
        "Sturdy denim softens with every wash.",
        "The denim is woven with a strong twill.",
        "Wash the denim inside out.",
    ],
    "wool": [
        "Warm wool keeps the cold away.",
        "Knitted from fine wool, wash by hand.",
        "The wool knit is cosy and thick.",
    ],
    "leather": [
        "Smooth leather ages beautifully.",
        "Wipe the leather with a dry cloth.",
        "Genuine leather with a soft shine.",
    ],
    "silk": ["Flowing silk with a gentle sheen.", "The silk should be dry cleaned only.", "Cool silk falls softly."],
    "canvas": ["Tough canvas takes years of use.", "Woven canvas, wipe clean.", "The canvas is strong and light."],
    "nylon": [
        "Quilted nylon keeps the rain out.",
        "Light nylon dries within minutes.",
        "The padded nylon is water repellent.",
    ],
    "suede": ["Velvety suede, brush with care.", "The suede has a soft nap.", "Keep the suede away from water."],
    "metal": [
        "Polished metal that does not rust.",
        "The steel parts are brushed by hand.",
        "Solid metal with a cool feel.",
    ],
    "plastic": [
        "Light plastic that does not break.",
        "Moulded from glossy plastic.",
        "The plastic weighs next to nothing.",
    ],
}
_DETAILS = {
    "t-shirt": ["Short sleeves and a ribbed collar.", "The crew neck keeps its shape."],
    "jacket": ["A full zip and two pockets.", "Long sleeves end in ribbed cuffs."],
    "dress": ["Thin straps and a fitted waist.", "The skirt flares out below the belt."],
    "skirt": ["Pleats fall from a high waistband.", "A hidden zip closes the side."],
    "trousers": ["Straight legs and slanted pockets.", "Belt loops around the waist."],
    "sneakers": ["Laces and a cushioned white sole.", "The rubber sole grips wet roads."],
    "boots": ["A low heel and a thick sole.", "Metal hooks hold the laces."],
    "handbag": ["A flap with a metal clasp.", "The round handle fits over the arm."],
    "backpack": ["A front pocket with a zip.", "Padded straps carry books with ease."],
    "watch": ["The white dial has two hands.", "A buckle closes the strap."],
    "cap": ["A curved brim shades the eyes.", "The strap at the back adjusts."],
    "sunglasses": ["Dark lenses block the glare.", "The frame sits firmly behind the ears."],
}
_SEASONS = {
    "spring": ["Made for the first mild days of spring.", "Part of our spring collection."],
    "summer": ["Ideal for the beach and hot days.", "Part of our summer collection."],
    "autumn": ["Right for windy autumn walks.", "Part of our autumn collection."],
    "winter": ["Ready for snow and frost.", "Part of our winter collection."],
}
_CLOSERS = [
    "{brand} stands for quality.",
    "Look for the {brand} mark on the product.",
    "A gift that pleases.",
    "Free returns within thirty days.",
]


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of some texts, each equally likely."""
    return options[int(rng.random() * len(options))]


def title(product: Product, rng: np.random.Generator) -> str:
    """A title as a shop might write it, such as ``"Borea striped teal cotton tee"``."""
    words = _words(product, rng)
    kept = [
        words.get(part, part)
        for part in _TITLES[int(rng.random() * len(_TITLES))]
        if rng.random() >= _DROPPED.get(part, 0)
    ]
    text = re.sub(r" (by|from|in|-)(?= from |$)", "", " ".join(filter(None, kept)))  # what followed it was dropped
    text = _slip(text, rng) if rng.random() < 0.03 else text
    return text.title() if rng.random() < 0.5 else text[:1].upper() + text[1:]


def description(product: Product, rng: np.random.Generator) -> str:
    """Four to six sentences about a product, about 50 words; synonyms are drawn anew for each."""
    middle = [
        choose(rng, _PATTERNS[product.pattern]),
        choose(rng, _MATERIALS[product.material]),
        choose(rng, _DETAILS[product.category]),
        choose(rng, _SEASONS[product.season]),
    ]
    order = rng.permutation(len(middle))[: 3 + int(rng.random() * 2)]
    sentences = [choose(rng, _OPENERS), *(middle[place] for place in order)]
    if rng.random() < 0.5:
        sentences.append(choose(rng, _CLOSERS))
    return " ".join(_fill(sentence, product, rng) for sentence in sentences)


def _words(product: Product, rng: np.random.Generator) -> dict[str, str]:
    return {
        "brand": product.brand,
        "season": choose(rng, _SEASON_WORDS[product.season]),
        "colour": choose(rng, COLOUR_WORDS[product.colour]),
        "pattern": choose(rng, PATTERN_WORDS[product.pattern]),
        "material": product.material,
        "noun": choose(rng, NOUNS[product.category]),
    }


def _fill(sentence: str, product: Product, rng: np.random.Generator) -> str:
    if "{" not in sentence:
        return sentence
    plural = product.category in _PLURAL
    grammar = {
        "These": "These" if plural else "This",
        "come": "come" if plural else "comes",
        "them": "them" if plural else "it",
        "a": "" if plural else "a ",
    }
    text = " ".join(sentence.format(**_words(product, rng), **grammar).split())
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return text[:1].upper() + text[1:]


def _slip(text: str, rng: np.random.Generator) -> str:
    """Two neighbouring letters of one word change places."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) > 4]
    if not long:
        return text
    place = long[int(rng.random() * len(long))]
    word = words[place]
    at = 1 + int(rng.random() * (len(word) - 2))
    words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)

from __future__ import annotations

import pytest

from catalign.evaluation.masking import Mask

COLOURS = ["Navy Blue", "Off White", "Black", "Grey Melange"]
TYPES = [
    "Tshirts",
    "Flip Flops",
    "Watches",
    "Dresses",
    "Accessory Gift Set",
    "Scarves",
    "Perfume and Body Mist",
    "Ties",
]


@pytest.mark.parametrize(
    ("values", "text", "left"),
    [
        (["Men", "Women", "Boys"], "Nike Men's, WOMEN’S, womens and boys' Woman man Boy shoe", "Nike , , and shoe"),
        (["Men"], "Mentos Menswear Woman 100% cotton", "Mentos Menswear Woman 100% cotton"),
        (COLOURS, "blue-black Bluetooth, off-white OffWhite OFF WHITE melanges", "Bluetooth,"),
        (COLOURS, "Blackberrys whitened offer navyish", "Blackberrys whitened offer navyish"),
        (TYPES, "Puma T-Shirt tshirts T shirts TSHIRT Tee", "Puma Tee"),
        (TYPES, "flipflops flip-flop Flip  Flops flipper", "flipper"),
        (TYPES, "watch watches dress Dresses scarf scarves accessories tie", ""),
        (TYPES, "address stopwatch tied and giftwrapped", "address stopwatch tied and giftwrapped"),
        (["Naïve"], "a naïve naive", "a naive"),
        ([], "as it was", "as it was"),
    ],
)
def test_a_word_goes_in_all_its_forms_and_nothing_else_does(values, text, left):
    assert Mask(values)(text) == left


def test_masking_twice_changes_nothing_more():
    mask = Mask([*COLOURS, *TYPES])
    once = mask("Nike Men's T-Shirt (navy), Off-White; black flip flops - set of 2")
    assert mask(once) == once

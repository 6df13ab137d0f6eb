"""Inpainting: what is hidden, what the encoder sees, what the loss compares."""

import pytest
import torch

from catalign import registry
from catalign.errors import CatalignError
from catalign.objectives.base import Forward
from catalign.objectives.inpainting import MapDecoder, mask_order


def inpainting(encoders, **options):
    return registry.build("objective", "inpainting", encoders, **options)


@pytest.mark.parametrize(("block", "low", "high"), [(1, 0.5, 0.7), (2, 0.2, 0.45)])
def test_masks_hide_each_patch_equally_often_and_blocks_keep_together(seeded, block, low, high):
    grid, hidden = (8, 6), 24
    order = mask_order(4000, grid, block, seeded())
    assert torch.equal(order.sort(1).values, torch.arange(48).expand(4000, -1))
    mask = torch.zeros(4000, 48).scatter(1, order[:, :hidden], 1).view(-1, *grid)
    assert (mask.mean(0) - 0.5).abs().max() < 0.06
    changes = (mask[:, 1:] != mask[:, :-1]).float().mean()  # neighbours of unlike state: half of them without blocks
    assert low - 0.1 < changes < high


def test_vit_sees_visible_patches_only(encoders, batch, seeded):
    objective = inpainting(encoders, ratio=0.75).eval()
    prepared = objective.prepare(batch, seeded())
    hidden, keep = prepared["inpainting_hidden"], prepared["image_keep"]
    assert hidden.shape == (8, 9)
    assert keep.shape == (8, 1 + 3)
    assert (keep[:, 0] == 0).all()
    both = torch.cat([hidden, keep[:, 1:] - 1], dim=1).sort(1).values
    assert torch.equal(both, torch.arange(12).expand(8, -1))
    tokens = Forward(encoders, prepared)("image").tokens
    scribbled = objective.unpatchify(
        objective.patchify(prepared["image"]).scatter(1, hidden[..., None].expand(-1, -1, 192), 9.0)
    )
    torch.testing.assert_close(Forward(encoders, {**prepared, "image": scribbled})("image").tokens, tokens)


def test_convolutions_see_holes_of_mean_colour(encoders_of, batch, seeded):
    encoders = encoders_of("conv")
    objective = inpainting(encoders, ratio=0.5, block=2).eval()
    prepared = objective.prepare(batch, seeded())
    patches, target = (objective.patchify(prepared[key]) for key in ("image", "inpainting_target"))
    for row, hidden in enumerate(prepared["inpainting_hidden"]):
        seen = torch.ones(12, dtype=torch.bool).scatter(0, hidden, False)
        assert (patches[row][hidden] == 0).all()
        assert torch.equal(patches[row][seen], target[row][seen])


@pytest.mark.parametrize("kind", ["vit", "conv"])
@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_is_the_squared_error_of_hidden_patches(encoders_of, batch, seeded, kind, norm_pix):
    encoders = encoders_of(kind).eval()
    objective = inpainting(encoders, norm_pix=norm_pix).eval()
    prepared = objective.prepare(batch, seeded())
    encode = Forward(encoders, prepared)
    outputs = objective(encode, prepared)
    hidden = prepared["inpainting_hidden"]
    predicted = objective.decoder(encode("image"), hidden, prepared.get("image_keep"))
    errors, trivial = [], []
    for row in range(8):
        patches = objective.patchify(prepared["inpainting_target"])[row]
        seen = [n for n in range(12) if n not in hidden[row].tolist()]
        colour = patches[seen].view(-1, 3).mean(0)
        for place, number in enumerate(hidden[row].tolist()):
            target, guess = patches[number], colour.repeat(64)
            if norm_pix:
                target, guess = (target - target.mean()) / (target.var() + 1e-6).sqrt(), torch.zeros(192)
            errors.append(((predicted[row, place] - target) ** 2).mean())
            trivial.append(((guess - target) ** 2).mean())
    torch.testing.assert_close(outputs["loss"], torch.stack(errors).mean())
    torch.testing.assert_close(outputs["trivial_loss"], torch.stack(trivial).mean())


def test_patches_come_row_by_row_and_back(encoders, batch):
    objective = inpainting(encoders)
    images = torch.rand(2, 3, 32, 24)
    patches = objective.patchify(images)
    torch.testing.assert_close(patches[1, 4].view(8, 8, 3).permute(2, 0, 1), images[1, :, 8:16, 8:16])
    assert torch.equal(objective.unpatchify(patches), images)


def test_works_on_whatever_views_the_stream_holds(encoders, batch, seeded):
    simclr = registry.build("objective", "simclr", encoders)
    views = simclr.prepare(batch, seeded())
    prepared = inpainting(encoders).prepare(views, seeded())
    assert prepared["inpainting_target"] is views["image"]
    assert len(prepared["inpainting_hidden"]) == 16


@pytest.mark.parametrize("kind", ["vit", "conv"])
def test_reconstruct_shows_three_pictures(encoders_of, batch, seeded, kind):
    encoders = encoders_of(kind)
    objective = inpainting(encoders)
    masked, filled, original = objective.reconstruct(batch["image"], seeded())
    assert encoders["image"].training
    assert objective.training
    for picture in (masked, filled, original):
        assert picture.shape == (8, 3, 32, 24)
        assert picture.dtype == torch.uint8
    seen = (masked == original).all(1)
    assert 0.2 < seen.float().mean() < 0.35
    assert torch.equal(filled.permute(0, 2, 3, 1)[seen], original.permute(0, 2, 3, 1)[seen])


def test_token_decoder_puts_patches_where_they_were(encoders, batch, seeded):
    objective = inpainting(encoders).eval()
    prepared = objective.prepare(batch, seeded())
    encoded = Forward(encoders, prepared)("image")
    decoder, hidden = objective.decoder, prepared["inpainting_hidden"]
    predicted = decoder(encoded, hidden, prepared["image_keep"])
    for row in range(8):
        sequence = decoder.blocks.mask_token[0].repeat(13, 1)
        sequence[0] = decoder.embed(encoded.pooled[row])
        for token, place in zip(encoded.tokens[row], prepared["image_keep"][row, 1:]):
            sequence[place] = decoder.embed(token)  # the class token takes place 0 on both sides
        decoded = decoder.head(decoder.blocks.decode(sequence[None] + decoder.blocks.pos_embed))[0]
        torch.testing.assert_close(predicted[row], decoded[1:][hidden[row]])


def test_map_decoder_reaches_any_grid():
    from catalign.encoders.base import Encoded

    decoder = MapDecoder(features=4, source=(2, 1), grid=(7, 3), width=8, out=5)
    encoded = Encoded(tokens=torch.randn(2, 2, 4), pooled=torch.randn(2, 4))
    assert decoder(encoded, torch.tensor([[0, 20], [3, 4]])).shape == (2, 2, 5)


def test_impossible_options_are_refused(encoders_of):
    with pytest.raises(CatalignError, match="hides 12 of 12"):
        inpainting(encoders_of("vit"), ratio=0.99)
    with pytest.raises(CatalignError, match="patch 7 does not divide"):
        inpainting(encoders_of("conv"), patch=7)

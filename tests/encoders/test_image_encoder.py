"""The image encoder: any backbone, any aspect, visible patches only."""

import pytest
import torch
from lightly.models.utils import get_2d_sine_cosine_positional_embedding
from torchvision.transforms.v2 import functional as TF

from catalign.config import Component
from catalign.encoders import ImageEncoder, build_encoders
from catalign.encoders.image import sincos_positions
from catalign.errors import CatalignError

VIT = {"model": "vit_tiny_patch16_224", "kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 2}}
THIN = {"model": "resnet10t", "kwargs": {"channels": (16, 16, 32, 32)}}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def images(rows=2, size=(40, 30)):
    return torch.randint(0, 256, (rows, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("model", "kwargs", "grid", "is_vit"),
    [
        (VIT["model"], VIT["kwargs"], (8, 6), True),
        (THIN["model"], THIN["kwargs"], (2, 2), False),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, (2, 1), False),
        ("mobilenetv3_small_050", {}, (2, 2), False),  # its head widens the features
        ("deit_tiny_distilled_patch16_224", {"patch_size": 8, "depth": 1}, (8, 6), False),  # two prefix tokens
        (
            "swin_tiny_patch4_window7_224",
            {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2)},
            (8, 6),
            False,
        ),  # NHWC
    ],
)
def test_any_backbone(model, kwargs, grid, is_vit):
    encoder = ImageEncoder(model=model, size=(64, 48), kwargs=kwargs)
    encoded = encoder({"image": images()})
    assert encoder.grid == grid
    assert encoder.is_vit == is_vit
    assert encoded.tokens.shape == (2, grid[0] * grid[1], encoder.width)
    assert encoded.pooled.shape == (2, encoder.width)
    assert torch.isfinite(encoded.pooled).all()


def test_cells_come_row_by_row():
    encoder = ImageEncoder(size=(128, 64), **THIN).eval()
    blank = torch.zeros(1, 3, 128, 64)
    dot = blank.clone()
    dot[:, :, 100:, 40:] = 3.0
    change = (encoder({"image": dot}).tokens - encoder({"image": blank}).tokens).abs().sum(2)
    assert encoder.grid == (4, 2)
    assert encoder.patch == (32, 32)
    assert change.argmax() == 7


def test_uint8_is_resized_and_normalised():
    encoder = ImageEncoder(size=(32, 24), **THIN)
    stored = images(size=(80, 60))
    expected = TF.normalize(
        TF.resize(stored.float() / 255, [32, 24], antialias=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(encoder.to_input(stored), expected, atol=1e-4, rtol=0)
    encoder.eval()
    torch.testing.assert_close(
        encoder({"image": stored}).pooled, encoder({"image": expected}).pooled, atol=1e-4, rtol=1e-4
    )


def test_denormalise_brings_pixels_back():
    encoder = ImageEncoder(size=(40, 30), **THIN)
    stored = images()
    assert torch.equal(encoder.denormalise(encoder.to_input(stored)), stored)


def test_visible_patches_only_equals_attention_that_cannot_see_the_others():
    encoder = ImageEncoder(size=(32, 24), **VIT).eval()
    image = encoder.to_input(images(3))
    keep = torch.stack([torch.cat([torch.zeros(1), torch.randperm(12)[:5].sort().values + 1]).long() for _ in range(3)])
    fast = encoder({"image": image, "image_keep": keep})
    seen = torch.zeros(3, 13).scatter(1, keep, 1.0).bool()
    vit = encoder.model.vit
    tokens = encoder.model.preprocess(image)
    for block in vit.blocks:
        tokens = block(tokens, attn_mask=seen[:, None, None, :])
    slow = vit.norm(tokens)
    for row in range(3):
        torch.testing.assert_close(fast.tokens[row], slow[row, keep[row, 1:]])
        torch.testing.assert_close(fast.pooled[row], slow[row, keep[row, 1:]].mean(0))
    assert encoder({"image": image}).tokens.shape == (3, 12, 48)


def test_visible_patches_only_does_less_work():
    encoder = ImageEncoder(size=(32, 24), **VIT)
    lengths = []
    encoder.model.vit.blocks[0].register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
    encoder({"image": images(), "image_keep": torch.tensor([[0, 3, 7]] * 2)})
    assert lengths == [3]


def test_positions_of_a_square_grid_are_lightlys():
    ours = sincos_positions(32, (5, 5), prefix=1)
    theirs = torch.from_numpy(get_2d_sine_cosine_positional_embedding(32, 5, cls_token=True)).float()
    torch.testing.assert_close(ours[0], theirs)


def test_positions_of_a_long_grid_tell_every_place_apart():
    positions = sincos_positions(32, (8, 6), prefix=2)
    assert positions.shape == (1, 50, 32)
    assert not positions[0, :2].any()
    assert torch.cdist(positions[0, 2:], positions[0, 2:]).fill_diagonal_(1).min() > 0.1
    column_of_first_row, row_of_first_column = positions[0, 2:8], positions[0, 2::6]
    torch.testing.assert_close(column_of_first_row[:, :16], row_of_first_column[:6, 16:])


def test_positions_are_fixed_and_the_unused_mask_token_too():
    encoder = ImageEncoder(size=(32, 24), **VIT)
    fixed = {name for name, weight in encoder.named_parameters() if not weight.requires_grad}
    assert fixed == {"model.vit.pos_embed", "model.mask_token"}


@pytest.mark.parametrize("options", [VIT, THIN])
def test_mirrored_photos_have_one_vector_in_evaluation(options):
    model, photos = ImageEncoder(**options, size=(64, 48), mirror=True).eval(), images(size=(64, 48))
    plain = ImageEncoder(**options, size=(64, 48)).eval()
    plain.load_state_dict(model.state_dict())
    once, turned = (plain({"image": views}) for views in (photos, photos.flip(-1)))
    torch.testing.assert_close(model({"image": photos}).pooled, (once.pooled + turned.pooled) / 2)
    torch.testing.assert_close(model({"image": photos}).tokens, once.tokens)
    assert not torch.allclose(once.pooled, turned.pooled)
    torch.manual_seed(1)
    trained = model.train()({"image": photos}).pooled
    torch.manual_seed(1)
    torch.testing.assert_close(trained, plain.train()({"image": photos}).pooled)


def test_evaluation_sees_the_middle_of_photos():
    photos = torch.randint(0, 256, (2, 3, 80, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model, plain = ImageEncoder(**THIN, size=(32, 24), crop_pct=0.9).eval(), ImageEncoder(**THIN, size=(32, 24))
    torch.testing.assert_close(model.to_input(photos), plain.to_input(photos[..., 4:76, 3:57]))
    torch.testing.assert_close(model.train().to_input(photos), plain.to_input(photos))
    with pytest.raises(CatalignError, match="crop_pct"):
        ImageEncoder(**THIN, size=(32, 24), crop_pct=90)


@pytest.mark.parametrize("options", [VIT, THIN], ids=["vit", "conv"])
def test_follows_the_memory_format_and_precision_of_the_model(options):
    encoder = ImageEncoder(size=(32, 24), **options).eval()
    batch = {"image": images()}
    expected = encoder(batch).pooled
    seen = []
    first = next(m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    actual = encoder.to(memory_format=torch.channels_last)(batch).pooled
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
    assert encoder.double()(batch).pooled.dtype == torch.float64


def test_pooling_by_class_token():
    encoder = ImageEncoder(size=(32, 24), pooling="token", **VIT).eval()
    image = encoder.to_input(images())
    torch.testing.assert_close(encoder({"image": image}).pooled, encoder.model.encode(image)[:, 0])
    with pytest.raises(CatalignError, match="resnet10t has no class token"):
        ImageEncoder(size=(32, 24), pooling="token", **THIN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet81"}, r"unknown timm model 'resnet81'\n.*did you mean 'resnet"),
        ({"model": "resnet18", "kwargs": {"depth": 3}}, "timm cannot make resnet18"),
        ({**VIT, "size": (30, 24)}, r"size \[30, 24\] is not a multiple of the patch \[8, 8\]"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(CatalignError, match=message):
        ImageEncoder(**options)


def test_build_encoders_checks_the_key():
    text = Component(name="timm", **THIN)
    with pytest.raises(CatalignError, match=r"encoder\.text: 'timm' encodes image, not text"):
        build_encoders({"text": text}, None)
    with pytest.raises(CatalignError, match=r"unknown option of encoder 'timm' \(encoder.image\) 'modle'.*\n.*'model'"):
        build_encoders({"image": Component(name="timm", modle="resnet18")}, None)

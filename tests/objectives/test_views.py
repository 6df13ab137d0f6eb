"""Batched augmentations against plain ones, one image at a time."""

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as TF

from catalign.objectives import views as V
from catalign.objectives.views import Views

PLAIN = {"flip": 0.0, "jitter": 0.0, "greyscale": 0.0, "blur": 0.0}


@pytest.fixture
def images(batch_of):
    return batch_of(6)["image"].float() / 255


def pick(image, x, y):
    """Bilinear sample of (3, H, W) at continuous pixel coordinates, the border going on."""
    height, width = image.shape[1:]
    x, y = x - 0.5, y - 0.5
    left, top = math.floor(x), math.floor(y)
    total = torch.zeros(3)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = abs(1 - dx - (x - left)) * abs(1 - dy - (y - top))
        total += weight * image[:, min(max(top + dy, 0), height - 1), min(max(left + dx, 0), width - 1)]
    return total


def test_crop_flip_rotate_shift_match_a_loop_over_pixels(images, seeded):
    views = Views(scale=(0.4, 0.8), ratio=(0.8, 1.2), rotate=20, shift=0.1, flip=0.5, jitter=0, greyscale=0, blur=0)
    size = (6, 5)
    maps = V.random_crops(6, (40, 30), size, views, seeded(2))
    batched = V.affine(images, maps, size, smallest=0)
    for image, matrix, result in zip(images, maps, batched):
        for row in range(size[0]):
            for column in range(size[1]):
                u, v = (2 * column + 1) / size[1] - 1, (2 * row + 1) / size[0] - 1
                x, y = (matrix @ torch.tensor([u, v, 1.0])).tolist()
                expected = pick(image, (x + 1) / 2 * 30, (y + 1) / 2 * 40)
                torch.testing.assert_close(result[:, row, column], expected, atol=1e-4, rtol=0)


def test_maps_turn_and_stretch_but_never_shear(seeded):
    """In pixels a map is rotation, mirror and two side lengths: its axes are orthogonal and turned by the angle."""
    views = Views(scale=(0.4, 0.8), ratio=(0.8, 1.25), rotate=30, flip=0.5, jitter=0, greyscale=0, blur=0)
    maps = V.random_crops(500, (40, 30), (6, 5), views, seeded())
    axes = maps[:, :, :2] * torch.tensor([15.0, 20.0]).view(1, 2, 1)
    across, down = axes.unbind(2)
    assert (across * down).sum(1).abs().max() < 1e-3
    angle = torch.atan2(-down[:, 0], down[:, 1]).rad2deg()
    assert -30 <= angle.min() < -20 < 20 < angle.max() <= 30
    assert abs((torch.linalg.det(axes) < 0).float().mean() - 0.5) < 0.1
    stretch = across.norm(dim=1) / down.norm(dim=1) / (5 / 6)
    assert 0.6 < stretch.min() < 0.82 < 1.2 < stretch.max() < 1.26


def test_crop_is_torchvisions_resized_crop(images, seeded):
    """Without rotation the map is a box: torchvision's crop and resize of that box gives the same picture."""
    corners = torch.tensor([[-1.0, -1, 1], [1, 1, 1]])
    maps = V.random_crops(6, (40, 30), (16, 12), Views(scale=(0.3, 0.9), **PLAIN), seeded())
    for matrix in maps:
        (left, top), (right, bottom) = ((matrix @ corners.T).T + 1) / 2 * torch.tensor([30.0, 40.0])
        assert 0 <= left < right <= 30 + 1e-4
        assert 0 <= top < bottom <= 40 + 1e-4
        assert 0.25 < (right - left) * (bottom - top) / 1200 <= 0.91
    whole = torch.tensor([[[20 / 30, 0, 0], [0, 20 / 40, 0]]])  # the central 20 × 20 pixels
    ours = V.affine(images[:1], whole, (20, 20))
    torch.testing.assert_close(ours[0], TF.center_crop(images[0], [20, 20]), atol=1e-5, rtol=0)


def test_flip_mirrors(images, seeded):
    mirrored = V.augment(images, (40, 30), Views(scale=(1, 1), ratio=(1, 1), **(PLAIN | {"flip": 1.0})), seeded())
    torch.testing.assert_close(mirrored, images.flip(-1), atol=1e-5, rtol=0)


def test_quarter_turn_is_exact(images):
    square = images[:, :, :30]
    turn = torch.tensor([[[0.0, -1, 0], [1, 0, 0]]]).expand(6, -1, -1)
    torch.testing.assert_close(V.affine(square, turn, (30, 30)), square.rot90(-1, (2, 3)).flip(2, 3), atol=1e-5, rtol=0)


def test_no_change_is_no_change(images, seeded):
    same = V.augment((images * 255).to(torch.uint8), (40, 30), Views(scale=(1, 1), ratio=(1, 1), **PLAIN), seeded())
    torch.testing.assert_close(same, (images * 255).to(torch.uint8) / 255, atol=1e-5, rtol=0)


def test_large_images_are_averaged_before_sampling(seeded):
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    checks = checks.expand(1, 3, 64, 64).float()
    shrunk = V.augment(checks, (8, 8), Views(scale=(1, 1), ratio=(1, 1), **PLAIN), seeded())
    torch.testing.assert_close(shrunk, torch.full((1, 3, 8, 8), 0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("option", "change"),
    [
        ("brightness", TF.adjust_brightness),
        ("contrast", TF.adjust_contrast),
        ("saturation", TF.adjust_saturation),
    ],
)
def test_colour_changes_are_torchvisions(images, seeded, option, change):
    images = 0.3 + 0.3 * images  # far from 0 and 1, where torchvision clamps in between
    nothing = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    views = Views(jitter=1, greyscale=0, **(nothing | {option: 0.4}))
    colours = V.random_colours(images, views, seeded(5))
    draws = dict(zip(("brightness", "contrast", "saturation"), self_draws(6, views, seeded(5))))
    ours = V.recolour(images, colours)
    for image, factor, result in zip(images, draws[option].flatten(), ours):
        torch.testing.assert_close(result, change(image, float(factor)), atol=1e-3, rtol=0)


def self_draws(count, views, generator):
    """The factors that random_colours draws, in its order."""
    for reach in (views.brightness, views.contrast, views.saturation):
        yield V.uniform((count, 1, 1), generator, 1 - reach, 1 + reach)


def test_hue_turns_in_yiq(images):
    turns = torch.tensor([0.1, -0.2, 0.0])
    for turn, matrix in zip(turns, V.hue_matrix(turns)):
        for colour in images[0, :, ::13, ::11].flatten(1).T:
            y, i, q = colorsys.rgb_to_yiq(*colour.tolist())
            angle = math.atan2(q, i) + 2 * math.pi * float(turn)
            norm = math.hypot(i, q)
            yiq = torch.tensor([y, norm * math.cos(angle), norm * math.sin(angle)])
            expected = torch.linalg.inv(torch.tensor(V.RGB_TO_YIQ)) @ yiq
            torch.testing.assert_close(matrix @ colour, expected, atol=5e-3, rtol=0)
        torch.testing.assert_close(matrix @ torch.ones(3), torch.ones(3), atol=1e-4, rtol=0)


def test_grey_is_pillows(images, seeded):
    grey = V.recolour(images, V.random_colours(images, Views(jitter=0, greyscale=1), seeded()))
    for image, result in zip(images, grey):
        pillow = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).convert("L")
        expected = torch.from_numpy(np.array(pillow)).float() / 255
        torch.testing.assert_close(result, expected.expand(3, -1, -1), atol=0.005, rtol=0)


def test_blur_matches_one_image_at_a_time(images):
    sigma = torch.tensor([0.3, 0.7, 1.0, 1.5, 2.0, 0.5])
    blurred = V.gaussian_blur(images, sigma, radius=5)
    for image, spread, result in zip(images, sigma, blurred):
        torch.testing.assert_close(result, TF.gaussian_blur(image, [11, 11], [float(spread)] * 2), atol=1e-5, rtol=0)
    pillow = Image.fromarray((images[3].permute(1, 2, 0) * 255).byte().numpy()).filter(ImageFilter.GaussianBlur(1.5))
    near = torch.from_numpy(np.array(pillow)).permute(2, 0, 1) / 255
    assert (near - blurred[3])[:, 6:-6, 6:-6].abs().max() < 0.03


def test_shares_are_kept(seeded):
    images = torch.rand(2000, 3, 4, 4, generator=seeded(1))
    views = Views(scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, greyscale=0.25, blur=0)
    result = V.augment(images, (4, 4), views, seeded(2))
    grey = (result.amax(1) - result.amin(1)).amax((1, 2)) < 1e-5
    assert abs(grey.float().mean() - 0.25) < 0.04
    blurred = V.random_blur(images, Views(blur=0.25, sigma=(0.2, 0.3)), seeded(3))
    assert abs((blurred != images).flatten(1).any(1).float().mean() - 0.25) < 0.04
    assert torch.equal(V.random_blur(images[:1], Views(blur=1e-9), seeded()), images[:1])


def test_strength_zero_keeps_colours(images, seeded):
    views = Views(scale=(1, 1), ratio=(1, 1), flip=0, blur=0, strength=0, greyscale=1)
    torch.testing.assert_close(V.augment(images, (40, 30), views, seeded()), images, atol=1e-5, rtol=0)


def test_unknown_option_is_refused():
    from catalign import registry
    from catalign.errors import CatalignError

    with pytest.raises(CatalignError, match=r"views\.hew"):
        registry.validate("objective", "simclr", {"views": {"hew": 0.1}}, "stages.image")

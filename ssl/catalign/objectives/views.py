"""Random views of images, for a whole batch at once, on its device, with parameters drawn per image.

Crop, flip, rotation and shift are one affine grid; brightness, contrast, saturation, hue and greyscale are one 3 × 4
colour matrix; blur is one grouped convolution per axis over the images that drew it. There is no per-sample loop.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from catalign.config import Schema
from catalign.objectives.base import uniform

LUMA = (0.299, 0.587, 0.114)
RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


class Views(Schema):
    """How views differ. The defaults suit products, whose identity often *is* their colour: hue stays nearly fixed."""

    scale: tuple[float, float] = Field(default=(0.3, 1.0), description="area of the crop, as a share of the image")
    ratio: tuple[float, float] = Field(default=(0.8, 1.25), description="stretch of the crop's width over its height")
    flip: float = Field(default=0.5, ge=0, le=1, description="share of images mirrored left to right")
    rotate: float = Field(default=0.0, ge=0, description="largest rotation in degrees, either way")
    shift: float = Field(default=0.0, ge=0, description="how far the crop may leave the image, in shares of its sides")
    jitter: float = Field(default=0.8, ge=0, le=1, description="share of images whose colours change")
    brightness: float = Field(default=0.4, ge=0, description="largest relative change")
    contrast: float = Field(default=0.4, ge=0, description="largest relative change")
    saturation: float = Field(default=0.2, ge=0, description="largest relative change")
    hue: float = Field(default=0.02, ge=0, le=0.5, description="largest turn of the colour circle")
    greyscale: float = Field(default=0.1, ge=0, le=1, description="share of images that lose their colour")
    blur: float = Field(default=0.2, ge=0, le=1, description="share of images blurred")
    sigma: tuple[float, float] = Field(default=(0.002, 0.02), description="spread of the blur, in shares of the height")
    strength: float = Field(default=1.0, ge=0, description="factor of all changes of colour, SimCLR's s")


MILD = Views(
    scale=(0.7, 1.0), ratio=(0.9, 1.1), brightness=0.1, contrast=0.1, saturation=0.1, hue=0.0, greyscale=0.0, blur=0.0
)
"""Views that keep everything a title may mention."""


def augment(images: Tensor, size: tuple[int, int], views: Views, generator: torch.Generator) -> Tensor:
    """One random view of each image (Chen et al. 2020, https://arxiv.org/abs/2002.05709).

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1].
        size: Height and width of the result.
        views: How views differ.
        generator: Source of randomness, on the images' device.

    Returns:
        (B, 3, height, width) float32 in [0, 1].
    """
    if not images.is_floating_point():
        images = images.float() / 255
    images = affine(images, random_crops(len(images), images.shape[-2:], size, views, generator), size, views.scale[0])
    if views.strength and (views.jitter or views.greyscale):
        images = recolour(images, random_colours(images, views, generator))
    return random_blur(images, views, generator) if views.blur else images


def random_crops(
    count: int, source: tuple[int, ...], size: tuple[int, int], views: Views, generator: torch.Generator
) -> Tensor:
    """Maps from a view's coordinates to its image's, both [-1, 1] from edge to edge: (count, 2, 3).

    A crop has the aspect of the view times a random stretch, is cut to the image's sides, and lies anywhere within it.
    """

    def draw(low: float, high: float) -> Tensor:
        return uniform((count,), generator, low, high)

    height, width = source
    area = draw(*views.scale) * height * width
    aspect = (draw(math.log(views.ratio[0]), math.log(views.ratio[1])).exp()) * size[1] / size[0]
    half_w = (area * aspect).sqrt().clamp(max=width) / 2
    half_h = (area / aspect).sqrt().clamp(max=height) / 2
    x = half_w + draw(0, 1) * (width - 2 * half_w) + draw(-views.shift, views.shift) * width
    y = half_h + draw(0, 1) * (height - 2 * half_h) + draw(-views.shift, views.shift) * height
    angle = draw(-views.rotate, views.rotate) * (math.pi / 180)
    mirror = torch.where(draw(0, 1) < views.flip, -1.0, 1.0)
    # Rotation is one of pixels, so it comes before pixels are scaled to [-1, 1].
    across = torch.stack([angle.cos() * half_w * mirror, -angle.sin() * half_h, x - width / 2], dim=1) * (2 / width)
    down = torch.stack([angle.sin() * half_w * mirror, angle.cos() * half_h, y - height / 2], dim=1) * (2 / height)
    return torch.stack([across, down], dim=1)


def affine(images: Tensor, maps: Tensor, size: tuple[int, int], smallest: float = 1.0) -> Tensor:
    """Sample images through affine maps, bilinearly; outside an image its border goes on.

    Args:
        images: (B, 3, H, W) float.
        maps: (B, 2, 3) from :func:`random_crops`.
        size: Height and width of the result.
        smallest: Area of the smallest crop. Bilinear sampling skips pixels where it shrinks more than twofold, so
            images are averaged down first as far as even the smallest crop loses nothing.
    """
    shrink = int(min(images.shape[-2] / size[0], images.shape[-1] / size[1]) * math.sqrt(smallest))
    if shrink > 1:
        images = F.interpolate(images, (images.shape[-2] // shrink, images.shape[-1] // shrink), mode="area")
    grid = F.affine_grid(maps, [len(images), 3, *size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def random_colours(images: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """A change of colour per image, as affine maps of RGB: (B, 3, 4).

    Brightness, contrast, saturation, hue and greyscale in this order, each as torchvision defines it but for two
    things: nothing is clamped in between, and hue turns in YIQ, where a turn is linear.
    """
    count, device = len(images), images.device

    def factor(largest: float) -> Tensor:
        reach = largest * views.strength
        return uniform((count, 1, 1), generator, max(0.0, 1 - reach), 1 + reach)

    eye = torch.eye(3, device=device)
    grey = torch.tensor(LUMA, device=device).expand(3, 3)
    brightness, contrast, saturation = factor(views.brightness), factor(views.contrast), factor(views.saturation)
    mean = images.mean((2, 3)).unsqueeze(-1)
    matrix = brightness * contrast * eye
    offset = (1 - contrast) * (grey @ (brightness * mean))
    turn = uniform((count,), generator, -1, 1) * (views.hue * views.strength)
    change = hue_matrix(turn) @ (saturation * eye + (1 - saturation) * grey)
    matrix, offset = change @ matrix, change @ offset
    keeps = uniform((count, 1, 1), generator) >= views.jitter
    matrix, offset = torch.where(keeps, eye, matrix), torch.where(keeps, 0.0, offset)
    fades = uniform((count, 1, 1), generator) < views.greyscale * min(views.strength, 1.0)
    fade = torch.where(fades, grey, eye)
    return torch.cat([fade @ matrix, fade @ offset], dim=2)


def hue_matrix(turn: Tensor) -> Tensor:
    """RGB matrices that turn the colour circle: (B,) turns, 1 being all the way round -> (B, 3, 3)."""
    to_yiq = torch.tensor(RGB_TO_YIQ, device=turn.device)
    cos, sin = (turn * 2 * math.pi).cos(), (turn * 2 * math.pi).sin()
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    return torch.linalg.inv(to_yiq) @ rotation @ to_yiq


def recolour(images: Tensor, colours: Tensor) -> Tensor:
    """Apply (B, 3, 4) affine maps of RGB to (B, 3, h, w) images in [0, 1], and clamp."""
    flat = torch.baddbmm(colours[:, :, 3:], colours[:, :, :3], images.flatten(2))
    return flat.view_as(images).clamp_(0, 1)


def random_blur(images: Tensor, views: Views, generator: torch.Generator) -> Tensor:
    """Blur a random share of the images, each with its own standard deviation."""
    rows = (uniform((len(images),), generator) < views.blur).nonzero().squeeze(1)
    sigma = uniform((len(images),), generator, *views.sigma) * images.shape[-2]
    if not len(rows):
        return images
    radius = max(1, math.ceil(2 * views.sigma[1] * images.shape[-2]))
    return images.index_copy(0, rows, gaussian_blur(images[rows], sigma[rows], radius))


def gaussian_blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur each image with its own Gaussian.

    Args:
        images: (B, 3, h, w) float.
        sigma: (B,) standard deviations in pixels, above 0.
        radius: Where the kernel is cut, in pixels; edges are reflected, so it must be below h and w.
    """
    count, channels, height, width = images.shape
    distance = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.softmax(-0.5 * (distance / sigma[:, None]) ** 2, dim=1).repeat_interleave(channels, dim=0)
    flat = F.pad(images.reshape(1, count * channels, height, width), (radius,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=count * channels)
    return F.conv2d(flat, kernel[:, None, None, :], groups=count * channels).view_as(images)

"""Inpainting: predict hidden patches of an image from the others."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from lightly.models.utils import get_at_index, repeat_token, set_at_index
from torch import Tensor, nn

from catalign.encoders.base import Encoded
from catalign.encoders.image import ImageEncoder, sincos_positions
from catalign.errors import CatalignError
from catalign.objectives.base import Batch, Forward, Objective, full_precision, masked_mean, present, uniform
from catalign.objectives.views import Views, augment
from catalign.registry import register

CROP = Views(
    scale=(0.5, 1.0), jitter=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, greyscale=0.0, blur=0.0
)
"""What masked autoencoders need of augmentation: a crop and a mirror."""


@register("objective", "inpainting")
class Inpainting(Objective):
    """Reconstruct what is hidden.

    When to use: alone, or with ``simclr``, whose views are then masked and encoded once for both tasks (CAN, Mishra et
    al. 2022, https://arxiv.org/abs/2210.16870). It keeps the detail that contrast ignores.

    The form follows the encoder. A ViT encodes the visible patches only, at a quarter of the cost, and a light
    transformer fills in the rest (MAE, He et al. 2022, https://arxiv.org/abs/2111.06377). A convolutional backbone sees
    the image with its hidden patches painted in the mean colour, and light convolutions decode its last feature map
    (context encoders, Pathak et al. 2016, https://arxiv.org/abs/1604.07379); give it blocks. The loss is the squared
    error over hidden patches.

    Args:
        encoders: Needs ``image``.
        ratio: Share of patches hidden.
        block: Side of what is hidden together, in patches; 1 hides single patches anywhere.
        patch: Side of a patch in input pixels, for convolutional backbones; a ViT has its own.
        norm_pix: Predict pixels relative to their patch's mean and spread, which favours detail.
        width: Width of the decoder.
        depth: Its blocks, for a ViT.
        views: Augmentation of training images when no other objective of the stream makes views; null for none.

    Returns of ``forward``:
        ``loss``: mean squared error in normalised colours (of the patch with ``norm_pix``). ``trivial_loss``: that of
        one colour per patch: its own mean with ``norm_pix``, else the mean of the image's visible part.

    Raises:
        CatalignError: The ratio leaves nothing to hide or to see, or the patch does not divide the input.
    """

    modalities = ("image",)
    stream = "image_views"
    corrupts = True

    def __init__(
        self,
        encoders: nn.ModuleDict,
        *,
        ratio: float = 0.75,
        block: int = 1,
        patch: int = 8,
        norm_pix: bool = True,
        width: int = 128,
        depth: int = 2,
        views: Views | None = CROP,
    ) -> None:
        super().__init__(encoders)
        image: ImageEncoder = self.encoder("image")
        self.block, self.norm_pix, self.views = block, norm_pix, views
        self.patch = image.patch if image.is_vit else (patch, patch)
        if any(side % part for side, part in zip(image.size, self.patch)):
            raise CatalignError(f"inpainting: patch {patch} does not divide the input {list(image.size)}")
        self.grid = (image.size[0] // self.patch[0], image.size[1] // self.patch[1])
        total = self.grid[0] * self.grid[1]
        self.hidden = round(ratio * total)
        if not 0 < self.hidden < total:
            raise CatalignError(f"inpainting: ratio {ratio} hides {self.hidden} of {total} patches", "0.75 is usual")
        out = 3 * self.patch[0] * self.patch[1]
        self.decoder: TokenDecoder | MapDecoder
        if image.is_vit:
            self.decoder = TokenDecoder(
                image.width, prefix=image.prefix, grid=self.grid, width=width, depth=depth, out=out
            )
        else:
            self.decoder = MapDecoder(image.width, source=image.grid, grid=self.grid, width=width, out=out)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Hide patches of ``image``, which becomes a view of its own unless it already is one (float).

        Adds ``inpainting_target``, the image as it was; ``inpainting_hidden`` (B, M) patch numbers; and for a ViT
        ``image_keep``, the tokens it encodes.
        """
        encoder: ImageEncoder = self.encoder("image")
        image = batch["image"]
        if not image.is_floating_point():
            if self.training and self.views is not None:
                image = encoder.normalise(augment(image, encoder.size, self.views, generator))
            else:
                image = encoder.to_input(image)
        order = mask_order(len(image), self.grid, self.block, generator)
        hidden, seen = order[:, : self.hidden].sort(dim=1).values, order[:, self.hidden :].sort(dim=1).values
        prepared = {**batch, "inpainting_target": image, "inpainting_hidden": hidden}
        if encoder.is_vit:
            prefix = torch.arange(encoder.prefix, device=image.device).expand(len(image), -1)
            return {**prepared, "image": image, "image_keep": torch.cat([prefix, seen + encoder.prefix], dim=1)}
        return {**prepared, "image": self._paint(image, hidden)}

    def _paint(self, image: Tensor, hidden: Tensor) -> Tensor:
        mask = torch.zeros(len(image), math.prod(self.grid), dtype=torch.bool, device=image.device)
        mask = mask.scatter(1, hidden, True).view(-1, 1, *self.grid)
        pixels = mask.repeat_interleave(self.patch[0], dim=2).repeat_interleave(self.patch[1], dim=3)
        return image.masked_fill(pixels, 0.0)  # the mean colour, images being normalised

    def forward(self, encode: Forward, batch: Batch) -> dict[str, Tensor]:
        """Predict the hidden patches and compare."""
        predicted = self.decoder(encode("image"), batch["inpainting_hidden"], batch.get("image_keep"))
        with full_precision(predicted.device):
            patches = self.patchify(batch["inpainting_target"])
            target = get_at_index(patches, batch["inpainting_hidden"])
            if self.norm_pix:
                mean, spread = patch_statistics(target)
                target, trivial = (target - mean) / spread, torch.zeros_like(target)
            else:
                trivial = self._visible_colour(patches, batch["inpainting_hidden"]).expand_as(target)
            valid = present(batch, "image")
            loss, baseline = (((guess - target) ** 2).mean((1, 2)) for guess in (predicted.to(target.dtype), trivial))
            return {"loss": masked_mean(loss, valid), "trivial_loss": masked_mean(baseline, valid)}

    def patchify(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, N, P) pixels of patches, row by row, colour last."""
        high, wide = self.patch
        return rearrange(image, "b c (rows high) (cols wide) -> b (rows cols) (high wide c)", high=high, wide=wide)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of :meth:`patchify`."""
        pattern = "b (rows cols) (high wide c) -> b c (rows high) (cols wide)"
        return rearrange(patches, pattern, rows=self.grid[0], high=self.patch[0], wide=self.patch[1])

    def _visible_colour(self, patches: Tensor, hidden: Tensor) -> Tensor:
        weights = torch.ones(patches.shape[:2], device=patches.device, dtype=patches.dtype).scatter(1, hidden, 0.0)
        colours = rearrange(patches, "b n (pixels c) -> b n pixels c", c=3).mean(2)
        mean = (colours * weights.unsqueeze(2)).sum(1) / weights.sum(1, keepdim=True)
        return mean.repeat(1, patches.shape[2] // 3).unsqueeze(1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """What the model makes of hidden patches, for pictures.

        With ``norm_pix`` the model predicts no patch's mean and spread; they are taken from the original, as in the
        paper's figures.

        Args:
            images: (B, 3, H, W) uint8.
            generator: Chooses what is hidden, on the images' device.

        Returns:
            Three (B, 3, h, w) uint8 batches: hidden patches in grey, hidden patches predicted, the original.
        """
        encoder: ImageEncoder = self.encoder("image")
        modes = encoder.training, self.training
        encoder.eval()
        self.eval()
        batch = self.prepare({"image": images}, generator)
        hidden = batch["inpainting_hidden"]
        predicted = self.decoder(Forward(self.encoders, batch)("image"), hidden, batch.get("image_keep")).float()
        encoder.train(modes[0])
        self.train(modes[1])
        patches = self.patchify(batch["inpainting_target"])
        if self.norm_pix:
            mean, spread = patch_statistics(get_at_index(patches, hidden))
            predicted = predicted * spread + mean
        filled = self.unpatchify(set_at_index(patches, hidden, predicted))
        shown = self._paint(batch["inpainting_target"], hidden), filled, batch["inpainting_target"]
        return tuple(encoder.denormalise(image) for image in shown)  # type: ignore[return-value]


class TokenDecoder(nn.Module):
    """Light transformer that fills a mask token into every hidden place, and a linear layer to pixels.

    The encoder's pooled vector goes first, as the class token does in MAE, so that it learns whichever way it is made.

    Args:
        features: Width of the encoder.
        prefix: Tokens that ``keep`` counts before the patches.
        grid: Rows and columns of patches.
        width: Width of the decoder, a multiple of 4.
        depth: Its blocks.
        out: Numbers predicted per patch.
    """

    def __init__(self, features: int, *, prefix: int, grid: tuple[int, int], width: int, depth: int, out: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(features, width)
        heads = max(1, width // 32)
        self.blocks = MaskedVisionTransformerDecoderTIMM(
            num_patches=grid[0] * grid[1], embed_dim=width, depth=depth, num_heads=heads, initialize_weights=False
        )
        self.head = nn.Linear(width, out)
        self.apply(init_weights)
        nn.init.normal_(self.blocks.mask_token, std=0.02)
        self.blocks.pos_embed.data.copy_(sincos_positions(width, grid, prefix=1))  # lightly's supposes a square grid

    def forward(self, encoded: Encoded, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """Predict the patches ``hidden`` (B, M) from those encoded, ``keep`` (B, prefix + K): (B, M, out)."""
        assert keep is not None
        known = self.embed(torch.cat([encoded.pooled.unsqueeze(1), encoded.tokens], dim=1))
        place = F.pad(keep[:, self.prefix :] - self.prefix + 1, (1, 0))
        tokens = repeat_token(self.blocks.mask_token, (len(keep), self.blocks.sequence_length)).to(known.dtype)
        decoded = self.blocks(set_at_index(tokens, place, known))
        return self.head(get_at_index(decoded, hidden + 1))


class MapDecoder(nn.Module):
    """Light convolutions that double a feature map until it has one cell per patch.

    Args:
        features: Width of the encoder.
        source: Rows and columns of its last feature map.
        grid: Rows and columns of patches.
        width: Width of the decoder.
        out: Numbers predicted per patch.
    """

    def __init__(self, features: int, *, source: tuple[int, int], grid: tuple[int, int], width: int, out: int) -> None:
        super().__init__()
        self.source = source
        layers: list[nn.Module] = [nn.Conv2d(features, width, 1)]
        size = source
        while size != grid:
            size = (min(2 * size[0], grid[0]), min(2 * size[1], grid[1]))
            layers += [
                nn.Upsample(size, mode="bilinear", align_corners=False),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(1, width),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out, 1))

    def forward(self, encoded: Encoded, hidden: Tensor, keep: Tensor | None = None) -> Tensor:
        """Predict the patches ``hidden`` (B, M) from the feature map: (B, M, out)."""
        tokens = rearrange(encoded.tokens, "b (rows cols) d -> b d rows cols", rows=self.source[0])
        return get_at_index(rearrange(self.layers(tokens), "b p rows cols -> b (rows cols) p"), hidden)


def mask_order(count: int, grid: tuple[int, int], block: int, generator: torch.Generator) -> Tensor:
    """Patch numbers in the random order in which they are hidden: (count, N).

    The grid is covered with blocks of ``block`` × ``block`` patches from a random corner; blocks come in random order.
    """
    device = generator.device

    def cells(length: int) -> Tensor:
        offset = torch.randint(block, (count, 1), generator=generator, device=device)
        return (torch.arange(length, device=device) + offset) // block

    rows, columns = cells(grid[0]), cells(grid[1])
    noise = uniform((count, grid[0] + 1, grid[1] + 1), generator)
    image = torch.arange(count, device=device).view(-1, 1, 1)
    return noise[image, rows.unsqueeze(2), columns.unsqueeze(1)].flatten(1).argsort(dim=1, stable=True)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each patch's numbers: (B, N, P) -> two (B, N, 1)."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()

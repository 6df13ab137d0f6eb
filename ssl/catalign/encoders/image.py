"""Image encoders: any timm backbone; a ViT can encode visible patches only."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.utils import get_2d_sine_cosine_positional_embedding_from_grid
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop

from catalign.encoders.base import Encoded, Encoder
from catalign.encoders.convolution import speed_up_small_maps
from catalign.errors import CatalignError
from catalign.registry import register


@register("encoder", "timm")
class ImageEncoder(Encoder):
    """A timm backbone (Wightman 2019, https://github.com/huggingface/pytorch-image-models).

    Reads ``image`` (B, 3, H, W): uint8 as stored, resized and normalised here on the device; or float, already of
    the input's size and normalised (what views are). A ViT also reads ``image_keep`` (B, K): the indices of the tokens
    to encode, prefix tokens counted first, as lightly counts them; the others cost nothing (He et al. 2022).

    Args:
        model: A timm model name.
        size: Height and width of the input in pixels.
        pretrained: Load timm's weights (from the network on first use).
        pooling: ``avg`` over cells or patches (a convolutional model's own head, norm included), or a ViT's class
            ``token``.
        crop_pct: In evaluation, the middle share of a stored photo's height and width that is seen. Training on random
            crops shows things larger than they are, so that .9 may find more (Touvron et al. 2019, FixRes,
            https://arxiv.org/abs/1906.06423).
        mirror: In evaluation ``pooled`` is the mean over a photo and its mirror image, for twice the time.
        kwargs: Further arguments of ``timm.create_model``, such as ``{patch_size: 8, depth: 4}``.

    Attributes:
        is_vit: Whether ``image_keep`` is understood.
        size: Height and width of the input.
        grid: Rows and columns of the token map.
        patch: Height and width of one token in input pixels.
        prefix: Tokens before the first patch (class and register tokens).

    Raises:
        CatalignError: An unknown model, arguments it does not take, a size it cannot have, or a ``crop_pct`` outside
            of 0 to 1.
    """

    modality = "image"
    keys = ("image", "image_keep")
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        model: str = "resnet18",
        size: tuple[int, int] = (64, 64),
        pretrained: bool = False,
        pooling: Literal["avg", "token"] = "avg",
        crop_pct: float = 1.0,
        mirror: bool = False,
        kwargs: dict[str, Any] = {},  # noqa: B006 - never changed
    ) -> None:
        super().__init__()
        if not 0 < crop_pct <= 1:
            raise CatalignError(f"config key encoder.image.crop_pct: {crop_pct} is no share", "give one like 0.9")
        self.size: tuple[int, int] = (size[0], size[1])
        self.pooling, self.crop_pct, self.mirror = pooling, crop_pct, mirror
        backbone = create_backbone(model, self.size, pretrained, kwargs)
        speed_up_small_maps(backbone)
        self.is_vit = is_plain_vit(backbone)
        self.prefix: int = getattr(backbone, "num_prefix_tokens", 0)
        self.width: int = backbone.num_features
        self._channels_last_map = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        for name in ("mean", "std"):
            value = torch.tensor(backbone.default_cfg[name]).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.model: Any
        if self.is_vit:
            self.grid: tuple[int, int] = tuple(backbone.patch_embed.grid_size)
            self.model = masked_vit(backbone, fresh=not pretrained)
        else:
            self.model = backbone
            self.grid = self._probe_grid()
        self.patch = (self.size[0] // self.grid[0], self.size[1] // self.grid[1])
        if pooling == "token" and not self.prefix:
            raise CatalignError(f"config key encoder.image: {model} has no class token", "use pooling: avg")

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) colours in [0, 1] -> the scale that the backbone expects."""
        return (images - self.mean) / self.std

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`, as uint8."""
        return ((images * self.std + self.mean).clamp(0, 1) * 255).round().to(torch.uint8)

    def to_input(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 of any size -> (B, 3, h, w) float of the input's size, normalised."""
        if self.crop_pct < 1 and not self.training:
            images = center_crop(images, [round(side * self.crop_pct) for side in images.shape[-2:]])
        images = images.float() / 255
        if tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.normalise(images)

    def forward(self, batch: Mapping[str, Tensor]) -> Encoded:
        """Encode ``image``, or of a ViT only the tokens ``image_keep``. Tokens leave out the prefix."""
        images = batch["image"]
        if not images.is_floating_point():
            images = self.to_input(images)
        images = images.to(self._dtype(), memory_format=self._memory_format())
        tokens, pooled = self._encode(images, batch.get("image_keep"))
        if self.mirror and not self.training:
            pooled = (pooled + self._encode(images.flip(-1), None)[1]) / 2
        return Encoded(tokens=tokens[:, self.prefix :], pooled=pooled)

    def _encode(self, images: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens, the prefix among them, and pooled."""
        if self.is_vit:
            tokens = self.model.encode(images, idx_keep=keep)
            return tokens, self.model.vit.fc_norm(self._pool(tokens))
        features = self.model.forward_features(images)
        tokens = self._as_tokens(features)
        head = self.model.forward_head(features, pre_logits=True) if features.ndim == 4 else None
        # Mobile networks widen their features in the head; their pooled vector is a plain mean instead.
        return tokens, head if head is not None and head.shape[-1] == self.width else self._pool(tokens)

    def _pool(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.pooling == "token" else tokens[:, self.prefix :].mean(1)

    def _as_tokens(self, features: Tensor) -> Tensor:
        if features.ndim == 3:
            return features
        return features.flatten(1, 2) if self._channels_last_map else features.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def _probe_grid(self) -> tuple[int, int]:
        training = self.training
        features = self.eval().model.forward_features(torch.zeros(1, 3, *self.size))
        self.train(training)
        if features.ndim == 4:
            return tuple(features.shape[1:3] if self._channels_last_map else features.shape[2:])
        rows = round(((features.shape[1] - self.prefix) * self.size[0] / self.size[1]) ** 0.5)
        return rows, (features.shape[1] - self.prefix) // rows

    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _memory_format(self) -> torch.memory_format:
        for weight in self.model.parameters():
            if weight.ndim == 4 and min(weight.shape[1], weight.shape[2]) > 1:  # of others the two formats look alike
                return torch.channels_last if weight.stride(1) == 1 else torch.contiguous_format
        return torch.contiguous_format


def create_backbone(model: str, size: tuple[int, ...], pretrained: bool, kwargs: dict[str, Any]) -> Any:
    """A timm model without classifier, made for images of ``size``.

    Raises:
        CatalignError: An unknown model, arguments it does not take, or a size it cannot have.
    """
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise CatalignError(f"unknown timm model {model!r}", f"{hint}timm.list_models() names all of them")
    fixed = timm.get_pretrained_cfg(model, allow_unregistered=False)
    shape = {"img_size": size} if fixed is not None and fixed.fixed_input_size else {}
    try:
        backbone: Any = timm.create_model(model, pretrained=pretrained, num_classes=0, **{**shape, **kwargs})
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CatalignError(f"config key encoder.image: timm cannot make {model} at {list(size)}: {reason}") from None
    patch = backbone.patch_embed.patch_size if is_plain_vit(backbone) else (1, 1)
    if any(side % part for side, part in zip(size, patch)):
        raise CatalignError(
            f"config key encoder.image: size {list(size)} is not a multiple of the patch {list(patch)}",
            "choose another size, or kwargs: {patch_size: …}",
        )
    return backbone


def is_plain_vit(backbone: Any) -> bool:
    """Whether lightly's masked ViT understands a model. Its subclasses add tokens of their own."""
    return type(backbone) is VisionTransformer


def masked_vit(vit: Any, *, fresh: bool) -> MaskedVisionTransformerTIMM:
    """Wrap a ViT so that it can encode chosen tokens only.

    Args:
        vit: timm's transformer.
        fresh: Initialise it as MAE does, with fixed sine-cosine positions; otherwise its weights stay as they are.
    """
    unused = nn.Parameter(torch.zeros(1, 1, vit.embed_dim), requires_grad=False)  # we drop patches, never replace them
    model = MaskedVisionTransformerTIMM(
        vit,
        mask_token=unused,
        weight_initialization="" if fresh else "skip",
        pos_embed_initialization="skip",  # lightly's supposes a square grid
    )
    if fresh:
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        with torch.no_grad():
            vit.pos_embed.copy_(sincos_positions(vit.embed_dim, vit.patch_embed.grid_size, prefix))
        vit.pos_embed.requires_grad_(False)
    return model


def sincos_positions(width: int, grid: tuple[int, int], prefix: int) -> Tensor:
    """Two-dimensional sine-cosine positions for a grid of any shape.

    Args:
        width: A multiple of 4.
        grid: Rows and columns.
        prefix: Zero vectors put first.

    Returns:
        (1, prefix + rows * columns, width) float.
    """
    if width % 4:
        raise CatalignError(f"sine-cosine positions need a width that is a multiple of 4, not {width}")
    columns, rows = np.meshgrid(np.arange(grid[1], dtype=np.float32), np.arange(grid[0], dtype=np.float32))
    positions = get_2d_sine_cosine_positional_embedding_from_grid(width, np.stack([columns, rows]))
    return F.pad(torch.from_numpy(positions).float(), (0, 0, prefix, 0)).unsqueeze(0)

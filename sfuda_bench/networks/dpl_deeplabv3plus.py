"""The DeepLabv3+ of DPL and CPR: MobileNetV2, a boundary branch, three kinds of dropout.

Module names are those of the released checkpoints, so that their state dicts load by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, interpolate, pad

from sfuda_bench.errors import UsageError
from sfuda_bench.networks.encoder_weights import (
    flat_mobilenet_keys,
    load_encoder_state,
    pretrained_state,
    read_encoder_file,
    require_pretrained,
)
from sfuda_bench.networks.taps import Encoded, SegmentationNetwork, refused_single_image
from sfuda_bench.networks.upsampled_convolution import UpsampledConvolution

_ENCODER = "mobilenet_v2"
_BLOCKS = (  # expansion, channels, repeats, stride of the first, dilation
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 1),
    (6, 32, 3, 2, 1),
    (6, 64, 4, 2, 1),
    (6, 96, 3, 1, 1),
    (6, 160, 3, 1, 1),
    (6, 320, 1, 1, 2),
)
_LOW_BLOCKS = 4  # the stem and three blocks end at stride 4
_LOW, _HIGH, _CONTEXT, _REDUCED = 24, 320, 256, 48
_MERGED = _CONTEXT + _REDUCED
_FEATURE = _MERGED + 1  # and the boundary's logit
_ALIAS = re.compile(r"^backbone\.(low|high)_level_features\.(\d+)\.")
_SIMILARITY_HEAD = ("aff_cup.", "aff_disc.", "bn_cup.", "bn_disc.")


class DplDeepLabV3Plus(SegmentationNetwork):
    """DeepLabv3+ on MobileNetV2 at output stride 16 with two sigmoid channels, cup first.

    Dropout acts after the ASPP (0.5), twice in the boundary branch (0.5, 0.1) and in the mask head
    (0.1), in this order. The boundary's logit is an input of the mask head, so its branch always
    runs. In train mode the batch norm of the ASPP's pooling branch sees one value per image and
    channel: a batch of one image is refused. ``pooling_bn = False`` leaves that layer out.

    5,812,135 parameters: backbone 1,811,712, ASPP 2,706,432, decoder 1,293,991.

    Args:
        encoder: ``"mobilenet_v2"``, the only one.
        encoder_weights: ``None`` or ``"none"`` for random ones, ``"imagenet"``, or a local file
            with the state dict of a MobileNetV2 (``.safetensors``, ``.pth``), in the layout of
            this backbone or in torchvision's.

    Raises:
        UsageError: Another encoder.
        DataError: The weights file is missing or does not fit.
        EnvironmentProblem: ImageNet weights that are neither cached nor downloadable.

    Source: released code of DPL (MICCAI 2021) and CPR (MICCAI 2023), ``networks/``. Departure:
        ``encode`` ends before the first dropout; ``forward`` returns the mask logits alone.
    """

    feature_channels = _FEATURE
    high_channels = _HIGH

    def __init__(self, encoder: str = _ENCODER, encoder_weights: str | Path | None = None) -> None:
        super().__init__()
        if encoder != _ENCODER:
            raise UsageError(
                f"network 'dpl_deeplabv3plus' has no encoder '{encoder}'; its only one is "
                f"{_ENCODER}",
                hint=f"--encoder {_ENCODER}, or --network deeplabv3plus for other encoders",
            )
        weights = None if encoder_weights == "none" else encoder_weights
        if weights == "imagenet":
            require_pretrained(_ENCODER)
        self.pooling_bn = True
        self.backbone = _Backbone()
        self.aspp = _Pyramid()
        self.decoder = _Decoder()
        _initialise(self)
        if weights is not None:
            imagenet = weights == "imagenet"
            state = pretrained_state(_ENCODER) if imagenet else read_encoder_file(Path(weights))
            load_encoder_state(self.backbone, flat_mobilenet_keys(state), f"'{weights}'")

    def encode(self, image: Tensor) -> Encoded:
        """Return context (256 channels), backbone output (320) and low-level features (48).

        Args:
            image: (B, 3, H, W) float, normalised; H and W divisible by 16.

        Raises:
            UsageError: A side not divisible by 16, or one image in train mode.
        """
        size = self.checked_size(image)
        low, high = self.backbone(image)
        return Encoded(self.pyramid(high), self.decoder.reduce(low), size, high)

    def pyramid(self, high: Tensor) -> Tensor:
        """Return the context map before its dropout, made of the backbone's output.

        Args:
            high: (B, 320, H/16, W/16) float.

        Raises:
            UsageError: One image in train mode.
        """
        with refused_single_image(high):
            return cast(Tensor, self.aspp(high, self.pooling_bn))

    def context(self, encoded: Encoded) -> Tensor:
        """Return the (B, 256, H/16, W/16) map after the ASPP's dropout."""
        return cast(Tensor, self.aspp.dropout(encoded.context))

    def decode(self, context: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return ``logits`` (B, 2, H, W) and ``feature`` (B, 305, H/4, W/4).

        The feature is the up-sampled context (256), the low-level features (48) and the boundary's
        logit, as they enter the batch norm of the mask head.
        """
        logits, feature = self.decoder(context, encoded.low)
        return _resize(logits, encoded.size), feature

    def repeated_decoder(self, encoded: Encoded) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return ``decode`` with the boundary's first convolution done on the context's grid.

        It draws the same random numbers; its logits differ from ``decode`` by float rounding.
        """
        weight = cast(Tensor, self.decoder.last_conv_boundary[0].weight)
        height, width = encoded.context.shape[-2:]
        first = UpsampledConvolution(weight, encoded.low, (height, width))

        def decode(context: Tensor) -> tuple[Tensor, Tensor]:
            logits, feature = self.decoder(context, encoded.low, first)
            return _resize(logits, encoded.size), feature

        return decode

    def own_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return the state dict of this network in a released checkpoint, and what is not of it.

        The released backbone repeats its tensors as ``backbone.low_level_features.*`` and
        ``backbone.high_level_features.*``: they stand in where ``backbone.features.*`` is missing.
        The keys of the similarity head, a module of its own here, are left out.
        """
        own: dict[str, Tensor] = {}
        ignored = []
        for name, value in state.items():
            if name.startswith(_SIMILARITY_HEAD):
                ignored.append(name)
                continue
            plain = _ALIAS.sub(_without_alias, name)
            if plain != name and plain in state:
                ignored.append(name)
            else:
                own[plain] = value
        return own, ignored

    def sampled_dropout(self) -> list[nn.Module]:
        """Return the four dropout modules in the order in which they draw."""
        boundary, mask = self.decoder.last_conv_boundary, self.decoder.last_conv
        return [self.aspp.dropout, boundary[3], boundary[7], mask[2]]


def _without_alias(match: re.Match[str]) -> str:
    shift = 0 if match[1] == "low" else _LOW_BLOCKS
    return f"backbone.features.{int(match[2]) + shift}."


class _Backbone(nn.Module):
    """MobileNetV2 without its last convolution and classifier."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU6(inplace=True),
            )
        ]
        channels = 32
        for expansion, outputs, repeats, stride, dilation in _BLOCKS:
            for position in range(repeats):
                step = stride if position == 0 else 1
                blocks.append(_InvertedResidual(channels, outputs, step, dilation, expansion))
                channels = outputs
        self.features = nn.Sequential(*blocks)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features at stride 4 (24 channels) and at stride 16 (320)."""
        low: Tensor = self.features[:_LOW_BLOCKS](image)
        return low, self.features[_LOW_BLOCKS:](low)


class _InvertedResidual(nn.Module):
    """Expand, convolve depth-wise, project; the block's input is padded before the expansion.

    So the depth-wise convolution sees ReLU6(BN(0)) beyond the border and not 0.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, dilation: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand: list[nn.Module] = []
        if expansion != 1:
            expand = [
                nn.Conv2d(inputs, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(inplace=True),
            ]
        self.conv = nn.Sequential(
            *expand,
            nn.Conv2d(hidden, hidden, 3, stride, dilation=dilation, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.dilation = dilation
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output at 1/stride of the input's size."""
        y: Tensor = self.conv(pad(x, [self.dilation] * 4))
        return x + y if self.shortcut else y


class _Atrous(nn.Module):
    """Convolution, batch norm and ReLU at one dilation of the pyramid; 1 is a 1x1 convolution."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        kernel, padding = (1, 0) if dilation == 1 else (3, dilation)
        self.atrous_conv = nn.Conv2d(
            _HIGH, _CONTEXT, kernel, padding=padding, dilation=dilation, bias=False
        )
        self.bn = nn.BatchNorm2d(_CONTEXT)

    def forward(self, high: Tensor) -> Tensor:
        """Return (B, 256, h, w)."""
        return torch.relu_(self.bn(self.atrous_conv(high)))


class _Pyramid(nn.Module):
    """Atrous spatial pyramid pooling at rates 1, 6, 12, 18 and over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.aspp1, self.aspp2, self.aspp3, self.aspp4 = (_Atrous(rate) for rate in (1, 6, 12, 18))
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(_HIGH, _CONTEXT, 1, bias=False),
            nn.BatchNorm2d(_CONTEXT),
            nn.ReLU(),
        )
        self.conv1 = nn.Conv2d(5 * _CONTEXT, _CONTEXT, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_CONTEXT)
        self.dropout = nn.Dropout(0.5)

    def forward(self, high: Tensor, pooling_bn: bool) -> Tensor:
        """Return the projected (B, 256, h, w) map before the dropout."""
        average, convolution, norm, activation = self.global_avg_pool
        pooled = convolution(average(high))
        pooled = activation(norm(pooled) if pooling_bn else pooled)
        atrous = [branch(high) for branch in (self.aspp1, self.aspp2, self.aspp3, self.aspp4)]
        size = (high.shape[-2], high.shape[-1])
        merged = torch.cat([*atrous, _resize(pooled, size)], dim=1)
        return torch.relu_(self.bn1(self.conv1(merged)))


class _Decoder(nn.Module):
    """Merge context and low-level features; the boundary branch feeds the mask head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(_LOW, _REDUCED, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_REDUCED)
        self.last_conv = nn.Sequential(
            nn.BatchNorm2d(_FEATURE),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(_FEATURE, 2, 1),
        )
        self.last_conv_boundary = nn.Sequential(
            nn.Conv2d(_MERGED, _CONTEXT, 3, padding=1, bias=False),
            nn.BatchNorm2d(_CONTEXT),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(_CONTEXT, _CONTEXT, 3, padding=1, bias=False),
            nn.BatchNorm2d(_CONTEXT),
            nn.ReLU(inplace=True),
            nn.Dropout(0.1),
            nn.Conv2d(_CONTEXT, 1, 1),
        )

    def reduce(self, low: Tensor) -> Tensor:
        """Return the 48 low-level channels that are merged with the context."""
        return torch.relu_(self.bn1(self.conv1(low)))

    def forward(
        self, context: Tensor, low: Tensor, first: UpsampledConvolution | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, 2, h, w) at the size of ``low`` and the (B, 305, h, w) feature.

        ``first`` replaces the first convolution of the boundary branch by an equal one.
        """
        merged = torch.cat([_resize(context, (low.shape[-2], low.shape[-1])), low], dim=1)
        begin, rest = self.last_conv_boundary[0], self.last_conv_boundary[1:]
        boundary = _run(rest, begin(merged) if first is None else first(context))
        feature = torch.cat([merged, boundary], dim=1)
        del merged, boundary
        return _run(self.last_conv, feature), feature


def _run(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Return ``layers(x)`` with as few maps alive as possible; dropout draws are the same."""
    for layer in layers:
        if isinstance(layer, nn.Dropout) and not torch.is_grad_enabled():
            x = dropout(x, layer.p, layer.training, inplace=True)
        else:
            x = layer(x)
    return x


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(x, size, mode="bilinear", align_corners=True)


def _initialise(network: nn.Module) -> None:
    """Draw Kaiming-normal convolution weights; biases and batch norm keep their defaults."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


def build(encoder: str = _ENCODER, encoder_weights: str | Path | None = None) -> DplDeepLabV3Plus:
    """Return a new :class:`DplDeepLabV3Plus`; random weights come from the global generator."""
    return DplDeepLabV3Plus(encoder, encoder_weights)

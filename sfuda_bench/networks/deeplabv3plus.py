"""DeepLabv3+ of segmentation-models-pytorch, with the taps of a segmentation network."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders import encoders
from torch import Tensor, nn

from sfuda_bench.errors import UsageError
from sfuda_bench.networks.encoder_weights import load_encoder_file, require_pretrained
from sfuda_bench.networks.taps import Encoded, SegmentationNetwork, refused_single_image


class DeepLabV3Plus(SegmentationNetwork):
    """DeepLabv3+ at output stride 16 with two sigmoid channels, cup first.

    Its only dropout (0.5) follows the projection of the ASPP, so Monte-Carlo dropout spreads less
    than on the DPL network, which has three. In train mode the batch norm of the ASPP's pooling
    branch sees one value per image and channel: a batch of one image is refused.

    The keys of its state dict are those of the library's own network.

    Args:
        encoder: Any encoder of the library by name; ``tu-NAME`` for timm's.
        encoder_weights: ``None`` or ``"none"`` for random ones, ``"imagenet"``, or a local file
            with the encoder's state dict (``.safetensors``, ``.pth``).
        atrous_rates: Dilations of the three ASPP convolutions, in cells at stride 16.

    Raises:
        UsageError: Unknown encoder, or one that cannot be built at output stride 16.
        DataError: The weights file is missing or does not fit.
        EnvironmentProblem: ImageNet weights that are neither cached nor downloadable.

    Source: Chen et al., ECCV 2018. The library's default rates 12, 24, 36 are for stride 8; at
        stride 16 the paper uses 6, 12, 18.
    """

    def __init__(
        self,
        encoder: str = "mobilenet_v2",
        encoder_weights: str | Path | None = None,
        atrous_rates: Sequence[int] = (6, 12, 18),
    ) -> None:
        super().__init__()
        weights = None if encoder_weights == "none" else encoder_weights
        imagenet = weights == "imagenet"
        if imagenet:
            _check_encoder_name(encoder)
            require_pretrained(encoder)
        model = _build_library_network(encoder, "imagenet" if imagenet else None, atrous_rates)
        self.encoder: nn.Module = model.encoder
        self.decoder: Any = model.decoder
        self.segmentation_head: nn.Sequential = model.segmentation_head
        self.feature_channels = cast(nn.Conv2d, self.segmentation_head[0]).in_channels
        self.high_channels = model.encoder.out_channels[-1]
        if weights is not None and not imagenet:
            load_encoder_file(self.encoder, Path(weights))

    def encode(self, image: Tensor) -> Encoded:
        """Return context (256 channels, stride 16) and low-level features (48, stride 4).

        Args:
            image: (B, 3, H, W) float, normalised; H and W divisible by 16.

        Raises:
            UsageError: A side not divisible by 16, or one image in train mode.
        """
        size = self.checked_size(image)
        features = self.encoder(image)
        context = self.pyramid(features[-1])
        return Encoded(context, self.decoder.block1(features[2]), size, features[-1])

    def pyramid(self, high: Tensor) -> Tensor:
        """Return the context map before its dropout, made of the backbone's output.

        Args:
            high: (B, C, H/16, W/16) float.

        Raises:
            UsageError: One image in train mode.
        """
        aspp = self.decoder.aspp[0]
        with refused_single_image(high):  # by the pooling branch, the last of them
            branches = torch.cat([branch(high) for branch in aspp.convs], dim=1)
        convolution, norm, activation, _ = aspp.project
        context: Tensor = activation(norm(convolution(branches)))
        return context

    def context(self, encoded: Encoded) -> Tensor:
        """Return the (B, 256, H/16, W/16) map after the ASPP's dropout."""
        return cast(Tensor, self.decoder.aspp[0].project[-1](encoded.context))

    def decode(self, context: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return ``logits`` (B, 2, H, W) and ``feature`` (B, 256, H/4, W/4)."""
        _, convolution, norm, activation = self.decoder.aspp
        feature = self.decoder.up(activation(norm(convolution(context))))
        feature = torch.cat([feature, encoded.low], dim=1)
        separable, *rest = self.decoder.block2
        for layer in (*separable, *rest):  # a call of the whole would keep its input alive
            feature = layer(feature)
        return self.segmentation_head(feature), feature

    def sampled_dropout(self) -> list[nn.Module]:
        """Return the dropout of the ASPP."""
        return [self.decoder.aspp[0].project[-1]]


def build(
    encoder: str = "mobilenet_v2", encoder_weights: str | Path | None = None
) -> DeepLabV3Plus:
    """Return a new :class:`DeepLabV3Plus`; random weights come from the global generator."""
    return DeepLabV3Plus(encoder, encoder_weights)


def _check_encoder_name(encoder: str) -> None:
    known: list[str] = list(encoders)
    if encoder in known or encoder.startswith(("tu-", "timm-")):
        return
    near = difflib.get_close_matches(encoder.lower(), known, n=1, cutoff=0.6)
    raise UsageError(
        f"unknown encoder '{encoder}'" + (f" (did you mean '{near[0]}'?)" if near else ""),
        hint=f"known: {', '.join(known[:8])}, ... or tu-NAME for an encoder of timm",
    )


def _build_library_network(encoder: str, weights: str | None, atrous_rates: Sequence[int]) -> Any:
    _check_encoder_name(encoder)
    try:
        return smp.DeepLabV3Plus(
            encoder_name=encoder,
            encoder_weights=weights,
            encoder_output_stride=16,
            decoder_atrous_rates=tuple(atrous_rates),
            in_channels=3,
            classes=2,
        )
    except Exception as error:  # encoders without a dilated form, names unknown to timm
        raise UsageError(
            f"encoder '{encoder}' cannot be built at output stride 16: {error}",
            hint="--encoder mobilenet_v2",
        ) from error

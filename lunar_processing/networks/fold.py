"""The same network with less to compute: for prediction only, and equal but for rounding."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


def folded(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch normalisations have become part of the layers before them.

    Only inside `nn.Sequential`, where it is certain what comes after what. Transposed convolutions that do not widen
    become plain ones, for which processors have faster code.
    """
    copy = deepcopy(network).eval()
    for part in copy.modules():
        if isinstance(part, nn.Sequential):
            _fold(part)
    return copy


class Asked(nn.Module):
    """A network whose `forward` is one of its methods, for those who convert nothing else."""

    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        """What the method answers."""
        answer: torch.Tensor = getattr(self.network, self.method)(*given)
        return answer


def _fold(layers: nn.Sequential) -> None:
    for i, (layer, after) in enumerate(zip(layers, [*list(layers)[1:], nn.Identity()])):
        fused = _fused(layer, after)
        if fused is not None:
            layers[i + 1] = nn.Identity()
        layers[i] = _plain(fused or layer)


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    if isinstance(norm, nn.BatchNorm2d):
        if isinstance(layer, nn.Conv2d):
            return fuse_conv_bn_eval(layer, norm)
        if isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1:
            return fuse_conv_bn_eval(layer, norm, transpose=True)
    if isinstance(norm, nn.BatchNorm1d) and isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return None


@torch.no_grad()
def _plain(layer: nn.Module) -> nn.Module:
    """A transposed convolution of stride 1 is a convolution with its kernels turned by 180°."""
    if not isinstance(layer, nn.ConvTranspose2d) or layer.groups > 1 or {*layer.stride, *layer.dilation} != {1}:
        return layer
    (high, wide), (down, across) = layer.weight.shape[2:], (int(p) for p in layer.padding)
    padding = (high - 1 - down, wide - 1 - across)
    if min(padding) < 0 or any(layer.output_padding):
        return layer
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, (high, wide), padding=padding)
    plain.weight.copy_(layer.weight.transpose(0, 1).flip(-1, -2))
    plain.bias = layer.bias
    return plain.to(layer.weight.device)

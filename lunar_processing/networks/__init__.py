"""Network architectures, one screen per idea. Torch only.

`FAMILIES` is how a model's card names its architecture; its settings are the keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lunar_processing.networks import scbgan
from lunar_processing.networks.convnet import ConvNet, Identity
from lunar_processing.networks.cyclegan import Generator
from lunar_processing.networks.encoders import EncoderUNet, PublishedUNet
from lunar_processing.networks.multiscale import MultiScale
from lunar_processing.networks.rocknet import RockNet
from lunar_processing.networks.shadow import ShadowNet
from lunar_processing.networks.unet import UNet
from lunar_processing.networks.vae import VAE

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "identity": Identity,
    "convnet": ConvNet,
    "unet": UNet,
    "multiscale": MultiScale,
    "unet-published": PublishedUNet,
    "unet-encoder": EncoderUNet,
    "vae": VAE,
    "rocknet": RockNet,
    "shadow": ShadowNet,
    "cyclegan": Generator,
    "scbgan": scbgan.Generator,
}

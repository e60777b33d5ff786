"""U-Nets on known classifiers: files of ImageNet weights made with torchvision fit them by name."""

from __future__ import annotations

import pytest
import torch

from lunar_processing.errors import ModelError
from lunar_processing.networks.encoders import ENCODERS, EncoderUNet, PublishedUNet, settled

# Parameters of torchvision's classifiers without their heads, and a few of their names and shapes
TORCHVISION = {
    "vgg11": (9_220_480, {"features.0.weight": (64, 3, 3, 3), "features.18.bias": (512,)}),
    "vgg11-bn": (9_225_984, {"features.25.weight": (512, 512, 3, 3), "features.26.running_var": (512,)}),
    "resnet18": (
        11_176_512,
        {
            "conv1.weight": (64, 3, 7, 7),
            "layer1.0.bn2.running_mean": (64,),
            "layer2.0.downsample.0.weight": (128, 64, 1, 1),
            "layer4.1.conv2.weight": (512, 512, 3, 3),
        },
    ),
    "mobilenetv3": (
        2_971_952,
        {
            "features.0.0.weight": (16, 3, 3, 3),
            "features.1.block.0.0.weight": (16, 1, 3, 3),
            "features.4.block.2.fc1.weight": (24, 72, 1, 1),
            "features.15.block.3.1.weight": (160,),
            "features.16.1.running_mean": (960,),
        },
    ),
    "efficientnet-lite0": (  # of its package on PyPI, its first ten blocks
        530_528,
        {
            "_conv_stem.weight": (32, 3, 3, 3),
            "_bn0.running_mean": (32,),
            "_blocks.3._depthwise_conv.weight": (144, 1, 5, 5),
            "_blocks.9._project_conv.weight": (112, 672, 1, 1),
        },
    ),
    "efficientnet-lite0-13": (1_401_088, {"_blocks.12._project_conv.weight": (192, 1152, 1, 1)}),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_those_of_torchvision(name):
    encoder, widths = ENCODERS[name]()
    count, some = TORCHVISION[name]
    assert sum(p.numel() for p in encoder.parameters()) == count
    there = encoder.state_dict()
    assert {key: tuple(there[key].shape) for key in some} == some
    maps = encoder.eval()(torch.rand(1, 3, 64, 64))
    assert [(m.shape[1], m.shape[2]) for m in maps] == [(w, 64 >> i) for i, w in enumerate(widths)]


def test_imagenet_weights_are_taken_by_name_and_the_head_is_left_alone():
    torch.manual_seed(1)
    given = {
        k: torch.randn_like(v) if v.is_floating_point() else v
        for k, v in ENCODERS["resnet18"]()[0].state_dict().items()
    }
    network = EncoderUNet("resnet18")
    network.load_imagenet({**given, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)})
    torch.testing.assert_close(network.encoder.state_dict()["layer3.1.conv1.weight"], given["layer3.1.conv1.weight"])


def test_weights_of_another_classifier_are_refused_by_name():
    given = ENCODERS["resnet18"]()[0].state_dict()
    with pytest.raises(ModelError, match=r"features\.0\.weight is missing"):
        EncoderUNet("vgg11").load_imagenet(given)
    with pytest.raises(ModelError, match=r"conv1\.weight is of another shape"):
        EncoderUNet("resnet18").load_imagenet({**given, "conv1.weight": torch.zeros(64, 1, 7, 7)})
    with pytest.raises(ModelError, match="vgg11"):
        EncoderUNet("alexnet")


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (33, 31)])
def test_any_size_comes_back_as_logits_of_its_classes(size):
    published = EncoderUNet("mobilenetv3", outputs=3, up=(8, 8, 8, 8, 16))
    for network in (EncoderUNet("efficientnet-lite0", outputs=3), published, PublishedUNet(outputs=3)):
        assert network.eval()(torch.rand(2, 1, *size)).shape == (2, 3, *size)


def test_grey_levels_are_brought_to_what_imagenet_expects():
    grey = torch.full((1, 1, 32, 32), 0.5)
    seen = EncoderUNet("resnet18")._as_colour(grey)
    torch.testing.assert_close(seen[0, :, 0, 0], torch.tensor([0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225]))
    assert EncoderUNet("resnet18", normalise=False)._as_colour(grey).unique().tolist() == [0.5]


def test_the_published_network_has_a_tenth_of_a_million_parameters_and_ends_in_softmax_if_wanted():
    network = PublishedUNet(softmax=True).eval()
    assert 0.08e6 < sum(p.numel() for p in network.parameters()) < 0.15e6
    torch.testing.assert_close(network(torch.rand(1, 1, 32, 32)).sum(dim=1), torch.ones(1, 32, 32))


def test_classes_that_are_alike_are_decided_together_with_their_surroundings():
    p = torch.full((1, 4, 9, 9), 0.02)
    p[:, 0] = 0.94  # ground
    p[0, :, 2:7, 2:7] = torch.tensor([0.36, 0.34, 0.28, 0.02])[:, None, None]  # a rim: likelier a rock than ground
    p[0, :, 3:6, 3:6] = torch.tensor([0.04, 0.02, 0.92, 0.02])[:, None, None]  # of a large rock
    assert p.argmax(dim=1)[0, 2, 2] == 0  # each for itself, no kind of rock is likelier than ground
    said = settled(p.log(), (1, 2), 5)
    kinds = said.argmax(dim=1)[0]
    assert (kinds[2:7, 2:7] == 2).all()
    assert (kinds == 2).sum() == 25
    torch.testing.assert_close(said.softmax(dim=1)[:, 1:3].sum(dim=1), p[:, 1:3].sum(dim=1), atol=1e-4, rtol=0)
    network = EncoderUNet("mobilenetv3", alike=(1, 2)).eval()
    x = torch.rand(1, 1, 40, 50)
    assert torch.equal(network(x), settled(network.logits(x), (1, 2), 31))


def test_where_size_tells_what_is_alike_apart_what_fills_more_of_its_surroundings_is_larger():
    p = torch.full((1, 4, 30, 60), 0.02)
    p[:, 0] = 0.94  # ground
    unsure = torch.tensor([0.04, 0.46, 0.48, 0.02])[:, None, None]
    p[0, :, 14:17, 9:12] = unsure  # a rock of 3 px
    p[0, :, 8:22, 38:52] = unsure  # one of 14 px
    kinds = settled(p.log(), (1, 2), 15).argmax(dim=1)[0]
    assert (kinds[15, 10], kinds[15, 45]) == (2, 2)
    kinds = settled(p.log(), (1, 2), 15, filled=0.15).argmax(dim=1)[0]
    assert (kinds[14:17, 9:12] == 1).all()
    assert (kinds[8:22, 38:52] == 2).all()
    assert ((kinds == 1) | (kinds == 2)).sum() == 3 * 3 + 14 * 14  # what is a rock stays as it was


def test_a_mirrored_network_says_the_same_of_an_image_and_of_the_image_in_a_mirror():
    torch.manual_seed(1)
    network, x = EncoderUNet("mobilenetv3").eval(), torch.rand(1, 1, 40, 64)
    once = network(x)
    assert not torch.allclose(network(x.flip(-1)).flip(-1), once, atol=1e-3)
    network.mirrored = True
    torch.testing.assert_close(network(x.flip(-1)).flip(-1), network(x), atol=1e-5, rtol=0)

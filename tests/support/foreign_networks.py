"""Other people's networks, written anew and small from what they published: names of tensors and arithmetic.

They share nothing with the networks of `pipeline.models`: what an import computes is compared with what these compute.
Each gives logits on its own grid, before any upsampling to the image. `width` is the number of filters of the first
convolution, 64 in the originals.
"""

import math
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def seeded(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep signals alive, the same on every machine: numpy promises RandomState for ever."""
    random = np.random.RandomState(seed)
    found = {}
    for name in sorted(shapes):
        size = tuple(shapes[name])
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            found[name] = torch.from_numpy(random.uniform(0.5, 1.5, size)).float()
        elif len(size) == 1 and name.endswith("weight"):
            found[name] = torch.from_numpy(random.uniform(0.3, 0.7, size)).float()
        elif len(size) == 1:
            found[name] = torch.from_numpy(random.normal(0, 0.2, size)).float()
        else:
            found[name] = torch.from_numpy(random.normal(0, (2 / np.prod(size[1:])) ** 0.5, size)).float()
    return found


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    network.load_state_dict(seeded(shapes_of(network), seed))
    return network.eval()


def image(height: int, width: int, seed: int = 0) -> Tensor:
    """Pixels from 0 to 1, red, green, blue."""
    random = np.random.RandomState(seed)
    return torch.from_numpy(random.uniform(0, 1, (1, 3, height, width))).float()


def conv(entering: int, leaving: int, kernel: int = 1, *, stride: int = 1, rate: int = 1, groups: int = 1) -> nn.Conv2d:
    padding = rate * (kernel // 2)
    return nn.Conv2d(entering, leaving, kernel, stride, padding, rate, groups, bias=False)


def layers(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


# ---------------------------------------------------------------- TensorFlow's DeepLab on MobileNetV2


class _Inverted(nn.Module):
    def __init__(self, entering: int, leaving: int, *, widen: int, stride: int, rate: int) -> None:
        super().__init__()
        inner, self.same = widen * entering, stride == 1 and entering == leaving
        first = [layers(conv(entering, inner), nn.BatchNorm2d(inner), nn.ReLU6())] if widen > 1 else []
        middle = conv(inner, inner, 3, stride=stride, rate=rate, groups=inner)
        middle = layers(middle, nn.BatchNorm2d(inner), nn.ReLU6())
        self.conv = layers(*first, middle, conv(inner, leaving), nn.BatchNorm2d(leaving))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + (x if self.same else 0)


class TensorFlowV3(nn.Module):
    """No atrous branches, image pooling in front; `width` of 32 filters, `head` of 256 at every width."""

    def __init__(self, classes: int, *, width: int, head: int) -> None:
        super().__init__()
        channels = [round(wide * width / 32) for wide in (16, 24, 32, 64, 96, 160, 320)]
        features, entering = [layers(conv(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU6())], width
        for stage, (leaving, blocks) in enumerate(zip(channels, (1, 2, 3, 4, 3, 3, 1), strict=True)):
            for block in range(blocks):
                stride = 2 if block == 0 and stage in (1, 2, 3) else 1
                rate = 2 if len(features) >= 15 else 1
                widen = 6 if stage else 1
                features.append(_Inverted(entering, leaving, widen=widen, stride=stride, rate=rate))
                entering = leaving
        self.backbone = nn.Module()
        self.backbone.features = layers(*features)
        self.aspp0, self.image_pooling = (
            layers(conv(entering, head), nn.BatchNorm2d(head), nn.ReLU()) for _ in range(2)
        )
        self.concat_projection = layers(conv(2 * head, head), nn.BatchNorm2d(head), nn.ReLU())
        self.logits = nn.Conv2d(head, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.backbone.features(x)
        image = self.image_pooling(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.logits(self.concat_projection(torch.cat([image, self.aspp0(x)], dim=1)))


# ---------------------------------------------------------------- torchvision's ResNet, VainF, jfzhang95


class Bottleneck(nn.Module):
    def __init__(self, entering: int, inner: int, *, stride: int, rate: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(entering, inner), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride=stride, rate=rate), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv(inner, 4 * inner), nn.BatchNorm2d(4 * inner)
        self.downsample = None
        if stride > 1 or entering != 4 * inner:
            self.downsample = layers(conv(entering, 4 * inner, stride=stride), nn.BatchNorm2d(4 * inner))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x) if self.downsample else x
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """`strides` of the stages, and for each of them the rate of each block."""

    def __init__(self, width: int, strides: tuple[int, ...], rates: list[list[int]]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 7, stride=2), nn.BatchNorm2d(width)
        entering = width
        for number, (stride, of_blocks) in enumerate(zip(strides, rates, strict=True), 1):
            inner = width * 2 ** (number - 1)
            blocks = []
            for index, rate in enumerate(of_blocks):
                blocks.append(Bottleneck(entering, inner, stride=stride if index == 0 else 1, rate=rate))
                entering = 4 * inner
            setattr(self, f"layer{number}", layers(*blocks))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        low = self.layer1(x)
        return low, self.layer4(self.layer3(self.layer2(low)))


def torchvision_resnet(width: int, output_stride: int, *, depth: int = 50) -> ResNet:
    """`replace_stride_with_dilation`: the first block of a dilated stage keeps the rate of the stage before."""
    one, two, three, four = BLOCKS[depth]
    if output_stride == 16:
        return ResNet(width, (1, 2, 2, 1), [[1] * one, [1] * two, [1] * three, [1] + [2] * (four - 1)])
    return ResNet(width, (1, 2, 1, 1), [[1] * one, [1] * two, [1] + [2] * (three - 1), [2] + [4] * (four - 1)])


class TorchvisionASPP(nn.Module):
    def __init__(self, entering: int, leaving: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        branches = [layers(conv(entering, leaving), nn.BatchNorm2d(leaving), nn.ReLU())]
        branches += [
            layers(conv(entering, leaving, 3, rate=rate), nn.BatchNorm2d(leaving), nn.ReLU()) for rate in rates
        ]
        branches.append(layers(nn.AdaptiveAvgPool2d(1), conv(entering, leaving), nn.BatchNorm2d(leaving), nn.ReLU()))
        self.convs = nn.ModuleList(branches)
        self.project = layers(conv(5 * leaving, leaving), nn.BatchNorm2d(leaving), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        found = [F.interpolate(one(x), x.shape[2:], mode="bilinear", align_corners=False) for one in self.convs]
        return self.project(torch.cat(found, 1))


class Named(nn.Module):
    """Modules by name, for nesting names that an original has for reasons of its own."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class VainFV3(nn.Module):
    def __init__(self, classes: int, *, width: int, output_stride: int, depth: int = 50) -> None:
        super().__init__()
        self.backbone = torchvision_resnet(width, output_stride, depth=depth)
        wide, rates = 4 * width, (6, 12, 18) if output_stride == 16 else (12, 24, 36)
        self.classifier = Named(
            classifier=layers(
                TorchvisionASPP(32 * width, wide, rates),
                conv(wide, wide, 3),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
                nn.Conv2d(wide, classes, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier.classifier(self.backbone(x)[1])


class VainFV3Plus(nn.Module):
    def __init__(self, classes: int, *, width: int, output_stride: int, depth: int = 50) -> None:
        super().__init__()
        self.backbone = torchvision_resnet(width, output_stride, depth=depth)
        wide, rates = 4 * width, (6, 12, 18) if output_stride == 16 else (12, 24, 36)
        low = 3 * wide // 16
        self.classifier = Named(
            project=layers(conv(4 * width, low), nn.BatchNorm2d(low), nn.ReLU()),
            aspp=TorchvisionASPP(32 * width, wide, rates),
            classifier=layers(conv(low + wide, wide, 3), nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, classes, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.backbone(x)
        low, high = self.classifier.project(low), self.classifier.aspp(high)
        high = F.interpolate(high, low.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier.classifier(torch.cat([low, high], 1))


class Separable(nn.Module):
    def __init__(self, entering: int, leaving: int, *, stride: int = 1, rate: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn = (
            conv(entering, entering, 3, stride=stride, rate=rate, groups=entering),
            nn.BatchNorm2d(entering),
        )
        self.pointwise = conv(entering, leaving)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.bn(self.conv1(x)))


class XceptionBlock(nn.Module):
    """Its ReLUs work in place, so one in front of everything changes what the shortcut sees."""

    def __init__(
        self, channels: tuple[int, ...], *, stride: int = 1, rates: tuple[int, ...] = (1, 1, 1), relu: bool = True
    ) -> None:
        super().__init__()
        rep: list[nn.Module] = []
        for index, (entering, leaving) in enumerate(pairwise(channels)):
            step = stride if index == 2 else 1
            rep += [nn.ReLU(), Separable(entering, leaving, stride=step, rate=rates[index]), nn.BatchNorm2d(leaving)]
        self.relu_first = relu
        self.rep = layers(*(rep if relu else rep[1:]))
        self.skip = None
        if stride > 1 or channels[0] != channels[-1]:
            self.skip, self.skipbn = conv(channels[0], channels[-1], stride=stride), nn.BatchNorm2d(channels[-1])

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.relu(x) if self.relu_first else x
        if self.skip is not None:
            shortcut = self.skipbn(self.skip(shortcut))
        return self.rep(x) + shortcut


class Xception(nn.Module):
    """Output stride 16. `width` counts as 64 does: the stem's first convolution has half as many."""

    def __init__(self, width: int) -> None:
        super().__init__()
        a, b, c, d = 2 * width, 4 * width, round(728 * width / 64), 16 * width
        e, f = 24 * width, 32 * width
        self.conv1, self.bn1 = conv(3, width // 2, 3, stride=2), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = conv(width // 2, width, 3), nn.BatchNorm2d(width)
        self.block1 = XceptionBlock((width, a, a, a), stride=2, relu=False)
        self.block2 = XceptionBlock((a, b, b, b), stride=2, relu=False)
        self.block3 = XceptionBlock((b, c, c, c), stride=2)
        for number in range(4, 20):
            setattr(self, f"block{number}", XceptionBlock((c, c, c, c)))
        self.block20 = XceptionBlock((c, c, d, d))
        for number, (entering, leaving) in enumerate(((d, e), (e, e), (e, f)), 3):
            setattr(self, f"conv{number}", Separable(entering, leaving, rate=2))
            setattr(self, f"bn{number}", nn.BatchNorm2d(leaving))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        low = x = F.relu(self.block1(x))
        for number in range(2, 21):
            x = getattr(self, f"block{number}")(x)
        x = F.relu(x)
        for number in (3, 4, 5):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        return low, x


class JfzhangASPP(nn.Module):
    def __init__(self, entering: int, leaving: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        for number, rate in enumerate((1, *rates), 1):
            branch = Named(
                atrous_conv=conv(entering, leaving, 1 if number == 1 else 3, rate=rate), bn=nn.BatchNorm2d(leaving)
            )
            setattr(self, f"aspp{number}", branch)
        self.global_avg_pool = layers(
            nn.AdaptiveAvgPool2d(1), conv(entering, leaving), nn.BatchNorm2d(leaving), nn.ReLU()
        )
        self.conv1, self.bn1 = conv(5 * leaving, leaving), nn.BatchNorm2d(leaving)

    def forward(self, x: Tensor) -> Tensor:
        branches = (getattr(self, f"aspp{number}") for number in (1, 2, 3, 4))
        found = [F.relu(branch.bn(branch.atrous_conv(x))) for branch in branches]
        found.append(self.global_avg_pool(x).expand_as(found[0]))
        return F.relu(self.bn1(self.conv1(torch.cat(found, 1))))


class Jfzhang(nn.Module):
    """v3+ with corners aligned and coarse features in front of the low-level ones."""

    def __init__(self, classes: int, *, width: int, output_stride: int, xception: bool = False) -> None:
        super().__init__()
        if xception:
            self.backbone: nn.Module = Xception(width)
        elif output_stride == 16:
            self.backbone = ResNet(width, (1, 2, 2, 1), [[1] * 3, [1] * 4, [1] * 23, [2, 4, 8]])
        else:
            self.backbone = ResNet(width, (1, 2, 1, 1), [[1] * 3, [1] * 4, [2] * 23, [4, 8, 16]])
        wide, rates = 4 * width, (6, 12, 18) if output_stride == 16 else (12, 24, 36)
        low = 3 * wide // 16
        self.aspp = JfzhangASPP(32 * width, wide, rates)
        self.decoder = Named(
            conv1=conv((2 if xception else 4) * width, low),
            bn1=nn.BatchNorm2d(low),
            last_conv=layers(
                conv(wide + low, wide, 3),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
                nn.Identity(),
                conv(wide, wide, 3),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
                nn.Identity(),
                nn.Conv2d(wide, classes, 1),
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.backbone(x)
        low = F.relu(self.decoder.bn1(self.decoder.conv1(low)))
        high = F.interpolate(self.aspp(high), low.shape[2:], mode="bilinear", align_corners=True)
        return self.decoder.last_conv(torch.cat([high, low], 1))


class Semseg(nn.Module):
    """hszhao's PSPNet: three 3x3 in front, and means over 1, 2, 3 and 6 regions per axis."""

    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        for entering, leaving, stride in ((3, width, 2), (width, width, 1), (width, 2 * width, 1)):
            stem += [conv(entering, leaving, 3, stride=stride), nn.BatchNorm2d(leaving), nn.ReLU()]
        self.layer0 = layers(*stem, nn.MaxPool2d(3, 2, 1))
        dilated = ResNet(width, (1, 2, 1, 1), [[1] * 3, [1] * 4, [2] * 6, [4] * 3])
        dilated.layer1[0] = Bottleneck(2 * width, width, stride=1, rate=1)
        for number in range(1, 5):
            setattr(self, f"layer{number}", getattr(dilated, f"layer{number}"))
        deep, wide = 32 * width, 8 * width
        levels = [
            layers(nn.AdaptiveAvgPool2d(n), conv(deep, wide), nn.BatchNorm2d(wide), nn.ReLU()) for n in (1, 2, 3, 6)
        ]
        self.ppm = Named(features=nn.ModuleList(levels))
        self.cls = self._head(2 * deep, wide, classes)
        self.aux = self._head(deep // 2, deep // 8, classes)

    @staticmethod
    def _head(entering: int, inner: int, classes: int) -> nn.Sequential:
        return layers(
            conv(entering, inner, 3), nn.BatchNorm2d(inner), nn.ReLU(), nn.Identity(), nn.Conv2d(inner, classes, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.layer0(x)))))
        means = [F.interpolate(one(x), x.shape[2:], mode="bilinear", align_corners=True) for one in self.ppm.features]
        return self.cls(torch.cat([x, *means], 1))


# ---------------------------------------------------------------- EfficientNet-Lite-PyTorch


LITE_BLOCKS = {
    0: "3s1x1>16 3s2x6>24 3s1x6>24 5s2x6>40 5s1x6>40 3s2x6>80 3s1x6>80 3s1x6>80 5s1x6>112 5s1x6>112 5s1x6>112 "
    "5s2x6>192 5s1x6>192 5s1x6>192 5s1x6>192 3s1x6>320",
    1: "3s1x1>16 3s2x6>24 3s1x6>24 3s1x6>24 5s2x6>40 5s1x6>40 5s1x6>40 3s2x6>80 3s1x6>80 3s1x6>80 3s1x6>80 5s1x6>112 "
    "5s1x6>112 5s1x6>112 5s1x6>112 5s2x6>192 5s1x6>192 5s1x6>192 5s1x6>192 5s1x6>192 3s1x6>320",
    2: "3s1x1>16 3s2x6>24 3s1x6>24 3s1x6>24 5s2x6>48 5s1x6>48 5s1x6>48 3s2x6>88 3s1x6>88 3s1x6>88 3s1x6>88 5s1x6>120 "
    "5s1x6>120 5s1x6>120 5s1x6>120 5s2x6>208 5s1x6>208 5s1x6>208 5s1x6>208 5s1x6>208 3s1x6>352",
}
"""Kernel, stride, expansion and channels of each block, block by block, as the files of the packages have them."""


def same_conv(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """TensorFlow's padding SAME: what the output needs, the odd pixel at the far end."""
    pads = []
    for length in (x.size(3), x.size(2)):
        short = max((-(-length // stride) - 1) * stride + weight.size(2) - length, 0)
        pads += [short // 2, short - short // 2]
    return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)


def lite_shapes(number: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def add(conv_name: str, norm_name: str, *size: int) -> None:
        shapes[f"{conv_name}.weight"] = size
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm_name}.{part}"] = size[:1]
        shapes[f"{norm_name}.num_batches_tracked"] = ()

    add("_conv_stem", "_bn0", 32, 3, 3, 3)
    entering = 32
    for index, block in enumerate(LITE_BLOCKS[number].split()):
        kernel, expansion, leaving, name = int(block[0]), int(block[4]), int(block[6:]), f"_blocks.{index}."
        wide = entering * expansion
        if expansion > 1:
            add(name + "_expand_conv", name + "_bn0", wide, entering, 1, 1)
        add(name + "_depthwise_conv", name + "_bn1", wide, 1, kernel, kernel)
        add(name + "_project_conv", name + "_bn2", leaving, wide, 1, 1)
        entering = leaving
    add("_conv_head", "_bn1", 1280, entering, 1, 1)
    return shapes | {"_fc.weight": (1000, 1280), "_fc.bias": (1000,)}


def lite_features(tensors: dict[str, Tensor], number: int, pixels: Tensor) -> Tensor:
    """Output of the last block; pixels are from 0 to 1."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (tensors[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    x = F.relu6(norm(same_conv((255 * pixels - 127) / 128, tensors["_conv_stem.weight"], 2), "_bn0"))
    for index, block in enumerate(LITE_BLOCKS[number].split()):
        name, before = f"_blocks.{index}.", x
        if f"{name}_expand_conv.weight" in tensors:
            x = F.relu6(norm(same_conv(x, tensors[f"{name}_expand_conv.weight"], 1), f"{name}_bn0"))
        x = same_conv(x, tensors[f"{name}_depthwise_conv.weight"], int(block[2]), groups=x.size(1))
        x = F.relu6(norm(x, f"{name}_bn1"))
        x = norm(same_conv(x, tensors[f"{name}_project_conv.weight"], 1), f"{name}_bn2")
        x = x + before if x.shape == before.shape else x
    return x


# ---------------------------------------------------------------- sacmehta's ESPNet


def espnet_norm(channels: int) -> Named:
    return Named(bn=nn.BatchNorm2d(channels, eps=1e-3), act=nn.PReLU(channels))


def normed(module: nn.Module, x: Tensor) -> Tensor:
    return module.act(module.bn(x))


class ESP(nn.Module):
    """Efficient spatial pyramid; as a downsampler its batch norm has no module of its own, and nothing is added."""

    def __init__(self, entering: int, leaving: int, *, down: bool = False) -> None:
        super().__init__()
        inner = leaving // 5
        self.down = down
        self.c1 = Named(conv=conv(entering, inner, 3, stride=2) if down else conv(entering, inner))
        for rate, wide in zip((1, 2, 4, 8, 16), (leaving - 4 * inner, *[inner] * 4), strict=True):
            setattr(self, f"d{rate}", Named(conv=conv(inner, wide, 3, rate=rate)))
        if down:
            self.bn, self.act = nn.BatchNorm2d(leaving, eps=1e-3), nn.PReLU(leaving)
        else:
            self.bn = espnet_norm(leaving)

    def forward(self, x: Tensor, add: bool = True) -> Tensor:
        small = self.c1.conv(x)
        d1, d2, d4, d8, d16 = (getattr(self, f"d{rate}").conv(small) for rate in (1, 2, 4, 8, 16))
        merged = torch.cat([d1, d2, d2 + d4, d2 + d4 + d8, d2 + d4 + d8 + d16], 1)
        if self.down:
            return normed(self, merged)
        return normed(self.bn, merged + x if add else merged)


class ESPNetC(nn.Module):
    def __init__(self, classes: int, *, width: int, p: int = 2, q: int = 3) -> None:
        super().__init__()
        two, three = 4 * width, 8 * width
        self.level1 = Named(conv=conv(3, width, 3, stride=2), **dict(espnet_norm(width).named_children()))
        self.b1, self.b2, self.b3 = (espnet_norm(wide) for wide in (width + 3, 2 * two + 3, 2 * three))
        self.level2_0, self.level3_0 = ESP(width + 3, two, down=True), ESP(2 * two + 3, three, down=True)
        self.level2 = nn.ModuleList(ESP(two, two) for _ in range(p))
        self.level3 = nn.ModuleList(ESP(three, three) for _ in range(q))
        self.classifier = Named(conv=conv(2 * three, classes))

    def views(self, x: Tensor) -> list[Tensor]:
        """Features at stride 2 without and with the image, at stride 4, and scores at stride 8."""
        half = F.avg_pool2d(x, 3, 2, 1)
        quarter = F.avg_pool2d(half, 3, 2, 1)
        plain = normed(self.level1, self.level1.conv(x))
        joined = normed(self.b1, torch.cat([plain, half], 1))
        begun = x = self.level2_0(joined)
        for module in self.level2:
            x = module(x)
        middle = normed(self.b2, torch.cat([x, begun, quarter], 1))
        begun = x = self.level3_0(middle)
        for module in self.level3:
            x = module(x)
        return [plain, joined, middle, self.classifier.conv(normed(self.b3, torch.cat([begun, x], 1)))]

    def forward(self, x: Tensor) -> Tensor:
        return self.views(x)[-1]


class ESPNet(nn.Module):
    """`image`: the decoder's last convolution sees the image too, as in train/Model.py and unlike test/Model.py."""

    def __init__(self, classes: int, *, width: int, image: bool, q: int = 3) -> None:
        super().__init__()
        self.image = image
        self.encoder = ESPNetC(classes, width=width, q=q)
        self.level3_C = Named(conv=conv(8 * width + 3, classes))
        self.br = nn.BatchNorm2d(classes, eps=1e-3)
        fused = width + 3 * image + classes
        self.conv = Named(conv=conv(fused, classes, 3), **dict(espnet_norm(classes).named_children()))
        self.up_l3 = layers(self._up(classes))
        self.combine_l2_l3 = layers(espnet_norm(2 * classes), ESP(2 * classes, classes))
        self.up_l2 = layers(self._up(classes), espnet_norm(classes))
        self.classifier = self._up(classes)

    @staticmethod
    def _up(classes: int) -> nn.ConvTranspose2d:
        return nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The source takes sides of multiples of 8 only; here what is too much is cut off."""
        plain, joined, middle, coarse = self.encoder.views(x)
        up = self.up_l3[0](self.br(coarse))[:, :, : middle.size(2), : middle.size(3)]
        up = normed(self.combine_l2_l3[0], torch.cat([self.level3_C.conv(middle), up], 1))
        up = normed(self.up_l2[1], self.up_l2[0](self.combine_l2_l3[1](up, add=False)))
        up = torch.cat([up[:, :, : plain.size(2), : plain.size(3)], joined if self.image else plain], 1)
        return self.classifier(normed(self.conv, self.conv.conv(up)))


# ---------------------------------------------------------------- EdgeNets' ESPNetv2


def cba(entering: int, leaving: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> Named:
    return Named(
        conv=nn.Conv2d(entering, leaving, kernel, stride, kernel // 2, groups=groups, bias=False),
        bn=nn.BatchNorm2d(leaving),
        act=nn.PReLU(leaving),
    )


def cbr(entering: int, leaving: int, kernel: int = 1, *, groups: int = 1) -> Named:
    conv = nn.Conv2d(entering, leaving, kernel, 1, kernel // 2, groups=groups, bias=False)
    return Named(cbr=layers(conv, nn.BatchNorm2d(leaving), nn.PReLU(leaving)))


def br(channels: int) -> nn.Sequential:
    return layers(nn.BatchNorm2d(channels), nn.PReLU(channels))


class EdgeEESP(nn.Module):
    """A limit on the cells that a kernel sees; kernels that would see more have a rate of 1."""

    def __init__(self, entering: int, leaving: int, limit: int, *, stride: int = 1) -> None:
        super().__init__()
        inner, self.stride = leaving // 4, stride
        rates = sorted(rate if 2 * rate + 1 <= limit else 1 for rate in (1, 2, 3, 4))
        self.proj_1x1 = cba(entering, inner, groups=4)
        self.spp_dw = nn.ModuleList(
            Named(conv=nn.Conv2d(inner, inner, 3, stride, rate, rate, groups=inner, bias=False)) for rate in rates
        )
        self.br_after_cat = Named(bn=nn.BatchNorm2d(leaving), act=nn.PReLU(leaving))
        self.conv_1x1_exp = Named(conv=nn.Conv2d(leaving, leaving, 1, groups=4, bias=False), bn=nn.BatchNorm2d(leaving))
        self.module_act = nn.PReLU(leaving)

    def forward(self, x: Tensor) -> Tensor:
        small = normed(self.proj_1x1, self.proj_1x1.conv(x))
        views = torch.stack([one.conv(small) for one in self.spp_dw], 1).cumsum(1).flatten(1, 2)
        mixed = self.conv_1x1_exp.bn(self.conv_1x1_exp.conv(normed(self.br_after_cat, views)))
        return mixed if self.stride == 2 else self.module_act(mixed + x)


class EdgeDown(nn.Module):
    def __init__(self, entering: int, leaving: int, limit: int) -> None:
        super().__init__()
        self.eesp = EdgeEESP(entering, leaving - entering, limit, stride=2)
        expand = Named(conv=conv(3, leaving), bn=nn.BatchNorm2d(leaving))
        self.inp_reinf = layers(cba(3, 3, 3), expand)
        self.act = nn.PReLU(leaving)

    def forward(self, x: Tensor, pixels: Tensor) -> Tensor:
        halved = F.avg_pool2d(x, 3, 2, 1)
        while pixels.size(2) > halved.size(2):
            pixels = F.avg_pool2d(pixels, 3, 2, 1)
        seen, expand = self.inp_reinf
        joined = expand.bn(expand.conv(normed(seen, seen.conv(pixels))))
        return self.act(torch.cat([halved, self.eesp(x)], 1) + joined)


class EdgePool(nn.Module):
    def __init__(self, entering: int, inner: int, leaving: int, *, last: bool = False) -> None:
        super().__init__()
        self.projection_layer = cbr(entering, inner)
        self.stages = nn.ModuleList(nn.Conv2d(inner, inner, 3, 1, 1, groups=inner, bias=False) for _ in range(5))
        out = nn.Conv2d(inner, leaving, 1, bias=last)
        self.merge_layer = layers(Named(br=br(5 * inner)), nn.Identity(), cbr(5 * inner, inner, 3, groups=inner), out)
        self.br = None if last else Named(br=br(leaving))

    def forward(self, x: Tensor) -> Tensor:
        x = self.projection_layer.cbr(x)
        height, width = x.shape[2:]
        views = []
        for scale, stage in zip((2, 1.5, 1, 0.5, 0.1), self.stages, strict=True):
            size = max(5, math.ceil(scale * height)), max(5, math.ceil(scale * width))
            if scale > 1:
                views.append(F.adaptive_avg_pool2d(stage(corner(x, size)), (height, width)))
            elif scale < 1:
                views.append(corner(stage(F.adaptive_avg_pool2d(x, size)), (height, width)))
            else:
                views.append(stage(x))
        joined = self.merge_layer[0].br(torch.cat(views, 1))
        shuffled = torch.stack(joined.chunk(5, 1), 2).flatten(1, 2)
        out = self.merge_layer[3](self.merge_layer[2].cbr(shuffled))
        return out if self.br is None else self.br.br(out)


class EdgeSkip(nn.Module):
    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.wt_layer = layers(nn.AdaptiveAvgPool2d(1), conv(entering, leaving), nn.Sigmoid())
        self.expansion_layer = cbr(entering, leaving, 3, groups=math.gcd(entering, leaving))

    def forward(self, x: Tensor) -> Tensor:
        return self.expansion_layer.cbr(x) * self.wt_layer(x)


def corner(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


class EdgeESPNetv2(nn.Module):
    """The source doubles sizes, which fits sides of multiples of 16; here the skip's size is taken."""

    def __init__(self, classes: int, *, scale: float, base: int = 16) -> None:
        super().__init__()
        one, two, three, four = 16 if scale < 1 else 32, int(64 * scale), int(128 * scale), int(256 * scale)
        self.base_net = Named(
            level1=cba(3, one, 3, stride=2),
            level2_0=EdgeDown(one, two, 13),
            level3_0=EdgeDown(two, three, 11),
            level3=nn.ModuleList(EdgeEESP(three, three, 9) for _ in range(3)),
            level4_0=EdgeDown(three, four, 9),
            level4=nn.ModuleList(EdgeEESP(four, four, 7) for _ in range(7)),
        )
        inner = min(classes // 2, base)
        self.bu_dec_l1, self.bu_dec_l2 = EdgePool(four, inner, 4 * base), EdgePool(4 * base, inner, 3 * base)
        self.bu_dec_l3 = EdgePool(3 * base, inner, 2 * base)
        self.bu_dec_l4 = EdgePool(2 * base, inner, classes, last=True)
        self.merge_enc_dec_l2, self.merge_enc_dec_l3 = EdgeSkip(three, 4 * base), EdgeSkip(two, 3 * base)
        self.merge_enc_dec_l4 = EdgeSkip(one, 2 * base)
        self.bu_br_l2, self.bu_br_l3, self.bu_br_l4 = br(4 * base), br(3 * base), br(2 * base)

    def forward(self, x: Tensor) -> Tensor:
        net = self.base_net
        half = normed(net.level1, net.level1.conv(x))
        quarter = net.level2_0(half, x)
        eighth = net.level3_0(quarter, x)
        for one in net.level3:
            eighth = one(eighth)
        deep = net.level4_0(eighth, x)
        for one in net.level4:
            deep = one(deep)
        up = corner(self.bu_dec_l1(deep), eighth.shape[2:])
        up = corner(self.bu_dec_l2(self.bu_br_l2(self.merge_enc_dec_l2(eighth) + up)), quarter.shape[2:])
        up = corner(self.bu_dec_l3(self.bu_br_l3(self.merge_enc_dec_l3(quarter) + up)), half.shape[2:])
        return corner(self.bu_dec_l4(self.bu_br_l4(self.merge_enc_dec_l4(half) + up)), x.shape[2:])


# ---------------------------------------------------------------- xiaoyufenfei's LEDNet, and its later collection


def biased(entering: int, leaving: int, kernel: tuple[int, int], *, stride: int = 1, rate: int = 1) -> nn.Conv2d:
    """With a bias; a side of 1 is neither strided nor dilated."""
    strides, rates = ([1 if side == 1 else value for side in kernel] for value in (stride, rate))
    padding = [step * (side // 2) for side, step in zip(kernel, rates, strict=True)]
    strides = [stride, stride] if kernel == (1, 1) else strides
    return nn.Conv2d(entering, leaving, kernel, tuple(strides), tuple(padding), tuple(rates))


class ConvAndPool(nn.Module):
    """For odd sizes the source puts zeros behind what it pooled; here the last row is pooled alone."""

    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.conv = biased(entering, leaving - entering, (3, 3), stride=2)
        self.bn = nn.BatchNorm2d(leaving, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(torch.cat([self.conv(x), F.max_pool2d(x, 2, ceil_mode=True)], 1)))


class SplitUnit(nn.Module):
    def __init__(self, channels: int, rate: int) -> None:
        super().__init__()
        half = channels // 2
        for side in "lr":
            for number, dilation in ((1, 1), (2, rate)):
                setattr(self, f"conv3x1_{number}_{side}", biased(half, half, (3, 1), rate=dilation))
                setattr(self, f"conv1x3_{number}_{side}", biased(half, half, (1, 3), rate=dilation))
                setattr(self, f"bn{number}_{side}", nn.BatchNorm2d(half, eps=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        half = x.size(1) // 2
        outputs = []
        for side, part, kernels in (("l", x[:, :half], ("3x1", "1x3")), ("r", x[:, half:], ("1x3", "3x1"))):
            for number in (1, 2):
                for kernel in kernels:
                    part = getattr(self, f"conv{kernel}_{number}_{side}")(part)
                    part = F.relu(part) if kernel == kernels[0] else part
                part = getattr(self, f"bn{number}_{side}")(part)
                part = F.relu(part) if number == 1 else part
            outputs.append(part)
        out = F.relu(x + torch.cat(outputs, 1))
        order = [channel for pair in zip(range(half), range(half, 2 * half), strict=True) for channel in pair]
        return out[:, order]


class LEDNetPyramid(nn.Module):
    def __init__(self, entering: int, classes: int, *, factorised: bool) -> None:
        super().__init__()
        self.factorised = factorised
        self.branch1 = layers(nn.AdaptiveAvgPool2d(1), self._named(entering, classes))
        self.mid = layers(self._named(entering, classes))
        self.down1, self.down2 = self._layer(entering, 7, 2), self._layer(1, 5, 2)
        both = [self._layer(1, 3, 2), self._layer(1, 3, 1)]
        self.down3 = layers(*both[0], *both[1]) if factorised else layers(*both)
        self.conv1, self.conv2 = self._layer(1, 7, 1), self._layer(1, 5, 1)

    @staticmethod
    def _named(entering: int, leaving: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
        normed_conv = layers(
            biased(entering, leaving, (kernel, kernel), stride=stride), nn.BatchNorm2d(leaving, eps=1e-3), nn.ReLU()
        )
        return nn.Sequential(OrderedDict(conv=normed_conv))

    def _layer(self, entering: int, kernel: int, stride: int) -> nn.Sequential:
        if not self.factorised:
            return self._named(entering, 1, kernel, stride)
        column = biased(entering, 1, (kernel, 1), stride=stride)
        return layers(column, biased(1, 1, (1, kernel), stride=stride), nn.BatchNorm2d(1, eps=1e-3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        def resized(small: Tensor, like: Tensor) -> Tensor:
            return F.interpolate(small, like.shape[2:], mode="bilinear", align_corners=True)

        first = self.down1(x)
        second = self.down2(first)
        weights = self.conv2(second) + resized(self.down3(second), second)
        weights = self.conv1(first) + resized(weights, first)
        return resized(weights, x) * self.mid(x) + resized(self.branch1(x), x)


def lednet_encoder(width: int) -> tuple[nn.Module, nn.ModuleList]:
    modules: list[nn.Module] = [SplitUnit(width, 1) for _ in range(3)]
    modules += [ConvAndPool(width, 2 * width), *(SplitUnit(2 * width, 1) for _ in range(2))]
    modules += [ConvAndPool(2 * width, 4 * width), *(SplitUnit(4 * width, d) for d in (1, 2, 5, 9, 2, 5, 9, 17))]
    return ConvAndPool(3, width), nn.ModuleList(modules)


class LEDNet(nn.Module):
    """The scores of the encoder are not part of the result."""

    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        first, others = lednet_encoder(width)
        self.encoder = Named(initial_block=first, layers=others, output_conv=nn.Conv2d(4 * width, classes, 1))
        self.decoder = Named(apn=LEDNetPyramid(4 * width, classes, factorised=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder.initial_block(x)
        for module in self.encoder.layers:
            x = module(x)
        return self.decoder.apn(x)


class LEDNetOfCollection(nn.Module):
    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        self.initial_block, self.layers = lednet_encoder(width)
        self.apn = LEDNetPyramid(4 * width, classes, factorised=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.initial_block(x)
        for module in self.layers:
            x = module(x)
        return self.apn(x)


# ---------------------------------------------------------------- xiaoyufenfei's ESNet


class FactorisedUnit(nn.Module):
    """With `rates` several branches instead of one behind the first two convolutions, with one batch norm for all."""

    def __init__(self, channels: int, kernel: int, rates: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.second = [f"2{rate}" for rate in rates] or ["2"]
        for number, rate in (("1", 1), *zip(self.second, rates or (1,), strict=True)):
            setattr(self, f"conv3x1_{number}", biased(channels, channels, (kernel, 1), rate=rate))
            setattr(self, f"conv1x3_{number}", biased(channels, channels, (1, kernel), rate=rate))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels, eps=1e-3), nn.BatchNorm2d(channels, eps=1e-3)

    def _both(self, x: Tensor, number: str) -> Tensor:
        return getattr(self, f"conv1x3_{number}")(F.relu(getattr(self, f"conv3x1_{number}")(x)))

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.bn1(self._both(x, "1")))
        return F.relu(sum((self.bn2(self._both(first, number)) for number in self.second), x))


class Upsampler(nn.Module):
    def __init__(self, entering: int, leaving: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(entering, leaving, 3, stride=2, padding=1, output_padding=1)
        self.bn = nn.BatchNorm2d(leaving, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def esnet_layers(width: int) -> tuple[list[nn.Module], list[nn.Module]]:
    middle, deep = 4 * width, 8 * width
    down = [FactorisedUnit(width, 3) for _ in range(3)]
    down += [ConvAndPool(width, middle), *(FactorisedUnit(middle, 5) for _ in range(2))]
    down += [ConvAndPool(middle, deep), *(FactorisedUnit(deep, 3, (2, 5, 9)) for _ in range(3))]
    up = [Upsampler(deep, middle), *(FactorisedUnit(middle, 5) for _ in range(2))]
    return down, [*up, Upsampler(middle, width), *(FactorisedUnit(width, 3) for _ in range(2))]


class ESNet(nn.Module):
    """Takes sides of multiples of 8; the scores of the encoder are not part of the result."""

    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        down, up = esnet_layers(width)
        self.encoder = Named(initial_block=ConvAndPool(3, width), layers=nn.ModuleList(down))
        self.decoder = Named(layers=nn.ModuleList(up), output_conv=nn.ConvTranspose2d(width, classes, 2, stride=2))
        self.encoder_output_conv = nn.Conv2d(8 * width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder.initial_block(x)
        for module in [*self.encoder.layers, *self.decoder.layers]:
            x = module(x)
        return self.decoder.output_conv(x)


class ESNetOfCollection(nn.Module):
    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        down, up = esnet_layers(width)
        self.initial_block = ConvAndPool(3, width)
        self.layers = nn.ModuleList([*down, *up])
        self.output_conv = nn.ConvTranspose2d(width, classes, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.initial_block(x)
        for module in self.layers:
            x = module(x)
        return self.output_conv(x)


# ---------------------------------------------------------------- kazuto1011


def unit(
    entering: int, leaving: int, kernel: int = 1, *, stride: int = 1, rate: int = 1, relu: bool = True
) -> nn.Sequential:
    modules = OrderedDict(conv=conv(entering, leaving, kernel, stride=stride, rate=rate), bn=nn.BatchNorm2d(leaving))
    if relu:
        modules["relu"] = nn.ReLU()
    return nn.Sequential(modules)


class KazutoBlock(nn.Module):
    """The 1x1 in front strides; every block of a stage has its rate, the first one too."""

    def __init__(self, entering: int, leaving: int, *, stride: int, rate: int, first: bool) -> None:
        super().__init__()
        inner = leaving // 4
        self.reduce = unit(entering, inner, stride=stride)
        self.conv3x3 = unit(inner, inner, 3, rate=rate)
        self.increase = unit(inner, leaving, relu=False)
        self.shortcut = unit(entering, leaving, stride=stride, relu=False) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.increase(self.conv3x3(self.reduce(x))) + self.shortcut(x))


def kazuto_stages(width: int, blocks: tuple[int, ...], strides: tuple[int, ...], rates: list[list[int]]) -> OrderedDict:
    stem = OrderedDict(conv1=unit(3, width, 7, stride=2), pool=nn.MaxPool2d(3, 2, 1, ceil_mode=True))
    found: OrderedDict = OrderedDict(layer1=nn.Sequential(stem))
    entering = width
    for number, (count, stride, of_blocks) in enumerate(zip(blocks, strides, rates, strict=True), 2):
        leaving = width * 2**number
        made = OrderedDict()
        for index in range(count):
            made[f"block{index + 1}"] = KazutoBlock(
                entering, leaving, stride=stride if index == 0 else 1, rate=of_blocks[index], first=index == 0
            )
            entering = leaving
        found[f"layer{number}"] = nn.Sequential(made)
    return found


class SumOfBranches(nn.Module):
    def __init__(self, entering: int, classes: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        for index, rate in enumerate(rates):
            self.add_module(f"c{index}", nn.Conv2d(entering, classes, 3, 1, rate, rate))

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.children())


class KazutoV2(nn.Module):
    """Scores at three scales, resized to the finest and pooled by their maximum."""

    def __init__(self, classes: int, *, width: int, blocks: tuple[int, ...] = BLOCKS[101]) -> None:
        super().__init__()
        rates = [[1] * blocks[0], [1] * blocks[1], [2] * blocks[2], [4] * blocks[3]]
        self.base = nn.Sequential(kazuto_stages(width, blocks, (1, 2, 1, 1), rates))
        self.base.add_module("aspp", SumOfBranches(32 * width, classes, (6, 12, 18, 24)))

    def forward(self, x: Tensor) -> Tensor:
        finest = self.base(x)
        found = [finest]
        for scale in (0.5, 0.75):
            size = [int(side * scale) for side in x.shape[2:]]
            smaller = F.interpolate(x, size, mode="bilinear", align_corners=False)
            found.append(F.interpolate(self.base(smaller), finest.shape[2:], mode="bilinear", align_corners=False))
        return torch.stack(found).max(0)[0]


def kazuto_init(classes: int, *, width: int) -> nn.Sequential:
    """v1 on ResNet-101: the stages, and a classifier of COCO's classes."""
    blocks = BLOCKS[101]
    rates = [[1] * blocks[0], [1] * blocks[1], [2] * blocks[2], [4] * blocks[3]]
    stages = kazuto_stages(width, blocks, (1, 2, 1, 1), rates)
    stages["fc"] = nn.Conv2d(32 * width, classes, 1)
    return nn.Sequential(stages)


class KazutoV3Plus(nn.Module):
    """Output stride 16; coarse features in front of the low-level ones."""

    def __init__(self, classes: int, *, width: int) -> None:
        super().__init__()
        rates = [[1] * 3, [1] * 4, [1] * 23, [2, 4, 8]]
        for name, stage in kazuto_stages(width, BLOCKS[101], (1, 2, 2, 1), rates).items():
            self.add_module(name, stage)
        wide = 4 * width
        low = 3 * wide // 16
        pooled = Named(conv=unit(32 * width, wide))
        branches = {f"c{n}": unit(32 * width, wide, 3 if n else 1, rate=rate) for n, rate in enumerate((1, 6, 12, 18))}
        self.aspp = Named(stages=Named(**branches, imagepool=pooled))
        self.fc1 = unit(5 * wide, wide)
        self.reduce = unit(wide, low)
        self.fc2 = Named(conv1=unit(wide + low, wide, 3), conv2=unit(wide, wide, 3), conv3=nn.Conv2d(wide, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.layer2(self.layer1(x))
        high = self.layer5(self.layer4(self.layer3(low)))
        found = [getattr(self.aspp.stages, f"c{n}")(high) for n in range(4)]
        found.append(self.aspp.stages.imagepool.conv(high.mean((2, 3), keepdim=True)).expand_as(found[0]))
        high = self.fc1(torch.cat(found, 1))
        low = self.reduce(low)
        high = F.interpolate(high, low.shape[2:], mode="bilinear", align_corners=False)
        return self.fc2.conv3(self.fc2.conv2(self.fc2.conv1(torch.cat([high, low], 1))))


# ---------------------------------------------------------------- FasterSeg


def up(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=True)


class FasterSegOp(nn.Module):
    """`kind`: c or z (zoomed), and how many 3x3 convolutions; v behind it: stride 2."""

    def __init__(self, kind: str, entering: int, leaving: int) -> None:
        super().__init__()
        self.zoomed, self.strided = kind[0] == "z", kind.endswith("v")
        self.conv1 = conv(entering, leaving, 3, stride=2 if self.strided and not self.zoomed else 1)
        self.bn1 = nn.BatchNorm2d(leaving)
        self.conv2 = None
        if kind[1] == "2":
            self.conv2, self.bn2 = conv(leaving, leaving, 3), nn.BatchNorm2d(leaving)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.zoomed and self.strided:  # the authors' sizes are even here
            x = up(x, -(-height // 2), -(-width // 2))
        elif self.zoomed:
            x = up(x, height // 2, width // 2)
        x = self.bn1(self.conv1(x))
        if self.conv2 is not None:
            x = self.bn2(self.conv2(F.relu(x)))
        return F.relu(up(x, height, width) if self.zoomed and not self.strided else x)


FASTERSEG = {
    "student": (
        (32, 64, 64),
        "c2 32, c2 32, z2 32, z1v 128, z2 64, z2 64, z2 64, z2v 128, z2 128, z2 256",
        "c2 32, c2 32, z2 32, z2 32, c2 32, c2v 64, z2 64, z2 192, z2 128",
    ),
    "teacher": (
        (48, 96, 96),
        "z1 96, z2 96, z2 96, z2 96, z2 96, z2v 192, z2 192, z1 192" + ", z2 192" * 5 + ", z2v 384, c2 384, c2 384",
        "z1 96, z2 96, z2 96, z2 96, z2v 192, c2 192, z2 192, z1 192" + ", z2 192" * 8,
    ),
}
"""Channels of the stem; operators and output channels of the branch down to 1/32, and of that down to 1/16."""
FASTERSEG_SHARED = {"student": 3, "teacher": 4}


class FasterSeg(nn.Module):
    """The authors' network of `train/model_seg.py`; shared cells have two names."""

    def __init__(self, classes: int, variant: str, *, scale: float) -> None:
        super().__init__()
        (first, second, third), *branches = FASTERSEG[variant]
        a, b, c = (round(scale * channels) for channels in (first, second, third))
        unit0 = Named(conv=layers(conv(3, a, 3, stride=2), nn.BatchNorm2d(a), nn.ReLU()))
        self.stem = layers(unit0, FasterSegOp("c2v", a, b), FasterSegOp("c2v", b, c))
        self.cells, self.ops, taps = nn.ModuleDict(), [], []
        for branch, text in enumerate(branches):
            entering, leaving = c, []
            self.ops.append([cell.split()[0] for cell in text.split(", ")])
            for number, cell in enumerate(text.split(", ")):
                kind, channels = cell.split()
                made = Named(_op=Named(_op=FasterSegOp(kind, entering, round(scale * int(channels)))))
                shared = branch and number < FASTERSEG_SHARED[variant]
                self.cells[f"{number}-{branch}"] = self.cells[f"{number}-0"] if shared else made
                if kind.endswith("v"):
                    leaving.append(entering)
                entering = round(scale * int(channels))
            taps.append([*leaving, entering])
        (coarse8, coarse16, coarse32), (fine8, fine16) = taps
        self.arms32 = layers(self._unit(coarse32, fine16), self._unit(fine16, c))
        self.refines32 = layers(self._unit(fine16 + coarse16, fine16, 3), self._unit(c + coarse8, c, 3))
        self.arms16, self.refines16 = self._unit(fine16, c), self._unit(c + fine8, c, 3)
        attention = {str(number): Named(conv=conv(2 * c, 2 * c)) for number in (1, 2)}
        self.ffm = Named(conv_1x1=unit(2 * c, 2 * c), channel_attention=Named(**attention))
        self.heads8 = self._head(2 * c, classes, scale)
        self.heads16 = self._head(coarse16 + fine16, classes, scale)
        self.heads32 = self._head(coarse32, classes, scale)

    @staticmethod
    def _unit(entering: int, leaving: int, kernel: int = 1) -> nn.Module:
        return Named(conv=layers(conv(entering, leaving, kernel), nn.BatchNorm2d(leaving), nn.ReLU()))

    @staticmethod
    def _head(entering: int, classes: int, scale: float) -> nn.Module:
        inner = entering if entering <= 256 * scale else entering // 2
        return Named(conv_3x3=unit(entering, inner, 3), conv_1x1=nn.Conv2d(inner, classes, 1))

    def _last(self, x: Tensor, branch: int) -> list[Tensor]:
        """The last map of each stride."""
        found = []
        for number, kind in enumerate(self.ops[branch]):
            if kind.endswith("v"):
                found.append(x)
            x = self.cells[f"{number}-{branch}"]._op._op(x)
        return [*found, x]

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stem = self.stem[2](self.stem[1](self.stem[0].conv(x)))
        (coarse8, coarse16, coarse32), (fine8, fine16) = self._last(stem, 0), self._last(stem, 1)
        out = up(self.arms32[0].conv(coarse32), *coarse16.shape[2:])
        out = self.refines32[0].conv(torch.cat([out, coarse16], 1))
        out = up(self.arms32[1].conv(out), *coarse8.shape[2:])
        out = self.refines32[1].conv(torch.cat([out, coarse8], 1))
        other = up(self.arms16.conv(fine16), *fine8.shape[2:])
        other = self.refines16.conv(torch.cat([other, fine8], 1))
        eighth = self.ffm.conv_1x1(torch.cat([out, other], 1))
        entering = (self.heads8, eighth), (self.heads16, torch.cat([coarse16, fine16], 1)), (self.heads32, coarse32)
        return tuple(head.conv_1x1(head.conv_3x3(features)) for head, features in entering)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)[0]


# ---------------------------------------------------------------- Caffe

CAFFE_MEAN = torch.tensor([104.008, 116.669, 122.675])[:, None, None]


def for_caffe(pixels: Tensor, mean: Tensor = CAFFE_MEAN) -> Tensor:
    """Red, green, blue from 0 to 1 as Caffe is given them: blue, green, red from 0 to 255, less the mean."""
    return pixels[:, [2, 1, 0]] * 255 - mean


Blobs = dict[str, list[Tensor]]


def _conv(blobs: Blobs, name: str, x: Tensor, *, stride: int = 1, pad: int = 0, hole: int = 1) -> Tensor:
    return F.conv2d(x, *blobs[name], stride=stride, padding=pad, dilation=hole)


def vgg_shapes(
    classes: int, width: int, *, heads: tuple[str, ...], fc: int, kernel: int = 3
) -> dict[str, list[tuple[int, ...]]]:
    """Blobs of VGG-16 with a classifier for each of `heads`: fc6, fc7 and fc8_voc12, with `_1` behind for a branch."""
    found, entering = {}, 3
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, count + 1):
            leaving = width * min(8, 2 ** (stage - 1))
            found[f"conv{stage}_{number}"] = [(leaving, entering, 3, 3), (leaving,)]
            entering = leaving
    for head in heads:
        found[f"fc6{head}"] = [(fc, entering, kernel, kernel), (fc,)]
        found[f"fc7{head}"] = [(fc, fc, 1, 1), (fc,)]
        found[f"fc8_voc12{head}"] = [(classes, fc, 1, 1), (classes,)]
    return found


def branch_shapes(classes: int, width: int) -> dict[str, list[tuple[int, ...]]]:
    """Blobs of the multi-scale branches of v1: from the image and the first four poolings."""
    found, wide = {}, 2 * width
    for name, entering in {
        "data": 3,
        "pool1": width,
        "pool2": 2 * width,
        "pool3": 4 * width,
        "pool4": 8 * width,
    }.items():
        found[f"{name}_conv"] = [(wide, entering, 3, 3), (wide,)]
        found[f"{name}_fc"] = [(wide, wide, 1, 1), (wide,)]
        found[f"{name}_ms"] = [(classes, wide, 1, 1), (classes,)]
    return found


def fill(shapes: dict[str, list[tuple[int, ...]]], seed: int = 0) -> Blobs:
    flat = {f"{name}/{i}": size for name, sizes in shapes.items() for i, size in enumerate(sizes)}
    made = seeded(flat, seed)
    return {name: [made[f"{name}/{i}"] for i in range(len(sizes))] for name, sizes in shapes.items()}


def _vgg(blobs: Blobs, x: Tensor) -> dict[str, Tensor]:
    found = {"data": x}
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        hole = 2 if stage == 5 else 1
        for number in range(1, count + 1):
            x = F.relu(_conv(blobs, f"conv{stage}_{number}", x, pad=hole, hole=hole))
        found[f"pool{stage}"] = x = F.max_pool2d(x, 3, 2 if stage < 4 else 1, 1, ceil_mode=True)
    return found


def caffe_v1(blobs: Blobs, pixels: Tensor, *, pad: int = 12, hole: int = 12, average: bool = True) -> Tensor:
    """LargeFOV: scores at every 8th pixel, for sides of 32 k - 31. With branches, of the sum at full resolution."""
    pools = _vgg(blobs, for_caffe(pixels))
    x = F.avg_pool2d(pools["pool5"], 3, 1, 1) if average else pools["pool5"]
    x = F.relu(_conv(blobs, "fc6", x, pad=pad, hole=hole))
    scores = _conv(blobs, "fc8_voc12", F.relu(_conv(blobs, "fc7", x)))
    if "data_ms" not in blobs:
        return scores
    size = pixels.shape[2:]
    total = F.interpolate(scores, size, mode="bilinear", align_corners=True)
    for name in ("data", "pool1", "pool2", "pool3", "pool4"):
        x = F.relu(_conv(blobs, f"{name}_conv", pools[name], pad=1))
        x = _conv(blobs, f"{name}_ms", F.relu(_conv(blobs, f"{name}_fc", x)))
        total = total + F.interpolate(x, size, mode="bilinear", align_corners=True)
    return total[:, :, ::8, ::8]


def caffe_v2_vgg(blobs: Blobs, pixels: Tensor) -> Tensor:
    """ASPP-L on VGG-16."""
    x = _vgg(blobs, for_caffe(pixels))["pool5"]
    total = 0
    for branch, hole in enumerate((6, 12, 18, 24), 1):
        y = F.relu(_conv(blobs, f"fc6_{branch}", x, pad=hole, hole=hole))
        total = total + _conv(blobs, f"fc8_voc12_{branch}", F.relu(_conv(blobs, f"fc7_{branch}", y)))
    return total


def block_letters(count: int) -> list[str]:
    return list("abc") if count == 3 else ["a"] + [f"b{number}" for number in range(1, count)]


def resnet_shapes(classes: int, width: int, blocks: tuple[int, ...] = BLOCKS[101]) -> dict[str, list[tuple[int, ...]]]:
    found: dict[str, list[tuple[int, ...]]] = {}

    def add(conv: str, norm: str, *size: int) -> None:
        found[conv] = [size]
        found[f"bn{norm}"] = [(size[0],), (size[0],), (1,)]
        found[f"scale{norm}"] = [(size[0],), (size[0],)]

    add("conv1", "_conv1", width, 3, 7, 7)
    entering = width
    for stage, count in enumerate(blocks, 2):
        inner = width * 2 ** (stage - 2)
        for letter in block_letters(count):
            name = f"{stage}{letter}_branch"
            if letter == "a":
                add(f"res{name}1", f"{name}1", 4 * inner, entering, 1, 1)
            add(f"res{name}2a", f"{name}2a", inner, entering, 1, 1)
            add(f"res{name}2b", f"{name}2b", inner, inner, 3, 3)
            add(f"res{name}2c", f"{name}2c", 4 * inner, inner, 1, 1)
            entering = 4 * inner
    for branch in range(4):
        found[f"fc1_voc12_c{branch}"] = [(classes, entering, 3, 3), (classes,)]
    return found


def fill_resnet(shapes: dict[str, list[tuple[int, ...]]], seed: int = 0) -> Blobs:
    """As `fill`, with sums of means and of variances over a moving average's weight, as Caffe keeps them."""
    blobs = fill(shapes, seed)
    for name, values in blobs.items():
        if name.startswith("bn"):
            factor = torch.tensor([999.9823])
            blobs[name] = [values[0] * factor, (values[1].abs() + 0.5) * factor, factor]
        elif name.startswith("scale"):
            blobs[name] = [values[0].abs() + 0.3, values[1]]
    return blobs


def _norm(blobs: Blobs, name: str, x: Tensor) -> Tensor:
    mean, variance, factor = blobs[f"bn{name}"]
    weight, bias = (one[:, None, None] for one in blobs[f"scale{name}"])
    x = (x - (mean / factor)[:, None, None]) / torch.sqrt((variance / factor)[:, None, None] + 1e-5)
    return x * weight + bias


def caffe_v2_resnet(blobs: Blobs, pixels: Tensor, blocks: tuple[int, ...] = BLOCKS[101]) -> Tensor:
    """Of one scale."""
    x = F.relu(_norm(blobs, "_conv1", _conv(blobs, "conv1", for_caffe(pixels), stride=2, pad=3)))
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
    for stage, count in enumerate(blocks, 2):
        hole, first = {4: 2, 5: 4}.get(stage, 1), 2 if stage == 3 else 1
        for letter in block_letters(count):
            name, stride = f"{stage}{letter}_branch", first if letter == "a" else 1
            shortcut = x
            if letter == "a":
                shortcut = _norm(blobs, f"{name}1", _conv(blobs, f"res{name}1", x, stride=stride))
            x = F.relu(_norm(blobs, f"{name}2a", _conv(blobs, f"res{name}2a", x, stride=stride)))
            x = F.relu(_norm(blobs, f"{name}2b", _conv(blobs, f"res{name}2b", x, pad=hole, hole=hole)))
            x = F.relu(_norm(blobs, f"{name}2c", _conv(blobs, f"res{name}2c", x)) + shortcut)
    return sum(_conv(blobs, f"fc1_voc12_c{i}", x, pad=hole, hole=hole) for i, hole in enumerate((6, 12, 18, 24)))


DILATION_MEANS = {
    "voc": (102.93, 111.36, 116.52),
    "front": (102.93, 111.36, 116.52),
    "camvid": (110.70313206, 108.77808759, 105.41212523),
    "kitti": (96.19429688, 95.55136972, 91.34692262),
    "cityscapes": (72.39, 82.91, 73.16),
}
"""Blue, green, red."""
DILATION_LEVELS = {"voc": 5, "front": 0, "camvid": 5, "kitti": 4, "cityscapes": 7}
"""Highest number of `ctx_conv{number}_1`."""


def dilation_shapes(classes: int, width: int, data: str) -> dict[str, list[tuple[int, ...]]]:
    """Blobs of the authors' dilation*_deploy.prototxt for each data set."""
    large, fc = data == "voc", 64 * width
    found = vgg_shapes(classes, width, heads=(), fc=0)
    found |= {"fc6": [(fc, 8 * width, 7, 7), (fc,)], "fc7": [(fc, fc, 1, 1), (fc,)]}
    found["fc-final" if large else "final"] = [(classes, fc, 1, 1), (classes,)]
    if data == "front":
        return found
    prefix, entering = "ct_" if large else "ctx_", classes
    names = ["conv1_1", "conv1_2", *(f"conv{number}_1" for number in range(2, DILATION_LEVELS[data] + 1)), "fc1"]
    for name, factor in zip(names, (2, 2, 4, 8, 16, 32, 32) if large else [1] * len(names), strict=True):
        found[prefix + name] = [(classes * factor, entering, 3, 3), (classes * factor,)]
        entering = classes * factor
    found[f"{prefix}final"] = [(classes, entering, 1, 1), (classes,)]
    if data == "cityscapes":
        found["ctx_upsample"] = [(classes, 1, 16, 16)]
    return found


def fill_dilation(classes: int, width: int, data: str) -> Blobs:
    blobs = fill(dilation_shapes(classes, width, data))
    if "ctx_upsample" in blobs:
        tent = torch.tensor([min(i + 0.5, 15.5 - i) / 8 for i in range(16)])
        blobs["ctx_upsample"] = [torch.outer(tent, tent).expand(classes, 1, 16, 16).contiguous()]
    return blobs


def caffe_dilation(blobs: Blobs, pixels: Tensor, data: str) -> Tensor:
    """Scores in front of the softmax, on a canvas of the image and the margins that predict.py mirrors."""
    mean = torch.tensor(DILATION_MEANS[data])[:, None, None]
    margins = [(186, 186 + -length % 8) for length in pixels.shape[2:]]
    padded = np.pad(for_caffe(pixels, mean).numpy(), [(0, 0), (0, 0), *margins], mode="reflect")
    x = torch.from_numpy(padded)
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        for number in range(1, count + 1):
            x = F.relu(_conv(blobs, f"conv{stage}_{number}", x, hole=2 if stage == 5 else 1))
        x = F.max_pool2d(x, 2, 2) if stage < 4 else x
    x = F.relu(_conv(blobs, "fc7", F.relu(_conv(blobs, "fc6", x, hole=4))))
    x = _conv(blobs, "fc-final" if data == "voc" else "final", x)
    if data == "front":
        return x
    prefix = "ct_" if data == "voc" else "ctx_"
    for name in (f"{prefix}conv1_1", f"{prefix}conv1_2"):
        pad = 1 if prefix == "ctx_" else 33 if name.endswith("1_1") else 0
        x = F.relu(_conv(blobs, name, x, pad=pad))
    for number in range(2, DILATION_LEVELS[data] + 1):
        hole = 2 ** (number - 1)
        x = F.relu(_conv(blobs, f"{prefix}conv{number}_1", x, pad=hole if prefix == "ctx_" else 0, hole=hole))
    x = F.relu(_conv(blobs, f"{prefix}fc1", x, pad=1 if prefix == "ctx_" else 0))
    x = _conv(blobs, f"{prefix}final", x)
    if "ctx_upsample" in blobs:
        x = F.conv_transpose2d(x, blobs["ctx_upsample"][0], stride=8, padding=4, groups=x.size(1))
        x = x[:, :, : pixels.size(2), : pixels.size(3)]
    return x


# ---------------------------------------------------------------- FRRN in Lasagne

FRRN_ENCODER = [(3, 1, 2), (4, 2, 4), (2, 3, 8), (2, 4, 8)]
FRRN_DECODER = [(2, 3, 4), (2, 2, 4), (2, 1, 2)]
FRRN_STAGES = {
    "a": (FRRN_ENCODER, FRRN_DECODER),
    "b": ([*FRRN_ENCODER, (2, 5, 8)], [(2, 4, 4), *FRRN_DECODER]),
}
"""Units, power of two of the pooling, and multiplier of the base channels, in dltools/architectures.py."""


class LasagneFRRN:
    """The authors' builder on a list of arrays in the order of Lasagne's parameters; without one it makes the list."""

    def __init__(self, letter: str, classes: int, *, base: int, lanes: int, arrays: list[np.ndarray] | None = None):
        self.letter, self.classes, self.base, self.lanes = letter, classes, base, lanes
        self.random = np.random.RandomState(0) if arrays is None else None
        self.arrays: list[np.ndarray] = [] if arrays is None else list(arrays)
        self.at = 0

    def array(self, kind: str, *size: int) -> np.ndarray:
        if self.random is not None:
            if kind == "inv_std":
                made = self.random.uniform(0.6, 1.4, size)
            elif kind == "gamma":
                made = self.random.uniform(0.3, 0.7, size)
            else:
                made = self.random.normal(0, 0.2 if len(size) == 1 else (2 / np.prod(size[1:])) ** 0.5, size)
            self.arrays.append(made.astype(np.float32))
        self.at += 1
        return self.arrays[self.at - 1]

    def conv(self, x: Tensor, leaving: int, kernel: int, *, relu: bool = True, bn: bool = True, bias: bool = False):
        weight = self.array("W", leaving, x.size(1), kernel, kernel)
        b = torch.from_numpy(self.array("b", leaving)) if bias else None
        flipped = torch.from_numpy(weight[:, :, ::-1, ::-1].copy())  # a convolution, not a correlation
        x = F.conv2d(x, flipped, b, padding=kernel // 2)
        if bn:
            kinds = ("beta", "gamma", "mean", "inv_std")
            beta, gamma, mean, inv_std = (torch.from_numpy(self.array(k, leaving))[:, None, None] for k in kinds)
            x = (x - mean) * (gamma * inv_std) + beta
        return x.relu() if relu else x

    def ru(self, x: Tensor) -> Tensor:
        y = self.conv(self.conv(x, self.base, 3), self.base, 3, relu=False)
        return y + (x if x.size(1) == self.base else self.conv(x, self.base, 1, relu=False, bn=False))

    def frru(self, y: Tensor, z: Tensor, pooling: int, channels: int) -> tuple[Tensor, Tensor]:
        y = torch.cat([y, F.max_pool2d(z, pooling)], 1)
        y = self.conv(self.conv(y, channels, 3), channels, 3)
        added = self.conv(y, self.lanes, 1, relu=False, bn=False, bias=True)
        return y, z + added.repeat_interleave(pooling, 2).repeat_interleave(pooling, 3)

    @staticmethod
    def up(x: Tensor) -> Tensor:
        """Every second pixel has a value, those between the mean of their neighbours."""
        for axis in (2, 3):
            behind = torch.cat([x.narrow(axis, 1, x.size(axis) - 1), x.narrow(axis, -1, 1)], axis)
            x = torch.stack([x, (x + behind) / 2], axis + 1).flatten(axis, axis + 1)
        return x

    def __call__(self, x: Tensor) -> Tensor:
        self.at = 0
        y = self.ru(self.ru(self.ru(self.conv(x, self.base, 5))))
        z = self.conv(y, self.lanes, 1, relu=False)
        for down, stages in zip((True, False), FRRN_STAGES[self.letter], strict=True):
            for units, power, multiplier in stages:
                y = F.max_pool2d(y, 2) if down else self.up(y)
                for _ in range(units):
                    y, z = self.frru(y, z, 2**power, self.base * multiplier)
        y = self.ru(self.ru(self.ru(torch.cat([self.up(y), z], 1))))
        return self.conv(y, self.classes, 1, relu=False, bn=False, bias=True)


def lasagne_frrn(letter: str, classes: int, *, base: int, lanes: int) -> LasagneFRRN:
    """A network whose arrays are made."""
    network = LasagneFRRN(letter, classes, base=base, lanes=lanes)
    network(torch.zeros(1, 3, 64, 64))
    network.random = None
    return network


# ---------------------------------------------------------------- ENet


ENET_STAGE = ("regular", "dilated", "asymmetric", "dilated", "regular", "dilated", "asymmetric", "dilated")
ENET_RATES = (1, 2, 1, 4, 1, 8, 1, 16)


class DavidtvsBlock(nn.Module):
    """A bottleneck of davidtvs/PyTorch-ENet, models/enet.py; `old`: as of commit 921e40c."""

    def __init__(self, kind: str, entering: int, leaving: int, *, rate: int = 1, old: bool, relu: bool) -> None:
        super().__init__()
        inside = entering // 4
        self.kind, self.old, self.more = kind, old, leaving - entering

        def act() -> nn.Module:
            return nn.ReLU() if relu else nn.PReLU()

        def norm(channels: int) -> nn.BatchNorm2d:
            return nn.BatchNorm2d(channels)

        first = nn.Conv2d(entering, inside, 2, 2, bias=False) if kind == "down" else conv(entering, inside)
        self.ext_conv1 = layers(first, norm(inside), act())
        if kind == "up":
            self.main_conv1 = layers(conv(entering, leaving), norm(leaving))
        if kind == "up" and not old:
            self.ext_tconv1 = nn.ConvTranspose2d(inside, inside, 2, 2, bias=False)
            self.ext_tconv1_bnorm, self.ext_tconv1_activation = norm(inside), act()
            self.ext_conv2 = layers(conv(inside, leaving), norm(leaving))
        else:
            middle = [conv(inside, inside, 3, rate=rate), norm(inside), act()]
            if kind == "up":
                middle[0] = nn.ConvTranspose2d(inside, inside, 3, 2, 1, output_padding=1, bias=False)
            if kind == "asymmetric":
                tall = nn.Conv2d(inside, inside, (5, 1), padding=(2, 0), bias=False)
                wide = nn.Conv2d(inside, inside, (1, 5), padding=(0, 2), bias=False)
                middle = [tall, norm(inside), act(), wide, norm(inside), act()]
            self.ext_conv2 = layers(*middle)
            self.ext_conv3 = layers(conv(inside, leaving), norm(leaving), act())
        if old:
            self.out_prelu = nn.PReLU(leaving)
        else:
            self.out_activation = act()

    def forward(self, x: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        side = self.ext_conv1(x)
        if self.kind == "up" and not self.old:
            side = self.ext_conv2(self.ext_tconv1_activation(self.ext_tconv1_bnorm(self.ext_tconv1(side))))
        else:
            side = self.ext_conv3(self.ext_conv2(side))
        if self.kind == "down":
            pooling = nn.MaxPool2d(3 if self.old else 2, 2, 1 if self.old else 0, return_indices=True)
            x, where = pooling(x)
            x = torch.cat([x, x.new_zeros(x.size(0), self.more, *x.shape[2:])], 1)
        elif self.kind == "up":
            x = nn.MaxUnpool2d(2)(self.main_conv1(x), where, output_size=side.shape)
        return (self.out_prelu if self.old else self.out_activation)(x + side), where


class DavidtvsENet(nn.Module):
    """ENet of davidtvs; for sides that are multiples of 8, where it does not round down. `width` is 16 there."""

    def __init__(
        self, classes: int, *, width: int = 16, old: bool = False, encoder_relu: bool = False, decoder_relu: bool = True
    ) -> None:
        super().__init__()
        first, narrow, wide = width, 4 * width, 8 * width
        start = {"main_branch": conv(3, first - 3, 3, stride=2), "batch_norm": nn.BatchNorm2d(first)}
        slopes = nn.PReLU(first) if old else nn.ReLU() if encoder_relu else nn.PReLU()
        self.initial_block = nn.ModuleDict(start | {"out_prelu" if old else "out_activation": slopes})
        plan = [("downsample1_0", "down", first, narrow, 1)]
        plan += [(f"regular1_{number}", "regular", narrow, narrow, 1) for number in range(1, 5)]
        plan += [("downsample2_0", "down", narrow, wide, 1)]
        for stage, offset in ((2, 1), (3, 0)):
            rows = enumerate(zip(ENET_STAGE, ENET_RATES, strict=True), offset)
            plan += [(f"{kind}{stage}_{number}", kind, wide, wide, rate) for number, (kind, rate) in rows]
        plan += [("upsample4_0", "up", wide, narrow, 1), ("regular4_1", "regular", narrow, narrow, 1)]
        plan += [("regular4_2", "regular", narrow, narrow, 1), ("upsample5_0", "up", narrow, first, 1)]
        plan += [("regular5_1", "regular", first, first, 1)]
        self.plan = [name for name, *_ in plan]
        for name, kind, entering, leaving, rate in plan:
            relu = False if old else decoder_relu if name[-3] in "45" else encoder_relu
            self.add_module(name, DavidtvsBlock(kind, entering, leaving, rate=rate, old=old, relu=relu))
        self.transposed_conv = nn.ConvTranspose2d(first, classes, 3, 2, 1, output_padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        start = self.initial_block
        x = start["batch_norm"](torch.cat([start["main_branch"](x), F.max_pool2d(x, 3, 2, 1)], 1))
        x = start["out_prelu" if "out_prelu" in start else "out_activation"](x)
        pooled = []
        for name in self.plan:
            x, where = getattr(self, name)(x, pooled.pop() if name.startswith("up") else None)
            if name.startswith("down"):
                pooled.append(where)
        return self.transposed_conv(x)


class ArunavaBlock(nn.Module):
    """A bottleneck of iArunava/ENet-Real-Time-Semantic-Segmentation: models/RDDNeck.py, ASNeck.py and UBNeck.py."""

    def __init__(self, kind: str, entering: int, leaving: int, *, rate: int = 1, relu: bool = False) -> None:
        super().__init__()
        inside = entering // 4
        self.kind, self.more = kind, leaving - entering
        one = nn.ReLU() if relu else nn.PReLU()
        self.bnorm1, self.bnorm2, self.bnorm3 = (nn.BatchNorm2d(channels) for channels in (inside, inside, leaving))
        if kind == "up":
            self.main_conv = nn.Conv2d(entering, leaving, 1)
            self.convt1 = nn.ConvTranspose2d(entering, inside, 1, bias=False)
            self.convt2 = nn.ConvTranspose2d(inside, inside, 3, 2, 1, output_padding=1, bias=False)
            self.convt3 = nn.ConvTranspose2d(inside, leaving, 1, bias=False)
        else:
            self.conv1, self.conv3 = conv(entering, inside), conv(inside, leaving)
        if kind == "asymmetric":
            self.conv21 = nn.Conv2d(inside, inside, (1, 5), padding=(0, 2), bias=False)
            self.conv22 = nn.Conv2d(inside, inside, (5, 1), padding=(2, 0), bias=False)
            self.prelu1, self.prelu2, self.prelu3 = nn.PReLU(), nn.PReLU(), nn.PReLU()
            return
        if kind != "up":
            self.conv2 = nn.Conv2d(inside, inside, 3, 2 if kind == "down" else 1, rate, rate)
        self.prelu1, self.prelu2, self.prelu3 = one, one, one

    def forward(self, x: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        up = self.kind == "up"
        side = self.prelu1(self.bnorm1((self.convt1 if up else self.conv1)(x)))
        if self.kind == "asymmetric":
            side = self.conv22(self.conv21(side))
        else:
            side = (self.convt2 if up else self.conv2)(side)
        side = self.bnorm3((self.convt3 if up else self.conv3)(self.prelu2(self.bnorm2(side))))
        if self.kind == "down":
            x, where = nn.MaxPool2d(2, 2, return_indices=True)(x)
            x = torch.cat([x, x.new_zeros(x.size(0), self.more, *x.shape[2:])], 1)
        elif up:
            x = nn.MaxUnpool2d(2, 2)(self.main_conv(x), where, output_size=side.shape)
        return self.prelu3(x + side), where


class ArunavaENet(nn.Module):
    """ENet of iArunava; for sides that are multiples of 8. `width` is 16 there."""

    def __init__(self, classes: int, *, width: int = 16) -> None:
        super().__init__()
        first, narrow, wide = width, 4 * width, 8 * width
        start = {"conv": nn.Conv2d(3, first - 3, 3, 2, 1), "batchnorm": nn.BatchNorm2d(first - 3)}
        self.init = nn.ModuleDict(start | {"prelu": nn.PReLU(first)})
        blocks = {"b10": ArunavaBlock("down", first, narrow)}
        blocks |= {f"b1{number}": ArunavaBlock("regular", narrow, narrow) for number in range(1, 5)}
        blocks["b20"] = ArunavaBlock("down", narrow, wide)
        for stage in (2, 3):
            for number, (kind, rate) in enumerate(zip(ENET_STAGE, ENET_RATES, strict=True), 1):
                blocks[f"b{stage}{number}"] = ArunavaBlock(kind, wide, wide, rate=rate)
        blocks["b40"] = ArunavaBlock("up", wide, narrow, relu=True)
        blocks |= {f"b4{number}": ArunavaBlock("regular", narrow, narrow, relu=True) for number in (1, 2)}
        blocks["b50"] = ArunavaBlock("up", narrow, first, relu=True)
        blocks["b51"] = ArunavaBlock("regular", first, first, relu=True)
        self.plan = list(blocks)
        for name, block in blocks.items():
            self.add_module(name, block)
        self.fullconv = nn.ConvTranspose2d(first, classes, 3, 2, 1, output_padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        start = self.init
        x = start["prelu"](torch.cat([start["batchnorm"](start["conv"](x)), F.max_pool2d(x, 2)], 1))
        pooled = []
        for name in self.plan:
            x, where = getattr(self, name)(x, pooled.pop() if name in ("b40", "b50") else None)
            if name in ("b10", "b20"):
                pooled.append(where)
        return self.fullconv(x)

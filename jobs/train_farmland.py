"""Train the shipped `farmland` network: `nice python -m jobs.train_farmland --output pipeline/weights/farmland`.

Two minutes on a CPU: `python -m jobs.train_farmland --output /tmp/farmland --steps 200 --validate 16`.

Every image is generated when it is needed and never used twice. What is measured at the end is the network as it is
shipped, rounded to float16, on images of seeds that training never draws.
"""

import argparse
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from pipeline import checkpoint, classes
from pipeline.datasets import farmland
from pipeline.models import zoo

IMAGE_PX = 256
INTERIM = Path(tempfile.gettempdir()) / "farmland-interim.safetensors"
FIRST_TRAINING_SEED = 1_000_000
FIRST_VALIDATION_SEED = 500_000
CLASSES = classes.load("farmland")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETWORK: dict[str, Any] = {
    "backbone": "mobilenet_v2",
    "width_multiplier": 0.5,
    "aspp_channels": 128,
    "decoder_channels": 96,
    "low_level_channels": 32,
    "separable": True,
}


class Flights(Dataset[tuple[Tensor, Tensor]]):
    """Generated images in one of eight symmetries, some at another flying height, some with JPEG's artefacts."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(3, H, W) uint8 pixels and (H, W) int64 class ids."""
        rng = np.random.default_rng(FIRST_TRAINING_SEED + index)
        size = round(IMAGE_PX / rng.uniform(0.85, 1.2)) if rng.random() < 0.4 else IMAGE_PX
        sample = farmland.generate(FIRST_TRAINING_SEED + index, height=size, width=size)
        image, label = PILImage.fromarray(sample.image_hwc), PILImage.fromarray(sample.label_hw)
        image = image.resize((IMAGE_PX, IMAGE_PX), PILImage.Resampling.BILINEAR)
        label = label.resize((IMAGE_PX, IMAGE_PX), PILImage.Resampling.NEAREST)
        if rng.random() < 0.6:
            image = as_jpeg(image, quality=int(rng.integers(70, 96)))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        label_hw = symmetry(np.asarray(label), turns=turns, flip=flip)
        return channels_first(symmetry(np.asarray(image), turns=turns, flip=flip)), torch.from_numpy(label_hw).long()


def as_jpeg(image: PILImage.Image, *, quality: int) -> PILImage.Image:
    """The image after a round trip through JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return PILImage.open(buffer).convert("RGB")


def symmetry(array: npt.NDArray[np.uint8], *, turns: int, flip: bool) -> npt.NDArray[np.uint8]:
    """One of the eight symmetries of a square, on the first two axes."""
    turned = np.rot90(array, turns)
    return np.array(turned[:, ::-1] if flip else turned, order="C")


def channels_first(image_hwc: npt.NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to (3, H, W), still uint8."""
    return torch.from_numpy(np.ascontiguousarray(image_hwc.transpose(2, 0, 1)))


def normalised(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 to float32 as the network takes it, channels last in memory."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def full_size_logits(network: nn.Module, images: Tensor) -> Tensor:
    """(N, K, H, W) float32 scores for (N, 3, H, W) uint8 images."""
    logits = network(normalised(images)).float()
    return functional.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


def learning_rate(step: int, *, steps: int, peak: float, warmup: int = 100) -> float:
    """Poly schedule of power 0.9 (Chen 2017, arXiv 1706.05587, sec. 4.1) after a linear warm-up."""
    return peak * min(1.0, (step + 1) / warmup) * (1 - step / steps) ** 0.9


def train(network: nn.Module, args: argparse.Namespace) -> None:
    """Train in place; say how it goes and keep interim weights."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    flights = Flights(args.steps * args.batch)
    loader = DataLoader(flights, args.batch, num_workers=1, prefetch_factor=12, multiprocessing_context="spawn")
    began, losses = time.monotonic(), []
    for step, (images, labels) in enumerate(loader):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps=args.steps, peak=args.lr)
        losses.append(one_step(network, optimiser, images, labels))
        if (step + 1) % 25 == 0:
            per_s = (step + 1) / (time.monotonic() - began)
            said = f"step {step + 1}/{args.steps}  loss {np.mean(losses[-25:]):.3f}"
            said += f"  lr {optimiser.param_groups[0]['lr']:.5f}  {per_s * args.batch:.1f} images/s"
            print(f"{said}  {(args.steps - step - 1) / per_s / 60:.1f} min left", flush=True)
        if (step + 1) % args.every == 0:
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, args.interim)
            print(described(iou(confusion(network, 24))), flush=True)


def one_step(network: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """One update on the cross entropy at full size, in bf16 where that is safe; returns the loss."""
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = full_size_logits(network, images)
    loss = functional.cross_entropy(logits.float(), labels, ignore_index=CLASSES.ignore_id)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.item()


def halved(network: nn.Module) -> dict[str, Tensor]:
    """The state dict in float16; the network itself gets the rounded values."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return state


def confusion(network: nn.Module, count: int) -> npt.NDArray[np.int64]:
    """(K, K) pixels by true class (row) and predicted class over `count` images that training never sees."""
    matrix = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    network.eval()
    for seed in range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + count):
        sample = farmland.generate(seed, height=IMAGE_PX, width=IMAGE_PX)
        with torch.inference_mode():
            said = full_size_logits(network, channels_first(sample.image_hwc)[None]).argmax(1)[0].numpy()
        np.add.at(matrix, (sample.label_hw.ravel(), said.ravel()), 1)
    return matrix


def iou(matrix: npt.NDArray[np.int64]) -> dict[str, float]:
    """Intersection over union by class name, 0 to 1."""
    hits = np.diag(matrix)
    return dict(zip(CLASSES.names, (hits / (matrix.sum(0) + matrix.sum(1) - hits)).tolist(), strict=True))


def described(by_class: dict[str, float]) -> str:
    """One line: mIoU, then every class."""
    return f"mIoU {mean_iou(by_class):.4f}  " + "  ".join(f"{name} {value:.3f}" for name, value in by_class.items())


def mean_iou(by_class: dict[str, float]) -> float:
    """Every class counts the same."""
    return sum(by_class.values()) / len(by_class)


def card(args: argparse.Namespace, by_class: dict[str, float]) -> checkpoint.Card:
    """What was trained, how, and how good it is."""
    training: dict[str, Any] = {
        "data": f"generated by pipeline/datasets/farmland.py, {IMAGE_PX}x{IMAGE_PX} pixels, no image twice",
        "seeds": f"{FIRST_TRAINING_SEED} to {FIRST_TRAINING_SEED + args.steps * args.batch - 1}",
        "command": f"python -m jobs.train_farmland --output {args.output} --steps {args.steps} --batch {args.batch}"
        f" --lr {args.lr} --weight-decay {args.weight_decay}",
        "steps": args.steps,
        "validation_seeds": f"{FIRST_VALIDATION_SEED} to {FIRST_VALIDATION_SEED + args.validate - 1}",
        "validation_images": args.validate,
        "miou": round(mean_iou(by_class), 4),
        "iou": {name: round(value, 4) for name, value in by_class.items()},
    }
    return checkpoint.Card(
        architecture="deeplab_v3plus",
        options=NETWORK,
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        training=training,
        source="trained from scratch by jobs/train_farmland.py",
        license="Apache-2.0",
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the farmland network on generated images.")
    parser.add_argument("--output", type=Path, required=True, help="folder for model.safetensors and card.json")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of AdamW")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--validate", type=int, default=200, help="images to measure on")
    parser.add_argument("--every", type=int, default=500, help="steps between interim weights and figures")
    parser.add_argument("--interim", type=Path, default=INTERIM, help="interim weights")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Train, round, measure, save."""
    args = parse(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = zoo.build("deeplab_v3plus", len(CLASSES), **NETWORK).to(memory_format=torch.channels_last)
    train(network, args)
    state = halved(network)
    by_class = iou(confusion(network, args.validate))
    print(described(by_class))
    digest = checkpoint.save(str(args.output), state, card(args, by_class))
    print(f"{args.output}: {digest[:12]}")


if __name__ == "__main__":
    main(sys.argv[1:])

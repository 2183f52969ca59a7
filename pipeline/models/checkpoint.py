"""Checkpoints: a folder with `model.safetensors` (the tensors) and `card.json` (architecture, classes, origin).

In: a folder's URL or the name of a shipped checkpoint. Out: exactly the trained network, in eval mode. Nothing is
unpickled or executed: a file that is not safetensors is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.models import zoo
from pipeline.models.card import CARD_FILE, WEIGHTS_FILE, Card, listed, load_card, read_file
from pipeline.models.network import Network
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.store.url import Url

MAX_WEIGHTS_BYTES = 4 * 2**30

PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of files by `torch.save`: a zip archive, or before torch 1.6 a bare pickle."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A card, and exactly the tensors of its network.

    Raises:
        ConfigError: tensors are missing, extra, or of another shape or kind than the network's; lists them.
    """

    card: Card
    state: dict[str, Tensor]
    """The state dict, on the CPU, in the dtypes of the file."""
    sha256: str
    """Digest over the bytes of the weights file and the card's canonical bytes, 64 hex digits."""

    def __post_init__(self) -> None:
        _check_state(self.state, self.card)

    def build(self, output_stride: int | None = None) -> Network:
        """Build the network in eval mode, float32, on the CPU.

        Args:
            output_stride: an output stride of the network; None takes the card's.
        """
        network = blank(self.card, output_stride)
        copies = {name: tensor.to(_kept(tensor), copy=True) for name, tensor in self.state.items()}
        network.load_state_dict(copies, assign=True)
        return network.eval()


def save_checkpoint(url: Url, state: Mapping[str, Tensor], card: Card) -> str:
    """Write a checkpoint folder: weights first, then the card, so a new folder with a card is complete.

    Args:
        url: the folder. Overwriting is not atomic, since it has two files: nobody may read it meanwhile.
        state: state dict of the network; any dtype (float16 halves the file), any device.
        card: description of the checkpoint.

    Returns:
        `Checkpoint.sha256` of the written folder.

    Raises:
        ConfigError: the tensors are not those of the card's network; nothing is written.
    """
    _check_state(state, card)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    weights = safetensors.torch.save(plain)
    objects.put(url / WEIGHTS_FILE, weights)
    objects.put(url / CARD_FILE, json.dumps(card.plain(), indent=2, ensure_ascii=False).encode() + b"\n")
    return _digest(weights, card)


def load_checkpoint(ref: str) -> Checkpoint:
    """Read a checkpoint and check it against the network its card names.

    Args:
        ref: a shipped name, or the URL of a folder; `./farmland` is a folder, `farmland` the shipped checkpoint.

    Raises:
        ConfigError: there is none, a file is damaged or not safetensors, or card and tensors disagree.
    """
    card = load_card(ref)
    weights = read_file(ref, WEIGHTS_FILE, max_bytes=MAX_WEIGHTS_BYTES)
    state = _parse_weights(weights, origin=f"{WEIGHTS_FILE} of {redact(ref)}")
    return Checkpoint(card, state, _digest(weights, card))


def _parse_weights(data: bytes, *, origin: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        if data.startswith(PICKLE_STARTS):
            hint = "a pickle can run code, so it is never loaded; convert it where you trust the file"
            raise ConfigError(f"{origin} is a pickle, as torch.save writes, not safetensors", hint=hint) from error
        raise ConfigError(f"{origin} is not a whole safetensors file: {error}") from error


def blank(card: Card, output_stride: int | None = None) -> Network:
    """The card's network on the meta device, without memory: to count parameters, and to check card and output stride.

    Raises:
        ConfigError: as `zoo.build_network`.
    """
    with torch.device("meta"):
        return zoo.build_network(
            card.architecture,
            len(card.classes),
            in_channels=card.in_channels,
            output_stride=output_stride or card.output_stride,
            **card.options,
        )


def shapes(card: Card, *, classes: int = 0, bands: int = 0) -> dict[str, torch.Size]:
    """Shape of each tensor of a card's network, with so many more classes or bands."""
    with torch.device("meta"):
        network = zoo.build_network(
            card.architecture,
            len(card.classes) + classes,
            in_channels=card.in_channels + bands,
            output_stride=card.output_stride,
            **card.options,
        )
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _check_state(state: Mapping[str, Tensor], card: Card) -> None:
    """Refuse a state dict that is not exactly the network's, tensor by tensor."""
    expected = blank(card).state_dict()
    lines = [f"missing: {name} {_shape(expected[name])}" for name in expected if name not in state]
    lines += [f"extra: {name} {_shape(state[name])}" for name in state if name not in expected]
    lines += [
        f"other shape: {name} is {_shape(state[name])}, the network's is {_shape(expected[name])}"
        for name in expected
        if name in state and _shape(state[name]) != _shape(expected[name])
    ]
    if lines:
        hint = f"the card says {card.architecture} {card.options}, {len(card.classes)} classes ({card.classes.name})"
        raise ConfigError("the tensors are not those of the card's network:" + listed(lines), hint=hint)


def _shape(tensor: Tensor) -> str:
    """Sizes of a tensor, and its dtype unless floating point: the properties that must agree."""
    sizes = "x".join(map(str, tensor.shape)) or "scalar"
    return sizes if tensor.is_floating_point() else f"{sizes} {str(tensor.dtype).removeprefix('torch.')}"


def _kept(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _digest(weights: bytes, card: Card) -> str:
    digest = hashlib.sha256(weights)
    digest.update(card.canonical_bytes())
    return digest.hexdigest()

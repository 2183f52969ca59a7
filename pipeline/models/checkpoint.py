"""Checkpoints: a folder with `model.safetensors` (the tensors) and `card.json` (architecture, classes, origin).

In: a folder's URL or the name of a shipped checkpoint. Out: exactly the trained network, in eval mode. Nothing is
unpickled or executed: a file that is not safetensors is refused.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor

from pipeline.classes import ClassMap
from pipeline.config import BandScale, explain
from pipeline.errors import ConfigError, InputError
from pipeline.models import zoo
from pipeline.models.network import BUILDERS_OWN, Network
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.store.url import Url

SHIPPED = Path(__file__).parent / "weights"
WEIGHTS_FILE, CARD_FILE = "model.safetensors", "card.json"
MAX_WEIGHTS_BYTES, MAX_CARD_BYTES = 4 * 2**30, 2**20
_SHOWN = 8
"""Lines of a list of differences in an error; the rest is counted."""

PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""First bytes of files by `torch.save`: a zip archive, or before torch 1.6 a bare pickle."""

Fraction = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0)]


class Card(BaseModel):
    """Description of a checkpoint: architecture, input, classes and origin."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: str = Field(description="Network name in `models.zoo`.")
    options: dict[str, JsonValue] = Field({}, description="Options of the network.")
    in_channels: int = Field(3, ge=1, le=16, description="Bands of the input.")
    output_stride: int = Field(16, ge=1, description="Encoder stride of the training.")
    classes: ClassMap = Field(description="Classes of the logits' channels.")
    mean: tuple[Fraction, ...] = Field(description="Mean of each channel, subtracted after scaling pixels to 0 to 1.")
    std: tuple[_Deviation, ...] = Field(description="Standard deviation of each channel, divides after that.")
    channels: tuple[str, ...] = Field(("red", "green", "blue"), description="Names of the bands, in input order.")
    scale: BandScale | None = Field(
        None, description="Scale of stored samples to 8 bits; none: 8 bits as they are, 16 bits divided by 257."
    )
    training: dict[str, JsonValue] = Field({}, description="Data, seeds, command and metrics of the training.")
    source: str = Field(description="Who trained it, or its original URL.")
    license: str = Field(description="SPDX name of the licence of the weights.")

    @model_validator(mode="after")
    def _options_are_the_networks_own(self) -> "Card":
        if reserved := BUILDERS_OWN & self.options.keys():
            raise ValueError(
                f"options must not contain {', '.join(sorted(reserved))}: the card has fields of their own"
            )
        return self

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> "Card":
        for name in ("mean", "std", "channels"):
            if len(getattr(self, name)) != self.in_channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.in_channels} channels")
        if self.scale is not None and len(self.scale.low) != self.in_channels:
            raise ValueError(f"scale has {len(self.scale.low)} values for {self.in_channels} channels")
        return self

    def canonical_bytes(self) -> bytes:
        """Canonical JSON of the card, the same on every machine: sorted keys, ASCII, no blanks."""
        return json.dumps(self.plain(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def plain(self) -> dict[str, JsonValue]:
        """Fields as plain data; without `scale` where it is None, as in cards that were written before it existed."""
        return self.model_dump(mode="json", exclude={"scale"} if self.scale is None else None)


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


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD_FILE}"))


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
    weights = _read(ref, WEIGHTS_FILE, max_bytes=MAX_WEIGHTS_BYTES)
    state = _parse_weights(weights, origin=f"{WEIGHTS_FILE} of {redact(ref)}")
    return Checkpoint(card, state, _digest(weights, card))


def load_card(ref: str) -> Card:
    """Read the card of a checkpoint alone, a few kilobytes.

    Raises:
        ConfigError: there is no checkpoint at `ref`, or fields of the card are wrong; lists them.
    """
    origin = f"{CARD_FILE} of {redact(ref)}"
    try:
        return Card.model_validate(json.loads(_read(ref, CARD_FILE, max_bytes=MAX_CARD_BYTES)))
    except ValidationError as error:
        raise explain(error, origin=origin, model=Card) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} is not JSON: {error}") from error


def check_classes(card: Card, classes: ClassMap) -> None:
    """Refuse a class map whose ids have other meanings than the checkpoint's.

    Raises:
        ConfigError: the maps differ; has both counts and the ids with different names.
    """
    if not (lines := card.classes.differences(classes)):
        return
    counts = f"checkpoint has {len(card.classes)} classes ({card.classes.name})"
    counts += f", class map {classes.name} has {len(classes)}"
    raise ConfigError(f"{counts}; checkpoint / class map:{_listed(lines)}", hint="leave --classes unset")


def _read(ref: str, file: str, *, max_bytes: int) -> bytes:
    url = Url(str(SHIPPED / ref) if ref in shipped_checkpoints() else ref) / file
    try:
        return objects.read_bytes(url, max_bytes=max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        known = ", ".join(shipped_checkpoints()) or "none"
        hint = f"give the folder of {CARD_FILE} and {WEIGHTS_FILE}, or a shipped checkpoint: {known}"
        raise ConfigError(f"no checkpoint {redact(ref)!r}: it has no {file}", hint=hint) from error
    except InputError as error:
        raise ConfigError(f"{file} of {redact(ref)}: {error.detail}") from error


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
        raise ConfigError("the tensors are not those of the card's network:" + _listed(lines), hint=hint)


def _shape(tensor: Tensor) -> str:
    """Sizes of a tensor, and its dtype unless floating point: the properties that must agree."""
    sizes = "x".join(map(str, tensor.shape)) or "scalar"
    return sizes if tensor.is_floating_point() else f"{sizes} {str(tensor.dtype).removeprefix('torch.')}"


def _kept(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _listed(lines: list[str]) -> str:
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "".join(f"\n  {line}" for line in lines[:_SHOWN] + more)


def _digest(weights: bytes, card: Card) -> str:
    digest = hashlib.sha256(weights)
    digest.update(card.canonical_bytes())
    return digest.hexdigest()

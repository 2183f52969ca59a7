"""Checkpoints: a folder with `model.safetensors` (the tensors) and `card.json` (what they are).

In: a folder's URL or the name of a shipped checkpoint. Out: a network in eval mode that is exactly the one that was
trained. Nothing here unpickles or runs what it reads: a file that is not safetensors is refused.
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
from pipeline.config import explain
from pipeline.errors import ConfigError, InputError
from pipeline.models import zoo
from pipeline.models.network import BUILDERS_OWN, Network
from pipeline.store import objects

SHIPPED = Path(__file__).parent / "weights"
WEIGHTS_FILE, CARD_FILE = "model.safetensors", "card.json"
MAX_WEIGHTS_BYTES, MAX_CARD_BYTES = 4 * 2**30, 2**20
_SHOWN = 8
"""Lines of a list of differences before it is cut short."""

PICKLE_STARTS = (b"PK\x03\x04", b"\x80")
"""How files of `torch.save` begin: a zip archive, or before torch 1.6 a bare pickle."""

Fraction = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0)]


class Card(BaseModel):
    """What a checkpoint is: enough to build its network, feed it, read its masks and know where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    architecture: str = Field(description="Network name in `models.zoo`.")
    options: dict[str, JsonValue] = Field({}, description="Options of the network.")
    in_channels: int = Field(3, ge=1, le=16, description="Bands of the input.")
    output_stride: int = Field(16, ge=1, description="Encoder stride it was trained at.")
    classes: ClassMap = Field(description="What the logits' channels mean.")
    mean: tuple[Fraction, ...] = Field(description="Subtracted from each channel, after scaling pixels to 0 to 1.")
    std: tuple[_Deviation, ...] = Field(description="Divides each channel after that.")
    channels: tuple[str, ...] = Field(("red", "green", "blue"), description="Meaning of the bands, in their order.")
    training: dict[str, JsonValue] = Field({}, description="Data, seeds, command, metrics: whatever explains it.")
    source: str = Field(description="Who trained it, or the URL it came from.")
    license: str = Field(description="SPDX name of the licence of the weights.")

    @model_validator(mode="after")
    def _options_are_the_networks_own(self) -> "Card":
        if taken := BUILDERS_OWN & self.options.keys():
            raise ValueError(f"options may not hold {', '.join(sorted(taken))}: other fields of the card say it")
        return self

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> "Card":
        for name in ("mean", "std", "channels"):
            if len(getattr(self, name)) != self.in_channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.in_channels} channels")
        return self

    def canonical_bytes(self) -> bytes:
        """One spelling of the card, the same on every machine: JSON with sorted keys, ASCII, no blanks."""
        plain = self.model_dump(mode="json")
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A card and exactly the tensors its network has.

    Raises:
        ConfigError: naming each tensor that is missing, extra, or of another shape or kind than the network's.
    """

    card: Card
    state: dict[str, Tensor]
    """The state dict, on the CPU, in the dtypes of the file."""
    sha256: str
    """64 hex digits over the bytes of the weights file and the card's canonical bytes."""

    def __post_init__(self) -> None:
        _check_state(self.state, self.card)

    def build(self, output_stride: int | None = None) -> Network:
        """Build the network in eval mode, float32, on the CPU.

        Args:
            output_stride: one the network has; unset takes the card's.
        """
        network = blank(self.card, output_stride)
        copies = {name: tensor.to(_kept(tensor), copy=True) for name, tensor in self.state.items()}
        network.load_state_dict(copies, assign=True)
        return network.eval()


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD_FILE}"))


def save_checkpoint(url: str, state: Mapping[str, Tensor], card: Card) -> str:
    """Write a checkpoint folder: the weights first, then the card, so a new folder with a card is complete.

    Args:
        url: the folder. One that is being read by others should not be written again: it has two files.
        state: the network's state dict; any dtype (float16 halves the file), any device.
        card: what it is.

    Returns:
        The `sha256` that `load` will give.

    Raises:
        ConfigError: when the tensors are not those of the card's network; nothing is written then.
    """
    _check_state(state, card)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    weights = safetensors.torch.save(plain)
    objects.put(objects.join(url, WEIGHTS_FILE), weights)
    objects.put(objects.join(url, CARD_FILE), card.model_dump_json(indent=2).encode() + b"\n")
    return _digest(weights, card)


def load_checkpoint(ref: str) -> Checkpoint:
    """Read a checkpoint and check it against the network its card names.

    Args:
        ref: a shipped name, or the URL of a folder; `./farmland` is the folder where `farmland` is shipped.

    Raises:
        ConfigError: when there is none, a file is damaged or not safetensors, or card and tensors disagree.
    """
    card = load_card(ref)
    weights = _read(ref, WEIGHTS_FILE, max_bytes=MAX_WEIGHTS_BYTES)
    state = _parse_weights(weights, origin=f"{WEIGHTS_FILE} of {ref}")
    return Checkpoint(card, state, _digest(weights, card))


def load_card(ref: str) -> Card:
    """Read only the card of a checkpoint: a few kilobytes.

    Raises:
        ConfigError: when there is no checkpoint at `ref`, or naming each field of the card that is wrong.
    """
    origin = f"{CARD_FILE} of {ref}"
    try:
        return Card.model_validate(json.loads(_read(ref, CARD_FILE, max_bytes=MAX_CARD_BYTES)))
    except ValidationError as error:
        raise explain(error, origin=origin) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} is not JSON: {error}") from error


def check_classes(card: Card, classes: ClassMap) -> None:
    """Refuse a class map whose ids do not mean what the checkpoint learned.

    Raises:
        ConfigError: with both counts, and the ids that are named differently.
    """
    if not (lines := card.classes.differences(classes)):
        return
    said = f"checkpoint has {len(card.classes)} classes ({card.classes.name})"
    said += f", class map {classes.name} has {len(classes)}"
    raise ConfigError(f"{said}; checkpoint / class map:{_listed(lines)}", hint="leave --classes unset")


def check_bands(card: Card, bands: tuple[str, ...]) -> None:
    """Refuse a checkpoint that wants other bands than there are.

    Raises:
        ConfigError: naming both.
    """
    if card.channels != bands:
        raise ConfigError(f"the checkpoint takes {', '.join(card.channels)}; images give {', '.join(bands)}")


def _read(ref: str, file: str, *, max_bytes: int) -> bytes:
    url = objects.join(str(SHIPPED / ref) if ref in shipped_checkpoints() else ref, file)
    try:
        return objects.read_bytes(url, max_bytes=max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        known = ", ".join(shipped_checkpoints()) or "none"
        hint = f"give the folder of {CARD_FILE} and {WEIGHTS_FILE}, or a shipped checkpoint: {known}"
        raise ConfigError(f"no checkpoint {ref!r}: it has no {file}", hint=hint) from error
    except InputError as error:
        raise ConfigError(f"{file} of {ref}: {error.detail}") from error


def _parse_weights(data: bytes, *, origin: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, RuntimeError, KeyError) as error:
        if data.startswith(PICKLE_STARTS):
            hint = "unpickling runs code, so it was not tried; convert the file where you trust it"
            raise ConfigError(f"{origin} is a pickle, as torch.save writes, not safetensors", hint=hint) from error
        raise ConfigError(f"{origin} is not a whole safetensors file: {error}") from error


def blank(card: Card, output_stride: int | None = None) -> Network:
    """The card's network without memory for its weights: enough to count it, and to refuse a card or an output stride.

    Raises:
        ConfigError: as `zoo.build`.
    """
    with torch.device("meta"):
        return zoo.build_network(
            card.architecture,
            len(card.classes),
            in_channels=card.in_channels,
            output_stride=output_stride or card.output_stride,
            **card.options,
        )


def _check_state(state: Mapping[str, Tensor], card: Card) -> None:
    """Refuse a state dict that is not exactly the network's, tensor by tensor."""
    wanted = blank(card).state_dict()
    lines = [f"missing: {name} {_shape(wanted[name])}" for name in wanted if name not in state]
    lines += [f"extra: {name} {_shape(state[name])}" for name in state if name not in wanted]
    lines += [
        f"other shape: {name} is {_shape(state[name])}, the network's is {_shape(wanted[name])}"
        for name in wanted
        if name in state and _shape(state[name]) != _shape(wanted[name])
    ]
    if lines:
        hint = f"the card says {card.architecture} {card.options}, {len(card.classes)} classes ({card.classes.name})"
        raise ConfigError("the tensors are not those of the card's network:" + _listed(lines), hint=hint)


def _shape(tensor: Tensor) -> str:
    """What must agree: the sizes, and whether it holds fractions (of any precision) or whole numbers."""
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

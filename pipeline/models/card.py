"""Cards of checkpoints: what a network is, and takes and gives. Reading one needs no torch.

In: the folder of a checkpoint, or the name of a shipped one. Out: its card, from `card.json`.
"""

import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from pipeline.classes import ClassMap
from pipeline.config import BandScale, explain
from pipeline.errors import ConfigError, InputError
from pipeline.redact import redact
from pipeline.store import objects
from pipeline.store.url import Url

SHIPPED = Path(__file__).parent / "weights"
WEIGHTS_FILE, CARD_FILE = "model.safetensors", "card.json"
MAX_CARD_BYTES = 2**20
BUILDERS_OWN = {"name", "num_classes", "in_channels", "output_stride"}
"""Arguments of `zoo.build_network` that are no options: a card has fields of their own for them."""
_SHOWN = 8
"""Lines of a list of differences in an error; the rest is counted."""

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


def load_card(ref: str) -> Card:
    """Read the card of a checkpoint alone, a few kilobytes.

    Raises:
        ConfigError: there is no checkpoint at `ref`, or fields of the card are wrong; lists them.
    """
    origin = f"{CARD_FILE} of {redact(ref)}"
    try:
        return Card.model_validate(json.loads(read_file(ref, CARD_FILE, max_bytes=MAX_CARD_BYTES)))
    except ValidationError as error:
        raise explain(error, origin=origin, model=Card) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} is not JSON: {error}") from error


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob(f"*/{CARD_FILE}"))


def read_file(ref: str, file: str, *, max_bytes: int) -> bytes:
    """Bytes of a file of a checkpoint; raises ConfigError where there is none."""
    url = Url(str(SHIPPED / ref) if ref in shipped_checkpoints() else ref) / file
    try:
        return objects.read_bytes(url, max_bytes=max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        known = ", ".join(shipped_checkpoints()) or "none"
        hint = f"give the folder of {CARD_FILE} and {WEIGHTS_FILE}, or a shipped checkpoint: {known}"
        raise ConfigError(f"no checkpoint {redact(ref)!r}: it has no {file}", hint=hint) from error
    except InputError as error:
        raise ConfigError(f"{file} of {redact(ref)}: {error.detail}") from error


def check_classes(card: Card, classes: ClassMap) -> None:
    """Refuse a class map whose ids have other meanings than the checkpoint's.

    Raises:
        ConfigError: the maps differ; has both counts and the ids with different names.
    """
    if not (lines := card.classes.differences(classes)):
        return
    counts = f"checkpoint has {len(card.classes)} classes ({card.classes.name})"
    counts += f", class map {classes.name} has {len(classes)}"
    raise ConfigError(f"{counts}; checkpoint / class map:{listed(lines)}", hint="leave --classes unset")


def listed(lines: list[str]) -> str:
    """Lines of an error, the first `_SHOWN` of them; the rest is counted."""
    more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "".join(f"\n  {line}" for line in lines[:_SHOWN] + more)

"""Class maps: what the ids in a mask mean and which colour each one is drawn in.

A class map is a small YAML file; the ones of public data sets are shipped in `pipeline/palettes/` and known by name.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError

PALETTES = Path(__file__).parent / "palettes"
IGNORE_COLOUR = (128, 128, 128)

_Channel = Annotated[int, Field(ge=0, le=255)]


class ClassInfo(BaseModel):
    """One class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="Name shown to people and stored in statistics.")
    colour: tuple[_Channel, _Channel, _Channel] = Field(description="Red, green, blue.")


class ClassMap(BaseModel):
    """Names and colours of class ids 0 to K-1, and the id of pixels that have no class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="Name of the class map, e.g. `voc`.")
    classes: tuple[ClassInfo, ...] = Field(min_length=2, max_length=255, description="In the order of their ids.")
    ignore_id: int = Field(255, ge=0, le=255, description="Id of pixels without a class.")

    @model_validator(mode="after")
    def _names_are_unique(self) -> "ClassMap":
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"class names given twice: {', '.join(twice)}")
        if self.ignore_id < len(self.classes):
            raise ValueError(f"ignore_id {self.ignore_id} is also the id of class {self.names[self.ignore_id]!r}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in the order of their ids."""
        return tuple(one.name for one in self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def png_palette(self) -> bytes:
        """768 bytes: the PLTE entries of a mask, class colours first, grey for every other id."""
        colours = [one.colour for one in self.classes] + [IGNORE_COLOUR] * (256 - len(self.classes))
        return bytes(channel for colour in colours for channel in colour)

    def differences(self, other: "ClassMap") -> list[str]:
        """Say where two maps give an id different names, one line per id; empty when they agree."""
        count = max(len(self), len(other))
        ours = [*self.names, *["(none)"] * (count - len(self))]
        theirs = [*other.names, *["(none)"] * (count - len(other))]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [f"id {index}: {mine} / {yours}" for index, (mine, yours) in pairs if mine != yours]


def shipped_class_maps() -> list[str]:
    """Names of the class maps that come with the package."""
    return sorted(path.stem for path in PALETTES.glob("*.yaml"))


def from_dict(data: Any, *, origin: str) -> ClassMap:
    """Validate a class map read from YAML or JSON.

    Raises:
        ConfigError: naming `origin` and each field that is wrong.
    """
    try:
        return ClassMap.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin} is not a class map: {error}") from error


def from_yaml(data: bytes, *, origin: str) -> ClassMap:
    """Validate a class map as its file holds it.

    Raises:
        ConfigError: naming `origin`: it is not YAML, or as `from_dict`.
    """
    try:
        return from_dict(yaml.safe_load(data), origin=origin)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not YAML: {error}") from error


@lru_cache
def load_class_map(name_or_path: str) -> ClassMap:
    """Load a shipped class map by name, or one's own from a YAML file.

    Raises:
        ConfigError: when there is no such map or the file is not a valid one.
    """
    path = PALETTES / f"{name_or_path}.yaml" if name_or_path in shipped_class_maps() else Path(name_or_path)
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = f"shipped class maps: {', '.join(shipped_class_maps())}; or give the path of a YAML file"
        raise ConfigError(f"no class map {name_or_path!r}", hint=hint) from error
    return from_yaml(data, origin=str(path))

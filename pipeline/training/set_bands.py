"""Bands of a set of rasters in the settings of a training run: names, scale, mean and standard deviation.

In: a config, and the manifest.json beside the parts of the data. Out: the config with what the manifest says of the
bands, so that the checkpoint's card keeps it for inference. Other data have no such manifest: the config stays.
"""

import json
import logging

from pydantic import BaseModel, ValidationError

from pipeline.config import BandScale
from pipeline.errors import ConfigError
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training.config import NetworkConfig, TrainConfig

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class _Bands(BaseModel):
    """The part of `datasets.levels.BandSummary` that training needs."""

    names: tuple[str, ...]
    dtype: str
    scale: BandScale | None
    level_mean: tuple[float, ...]
    level_std: tuple[float, ...]


def with_set_bands(cfg: TrainConfig) -> TrainConfig:
    """Fill in names, scale, mean and deviation of the bands from the manifest of a set of rasters.

    Mean and deviation that are set stay, and so do the defaults where an initial checkpoint meets red, green and blue.

    Raises:
        ConfigError: `network.channels` or `network.scale` is set and differs; the manifest is damaged.
    """
    bands = _read_bands(Url(cfg.data) / MANIFEST)
    if bands is None:
        return cfg
    network, fresh = cfg.network, NetworkConfig()
    for name, own in (("channels", bands.names), ("scale", bands.scale)):
        given = getattr(network, name)
        if given not in (getattr(fresh, name), own):
            raise ConfigError(f"--network.{name} is {given}, the set {Url(cfg.data)} has {own}", hint="leave it unset")
    update: dict[str, object] = {"channels": bands.names, "scale": bands.scale}
    untouched = (network.mean, network.std) == (fresh.mean, fresh.std)
    if untouched and not (network.initial and bands.names == fresh.channels):
        update |= {"mean": bands.level_mean, "std": bands.level_std}
    log.info("bands of the set: %s, %s", ", ".join(bands.names), bands.dtype)
    return cfg.model_copy(update={"network": NetworkConfig.model_validate(network.model_dump() | update)})


def _read_bands(url: Url) -> _Bands | None:
    try:
        plain = json.loads(objects.read_bytes(url, max_bytes=1 << 28))
        found = plain.get("bands") if isinstance(plain, dict) else None
        return None if found is None else _Bands.model_validate(found)
    except FileNotFoundError:
        return None
    except (ValueError, ValidationError) as error:
        raise ConfigError(f"{url} is damaged: {error}") from error

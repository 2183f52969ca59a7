"""What the manifest of a set of rasters says of its bands reaches the config, and contradictions are refused."""

import json
from pathlib import Path

import pytest

from pipeline.config import BandScale
from pipeline.errors import ConfigError
from pipeline.training.config import NetworkConfig, TrainConfig
from pipeline.training.set_bands import with_set_bands

SCALE = {"dtype": "uint16", "low": [10, 20], "high": [300, 400]}
BANDS = {"names": ["red", "nir"], "dtype": "uint16", "scale": SCALE, "level_mean": [0.4, 0.5], "level_std": [0.1, 0.2]}
RGB8 = {"names": ["red", "green", "blue"], "dtype": "uint8", "scale": None}
RGB8 |= {"level_mean": [0.1, 0.2, 0.3], "level_std": [0.1, 0.1, 0.1]}


def config(folder: Path, bands: dict | None, **network) -> TrainConfig:
    (folder / "manifest.json").write_text(json.dumps({"origin": {}, "bands": bands}))
    return TrainConfig(data=str(folder), output="out", network=NetworkConfig(**network))


def test_names_scale_mean_and_deviation_of_a_set_are_those_of_the_run(tmp_path: Path) -> None:
    network = with_set_bands(config(tmp_path, BANDS)).network
    assert (network.channels, network.mean, network.std) == (("red", "nir"), (0.4, 0.5), (0.1, 0.2))
    assert network.scale == BandScale.model_validate(SCALE)
    again = config(tmp_path, BANDS).model_copy(update={"network": network})
    assert with_set_bands(again) == again


def test_other_data_leave_the_config_as_it_is(tmp_path: Path) -> None:
    cfg = config(tmp_path, None)
    assert with_set_bands(cfg) == cfg
    (tmp_path / "manifest.json").unlink()
    assert with_set_bands(cfg) == cfg


def test_channels_that_contradict_the_set_are_refused(tmp_path: Path) -> None:
    cfg = config(tmp_path, BANDS, channels=("nir", "red"), mean=(0.1, 0.1), std=(1.0, 1.0))
    with pytest.raises(ConfigError, match=r"--network\.channels"):
        with_set_bands(cfg)


def test_mean_and_deviation_that_are_wanted_stay(tmp_path: Path) -> None:
    given = config(tmp_path, BANDS, channels=("red", "nir"), mean=(0.1, 0.1), std=(1.0, 1.0))
    assert with_set_bands(given).network.mean == (0.1, 0.1)
    pretrained = config(tmp_path, RGB8, initial="farmland")
    assert with_set_bands(pretrained).network.mean == NetworkConfig().mean
    assert with_set_bands(config(tmp_path, RGB8)).network.mean == (0.1, 0.2, 0.3)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    cfg = config(tmp_path, {"names": ["red"]})
    with pytest.raises(ConfigError, match=r"manifest\.json is damaged"):
        with_set_bands(cfg)


def test_a_run_without_a_scale_keeps_its_fingerprint(tmp_path: Path) -> None:
    assert "scale" not in config(tmp_path, None).weight_settings()["network"]
    assert "scale" in with_set_bands(config(tmp_path, BANDS)).weight_settings()["network"]

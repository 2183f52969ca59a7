"""Farmland seen from the air, generated with its labels: for demonstrations, tests and the shipped `farmland` network.

In: a seed and a size. Out: an RGB image and the class of every pixel (`pipeline/palettes/farmland.yaml`), or a folder
of such images. A scene is painted in layers, each over the layers before: fields, water, roads, farmsteads, trees; then
the camera photographs it. Shadows darken what they fall on and keep its class.

A seed gives the same image on every machine with the same releases of NumPy and Pillow: random numbers come from PCG64,
colours are computed by sums and products alone, which IEEE 754 fixes to the last bit, and sines only place outlines,
where an error in the last bit does not show. Colours (RGB, 0 to 255), lengths and odds were chosen by eye; lengths are
in pixels of a scene of scale 1.
"""

from pipeline.datasets.farmland.canvas import BUILDING, CROP, MEADOW, ROAD, SOIL, TREE, WATER
from pipeline.datasets.farmland.files import encode_jpeg, encoded_jpegs, scene_png, write_folder
from pipeline.datasets.farmland.scene import Scene, generate_scene

__all__ = [
    "BUILDING",
    "CROP",
    "MEADOW",
    "ROAD",
    "SOIL",
    "TREE",
    "WATER",
    "Scene",
    "encode_jpeg",
    "encoded_jpegs",
    "generate_scene",
    "scene_png",
    "write_folder",
]

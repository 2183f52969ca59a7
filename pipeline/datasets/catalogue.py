"""Every data set whose official layout can be read, by name."""

from pipeline.datasets.layout import Layout

LAYOUTS: dict[str, Layout] = {}

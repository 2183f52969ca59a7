"""The paths of a listing."""

from pipeline.store import objects
from pipeline.store.url import Url


def paths(url: Url) -> list[str]:
    return [file.path for file in objects.list_files(url)]

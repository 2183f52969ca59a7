"""The paths of a listing."""

from pipeline.store import objects


def paths(url: str) -> list[str]:
    return [file.path for file in objects.list_files(url)]

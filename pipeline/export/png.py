"""Export to PNG: the mask of each row as it is stored, a palette PNG of class ids, in a file of its own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from pipeline.export.names import Names, plain_path
from pipeline.export.output import THREADS, WAITING, Outcome, is_there
from pipeline.export.survey import Survey, masks_of
from pipeline.prefetch import ahead
from pipeline.store import objects
from pipeline.store.url import Url

SUFFIX = ".png"


def write_pngs(run: Survey, output: Url, *, resumed: bool) -> Iterator[Outcome]:
    """Write one PNG for each row with a mask; those that are there in the right size are skipped."""
    names = Names(run.keys(), SUFFIX)

    def write(row: tuple[str, bytes]) -> Outcome:
        key, png = row
        url = output / names.path(key)
        if resumed and is_there(url, size=len(png)):
            return Outcome("there")
        objects.put(url, png)
        if resumed:
            delete_former(output, names, key)
        return Outcome("written")

    with ThreadPoolExecutor(THREADS) as pool:
        yield from ahead(pool, write, masks_of(run), WAITING)


def delete_former(output: Url, names: Names, key: str) -> None:
    """Delete the file that an export of fewer rows wrote under a plain name, which other keys now share."""
    plain = plain_path(key)
    former = output / f"{plain}{names.suffix}"
    if names.is_contested(plain) and is_there(former):
        objects.delete(former)

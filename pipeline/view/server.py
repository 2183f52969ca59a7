"""Server of the page: a run's rows, counts and pictures as JSON, JPEG and bytes over HTTP. It only reads.

    /                                   the page
    /static/{file}                      its script and style
    /api/run                            classes, columns, and how far run and index are
    /api/rows?query&offset&limit        rows of a query, as `query.Query` in JSON, and their number
    /api/position?query&key             place of a row in the order of a query
    /api/histograms?query&columns       counts of rows by the values of columns
    /api/changes?query                  megapixels of each class in this run and in the other
    /api/agreement/{name}?query         pixels of each class in both of this run and labels, or other; rows compared
    /api/compare?query                  compare the rows of a query pixel by pixel, in the background
    /api/choice?images                  rows most worth labelling, as `atrous select` chooses them
    /api/hand-over/{tool}               POST of keys: zip of their images and masks for a labelling tool
    /api/row?key                        number of a row, its columns but for the pictures, and the names of its layers
    /api/rows/{id}/thumbnail?picture    JPEG of 320 pixels: overlay, image or mask
    /api/rows/{id}/image                JPEG at full size
    /api/rows/{id}/layers/{layer}       bytes of class ids or confidences, with their shape in the header
    /api/rasters                        rasters of the run: name, size, whether they have a mask
    /api/rasters/{number}               levels of a raster, which of them the source has, and which outlines there are
    /api/rasters/{number}/source/{level}/{row}/{column}
                                        JPEG of a tile of 512 pixels of the source
    /api/rasters/{number}/mask/{level}/{row}/{column}
                                        bytes of class ids of a tile, with their shape in the header
    /api/rasters/{number}/outlines/{kind}?y&x&height&width&level
                                        outlines of zones or polygons in a rectangle, in pixels
    /api/rasters/{number}/outlines/{kind}/{shape}
                                        columns of one of them

What a request gets wrong is answered by 400, 404, 405 or 413. What the run, an image or a store gets wrong, such as a
picture that a row does not have, is answered by its reason as JSON with status 200: a browser would report any other as
an error of the page. A row has its number until the index is made anew, so addresses and marks hold keys. No path and
no key of a request reaches a store: a key is looked up in the index, a number in the parts.
"""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import duckdb
import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pipeline.config import explain_without_values
from pipeline.errors import AtrousError, InputError, LabelError
from pipeline.geotiff.overview import TilePlace
from pipeline.records import UInt8, Window
from pipeline.redact import redact
from pipeline.view.access import Access
from pipeline.view.opened import OpenedRun
from pipeline.view.pairs import class_changes
from pipeline.view.pictures import Kind, RowPlace
from pipeline.view.query import MOST_ROWS, Query, count_rows, find_rows, histogram, position_of

STATIC = Path(__file__).parent / "static"
HAND_OVER = "/api/hand-over/"
MOST_CHOSEN = 10_000
"""Most rows of a choice, and of a hand-over."""
MOST_POSTED_BYTES = 2**22
MOST_LEVELS = 32
"""More than the levels of any raster."""
LIMITS = {"h11_max_incomplete_event_size": 2**20}
"""Limits of the HTTP server: a key of some thousand letters, percent-encoded, is longer than it takes by default."""
OTHER = "other"
"""Layer with the mask of the other run."""


class Digits(Convertor[int]):
    """Number in a path, small enough for the index; a path with a longer one is unknown."""

    regex = "[0-9]{1,18}"

    def convert(self, value: str) -> int:
        """The number."""
        return int(value)

    def to_string(self, value: int) -> str:
        """The number in a path."""
        return str(value)


register_url_convertor("digits", Digits())


def create_app(run: OpenedRun, *, token: str, port: int, any_host: bool = False) -> Starlette:
    """Application that serves one run; see `access.Access` for the other arguments."""
    routes = [
        Route("/", lambda _: FileResponse(STATIC / "index.html")),
        Mount("/static", StaticFiles(directory=STATIC)),
        Route("/api/run", _answering(run, _describe)),
        Route("/api/rows", _answering(run, _rows)),
        Route("/api/position", _answering(run, _position)),
        Route("/api/histograms", _answering(run, _histograms)),
        Route("/api/changes", _answering(run, _changes)),
        Route("/api/agreement/{name}", _answering(run, _agreement)),
        Route("/api/compare", _answering(run, _compare)),
        Route("/api/choice", _answering(run, _choice)),
        Route(f"{HAND_OVER}{{tool}}", _handing_over(run), methods=["POST"]),
        Route("/api/row", _answering(run, _row)),
        Route("/api/rows/{id:digits}/thumbnail", _answering(run, _thumbnail)),
        Route("/api/rows/{id:digits}/image", _answering(run, _image)),
        Route("/api/rows/{id:digits}/layers/{layer}", _answering(run, _layer)),
        Route("/api/rasters", _answering(run, _rasters)),
        Route("/api/rasters/{number:digits}", _answering(run, _raster)),
        Route(
            "/api/rasters/{number:digits}/source/{level:digits}/{row:digits}/{column:digits}",
            _answering(run, _source_tile),
        ),
        Route(
            "/api/rasters/{number:digits}/mask/{level:digits}/{row:digits}/{column:digits}", _answering(run, _mask_tile)
        ),
        Route("/api/rasters/{number:digits}/outlines/{kind}", _answering(run, _outlines)),
        Route("/api/rasters/{number:digits}/outlines/{kind}/{shape:digits}", _answering(run, _outline)),
    ]
    middleware = [
        Middleware(Access, token=token, port=port, posts=HAND_OVER, any_host=any_host),
        Middleware(GZipMiddleware, compresslevel=1),
    ]
    return Starlette(routes=routes, middleware=middleware)


def _answering(run: OpenedRun, answer: Callable[[OpenedRun, Request], Response]) -> Callable[[Request], Response]:
    """Endpoint of an answer; Starlette runs it in a thread. Errors become JSON with `error`, and `code` of a row."""

    def endpoint(request: Request) -> Response:
        try:
            return answer(run, request)
        except (InputError, LabelError) as error:
            return _problem(200, str(error), code=error.code)
        except (ValueError, OverflowError) as error:
            return _problem(400, str(error))
        except LookupError as error:
            return _problem(404, str(error.args[0]))
        except (AtrousError, duckdb.Error, OSError) as error:
            return _problem(200, str(error))

    return endpoint


def _problem(status: int, text: str, **more: str) -> Response:
    return JSONResponse({"error": redact(text), **more}, status)


# ---------------------------------------------------------------- answers


def _describe(run: OpenedRun, _: Request) -> Response:
    rows, indexed = run.index.counts()
    return JSONResponse(
        {
            "run": str(run.url),
            "finished": run.finished,
            "rows": rows,
            "revision": run.revision,
            "settled": run.settled,
            "parts": {"indexed": indexed, "known": max(run.index.known_parts, indexed)},
            "problem": run.problem,
            "progress": asdict(run.progress) if run.progress else None,
            "labels": run.originals.has_labels,
            "of_rasters": run.originals.is_of_rasters,
            "other": str(run.other.url) if run.other else None,
            "agreements": [agreement.name for agreement in run.comparing.agreements] if run.comparing else [],
            "pace": asdict(run.comparing.pace) if run.comparing else None,
            "ignore_id": run.classes.ignore_id,
            "classes": [{"name": one.name, "colour": one.colour} for one in run.classes.classes],
            "columns": [asdict(column) for column in run.index.columns],
        }
    )


def _rows(run: OpenedRun, request: Request) -> Response:
    query, params = _query(request), request.query_params
    offset, limit = (max(int(params.get(name, default)), 0) for name, default in (("offset", 0), ("limit", MOST_ROWS)))
    found = find_rows(run.index, query, offset=offset, limit=limit)
    return JSONResponse({"total": count_rows(run.index, query), "rows": found})


def _position(run: OpenedRun, request: Request) -> Response:
    key = request.query_params.get("key", "")
    return JSONResponse({"position": position_of(run.index, _query(request), key)})


def _histograms(run: OpenedRun, request: Request) -> Response:
    query, names = _query(request), request.query_params.get("columns", "").split(",")
    columns = [column for column in run.index.columns if column.name in names]
    return JSONResponse({column.name: histogram(run.index, query, column) for column in columns})


def _changes(run: OpenedRun, request: Request) -> Response:
    if not run.other:
        raise LookupError("there is no other run; give --compare")
    return JSONResponse(class_changes(run.index, _query(request)))


def _agreement(run: OpenedRun, request: Request) -> Response:
    query, name = _query(request), request.path_params["name"]
    for agreement in run.comparing.agreements if run.comparing else ():
        if agreement.name == name:
            return JSONResponse({**asdict(agreement.coverage(query)), "classes": agreement.by_class(query)})
    raise LookupError("there is nothing to compare with; give --compare or --labels")


def _compare(run: OpenedRun, request: Request) -> Response:
    if not run.comparing:
        raise LookupError("there is nothing to compare with; give --compare or --labels")
    run.comparing.request(_query(request))
    return JSONResponse(asdict(run.comparing.pace))


def _choice(run: OpenedRun, request: Request) -> Response:
    images = int(request.query_params.get("images", "0"))
    if not 0 < images <= MOST_CHOSEN:
        raise ValueError(f"{images} images cannot be chosen: 1 to {MOST_CHOSEN}; `atrous select` takes any number")
    from pipeline.select.choice import choose_images  # noqa: PLC0415  # pandas takes longer than the first page

    choice = choose_images(run.url, images)
    left_out = {**choice.census.failed, **choice.census.left_out}
    return JSONResponse(
        {
            "keys": choice.images["key"].tolist(),
            "left_out": {reason: count for reason, count in left_out.items() if count},
        }
    )


def _handing_over(run: OpenedRun) -> Callable[[Request], Awaitable[Response]]:
    """Endpoint that reads the posted keys, and then works in a thread."""

    async def endpoint(request: Request) -> Response:
        if int(request.headers.get("content-length", MOST_POSTED_BYTES)) >= MOST_POSTED_BYTES:
            return _problem(413, f"more than {MOST_POSTED_BYTES} bytes of keys")
        posted = await request.body()
        return await run_in_threadpool(_answering(run, partial(_hand_over, posted=posted)), request)

    return endpoint


def _hand_over(run: OpenedRun, request: Request, *, posted: bytes) -> Response:
    from pipeline.select.hand_over import Tool  # noqa: PLC0415
    from pipeline.view.archive import zip_for_tool  # noqa: PLC0415

    keys = TypeAdapter(Annotated[list[str], Field(min_length=1, max_length=MOST_CHOSEN)]).validate_json(posted)
    tool: Tool = TypeAdapter(Tool).validate_python(request.path_params["tool"])
    data, left_out = zip_for_tool(run, list(run.ids(keys)), tool)
    headers = {"X-Left-Out": ", ".join(f"{count} {reason}" for reason, count in left_out.items())}
    return Response(data, media_type="application/zip", headers=headers)


def _query(request: Request) -> Query:
    try:
        return Query.model_validate_json(request.query_params.get("query") or "{}")
    except ValidationError as error:
        raise ValueError(f"query= is not valid: {explain_without_values(error)}") from error


def _row(run: OpenedRun, request: Request) -> Response:
    key = request.query_params.get("key", "")
    try:
        number = run.ids([key])[key]
    except LookupError as error:  # not yet, or not any more: the address was right
        raise InputError("not_found", str(error.args[0])) from error
    layers = run.pictures.layers(run.place(number))
    return JSONResponse({"id": number, "row": run.row(number), "layers": [*layers, OTHER] if run.other else layers})


def _thumbnail(run: OpenedRun, request: Request) -> Response:
    kind = TypeAdapter(Kind).validate_python(request.query_params.get("picture", "overlay"))
    data = run.thumbnail(request.path_params["id"], kind)
    return Response(data, media_type="image/jpeg")


def _image(run: OpenedRun, request: Request) -> Response:
    place = run.place(request.path_params["id"])
    return Response(run.pictures.jpeg(place), media_type="image/jpeg")


def _layer(run: OpenedRun, request: Request) -> Response:
    name = request.path_params["layer"]
    values = _layer_of(run, request.path_params["id"], name)
    if values is None:
        raise InputError("mask_missing", f"the row has no {name}")
    return _bytes_of(values)


def _bytes_of(values_hw: UInt8) -> Response:
    shape = {"X-Height": str(values_hw.shape[0]), "X-Width": str(values_hw.shape[1])}
    data = np.ascontiguousarray(values_hw).tobytes()
    return Response(data, media_type="application/octet-stream", headers=shape)


def _layer_of(run: OpenedRun, row_id: int, name: str) -> UInt8 | None:
    """Pixels of a layer; None where the row does not have it. LookupError for another name."""
    if name == OTHER and run.other:
        return run.other.pictures.mask(run.other_place(row_id))
    pictures = run.pictures
    layers: dict[str, Callable[[RowPlace], UInt8 | None]] = {
        "mask": pictures.mask,
        "truth": pictures.truth,
        "confidence": pictures.confidence,
        "changed": pictures.changed,
        "network": pictures.network,
        "network_confidence": pictures.network_confidence,
    }
    if name not in layers:
        raise LookupError(f"no layer {name!r}; layers: {', '.join(layers)}")
    return layers[name](run.place(row_id))


# ---------------------------------------------------------------- rasters


def _rasters(run: OpenedRun, _: Request) -> Response:
    return JSONResponse({"rasters": run.rasters.listed(), "unreadable": run.rasters.unreadable})


def _raster(run: OpenedRun, request: Request) -> Response:
    return JSONResponse(run.rasters.described(request.path_params["number"]))


def _source_tile(run: OpenedRun, request: Request) -> Response:
    return Response(run.source_tile(request.path_params["number"], _place(request)), media_type="image/jpeg")


def _mask_tile(run: OpenedRun, request: Request) -> Response:
    return _bytes_of(run.mask_tile(request.path_params["number"], _place(request)))


def _place(request: Request) -> TilePlace:
    return TilePlace(*(request.path_params[name] for name in ("level", "row", "column")))


def _outlines(run: OpenedRun, request: Request) -> Response:
    params = request.query_params
    y, x, height, width, level = (int(params.get(name, "0")) for name in ("y", "x", "height", "width", "level"))
    one, kind = run.rasters.raster(request.path_params["number"]), request.path_params["kind"]
    if not 0 <= level < MOST_LEVELS:
        raise ValueError(f"no level {level}")
    return JSONResponse(run.rasters.outlines.within(kind, one.name, one.raster, Window(y, x, height, width), level))


def _outline(run: OpenedRun, request: Request) -> Response:
    one, kind = run.rasters.raster(request.path_params["number"]), request.path_params["kind"]
    return JSONResponse(run.rasters.outlines.facts(kind, one.name, one.raster, request.path_params["shape"]))

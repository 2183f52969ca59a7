"""Export to a Hugging Face data set: Parquet whose schema says that masks are images and ids are classes.

    README.md                        data set card; its YAML names the files
    data/part-<hash>-<version>.parquet   key, mask and statistics of the rows with a mask

`datasets.load_dataset(folder)` gives decoded masks. The types are in the schema metadata under `huggingface`, as
`datasets.Features` writes them, so that this needs no package of Hugging Face.
"""

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.classes import ClassMap
from pipeline.export.output import Outcome, delete_all, names_in
from pipeline.export.survey import Survey, masked_rows
from pipeline.records import ROW_SCHEMA
from pipeline.store import objects
from pipeline.store.url import Url

DATA = "data"
README = "README.md"
STATISTICS = (
    *("height", "width", "class_pixels", "classes_present", "confidence", "entropy"),
    *("refined", "changed_share", "brightness", "source_etag"),
)
"""Columns of a row that are exported beside key and mask."""
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_data_set(run: Survey, output: Url, *, resumed: bool) -> Iterator[Outcome]:
    """Write one Parquet file for each part, and the card; files of parts that the run no longer has are deleted."""
    targets = {name: run.file_of_part(name, ".parquet") for name in run.parts}
    there = names_in(output / DATA) if resumed else set()
    for name, target in targets.items():
        if target in there:
            yield Outcome("there", rows=run.masks[name])
            continue
        rows = masked_rows(run, name, list(STATISTICS))
        objects.put(output / DATA / target, encode_rows(rows, run.classes))
        yield Outcome("written", rows=len(rows))
    delete_all(output / DATA / name for name in there.difference(targets.values()))
    objects.put(output / README, card(run).encode())


def encode_rows(rows: pa.Table, classes: ClassMap) -> bytes:
    """Parquet of `schema_of`; columns that an older version did not write are null."""
    schema = schema_of(classes)
    mask = rows["mask"].combine_chunks()
    image = pa.StructArray.from_arrays([mask, pa.nulls(len(mask), pa.string())], fields=list(_IMAGE))
    columns = {
        field.name: rows[field.name].cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(len(rows), field.type)
        for field in schema
        if field.name != "mask"
    }
    out = io.BytesIO()
    pq.write_table(pa.table([{**columns, "mask": image}[name] for name in schema.names], schema=schema), out)
    return out.getvalue()


def schema_of(classes: ClassMap) -> pa.Schema:
    """Arrow schema with the features of the data set in its metadata."""
    kinds = {name: ROW_SCHEMA.field(name).type for name in STATISTICS} | {"classes_present": pa.list_(pa.int64())}
    features = {"key": _value(pa.string()), "mask": {"_type": "Image"}} | {
        name: _value(kind) for name, kind in kinds.items()
    }
    features["classes_present"] = {
        "feature": {"names": list(classes.names), "_type": "ClassLabel"},
        "_type": "Sequence",
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("key", pa.string()), ("mask", _IMAGE), *kinds.items()], metadata=metadata)


def _value(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _value(kind.value_type), "_type": "Sequence"}
    names = {"float": "float32"}  # the one type here that Arrow prints by another name
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


def card(run: Survey) -> str:
    """Data set card: the YAML that names the files, then classes and counts for people."""
    failed = ", ".join(f"{code} {count}" for code, count in run.failed.items()) or "none"
    lines = [
        *("---", "configs:", "- config_name: default", "  data_files:", "  - split: train"),
        *(f"    path: {DATA}/*.parquet", "---", "", f"# Masks of {run.url.name}", ""),
        f"{run.rows - sum(run.failed.values())} masks; images without one: {failed}."
        + ("" if run.finished else " The run was not finished: rows are missing."),
        *("", "The value of a pixel is its class id.", "", "| id | class |", "|---|---|"),
        *(f"| {index} | {name} |" for index, name in enumerate(run.classes.names)),
        f"| {run.classes.ignore_id} | no class |",
    ]
    return "\n".join([*lines, ""])

"""Files of polygons against geopandas, which writes and reads them too; and files that are refused."""

import io
import json
import struct
import tracemalloc
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.vector import shapefile
from pipeline.vector.features import Features, read_features, zone_ids
from pipeline.vector.files import load_features, version
from tests.support.polygons import geojson

SYSTEMS = ("EPSG:32614", "EPSG:4326", "EPSG:3857", "EPSG:2154", "EPSG:4807")
FORMATS = (".gpkg", ".geojson", ".parquet", ".shp", ".zip")
NAMES = ["café", "Čeněk", "12", " a "]


def frame(crs: str | None = "EPSG:32614") -> geopandas.GeoDataFrame:
    """Two polygons, one with a hole, and two multipolygons near the origin of a coordinate system."""
    squares = [shapely.box(at, at, at + 2, at + 1) for at in range(4)]
    holed = shapely.difference(squares[1], shapely.box(1.5, 1.25, 2, 1.75))
    far = [shapely.union(shape, shapely.affinity.translate(shape, 20, 3)) for shape in squares[2:]]
    columns = {"name": NAMES, "number": [3, 1, 4, 2], "share": [1.0, 2.5, 3.0, 4.0]}
    return geopandas.GeoDataFrame(columns, geometry=[squares[0], holed, *far], crs=crs)


def write(table: geopandas.GeoDataFrame, folder: Path, suffix: str, **options: Any) -> Url:
    """Write a file in one of the formats by geopandas."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"fields{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".zip":
        table.to_file(folder / "fields.shp", **options)
        path.write_bytes(zipped({file.name: file.read_bytes() for file in folder.glob("fields.*")}))
    else:
        table.to_file(path, **options)
    return Url(str(path))


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def members_of(folder: Path, table: geopandas.GeoDataFrame | None = None) -> dict[str, bytes]:
    """Files of a shapefile, by name."""
    write(frame() if table is None else table, folder, ".shp")
    return {file.name: file.read_bytes() for file in folder.glob("fields.*")}


def read(data: bytes, field: str | None = "name", **beside: bytes) -> Features:
    return read_features(data, name="fields", field=field, beside={f".{key}": value for key, value in beside.items()})


@pytest.mark.parametrize("crs", SYSTEMS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_read_as_geopandas_reads_it(suffix: str, crs: str, tmp_path: Path) -> None:
    url = write(frame(crs), tmp_path, suffix)
    theirs = geopandas.read_parquet(url.raw) if suffix == ".parquet" else geopandas.read_file(url.raw)
    for field in ("name", "number", "share"):
        ours = load_features(url, field=field)
        assert ours.values == theirs[field].tolist()
        assert shapely.equals(ours.shapes, theirs.geometry.to_numpy()).all()
        assert theirs.crs.equals(ours.crs.to_wkt(), ignore_axis_order=True)
        assert ours.notes == []


@pytest.mark.parametrize("encoding", ["UTF-8", "ISO-8859-2", "CP1250"])
def test_text_of_a_shapefile_is_decoded_as_its_cpg_says(encoding: str, tmp_path: Path) -> None:
    url = write(frame(), tmp_path, ".shp", encoding=encoding)
    assert load_features(url, field="name").values == [name.strip() for name in NAMES]  # by GDAL
    assert Path(url.raw[:-4] + ".cpg").read_text() == encoding


def test_text_in_an_unknown_encoding_is_a_note_where_it_matters(tmp_path: Path) -> None:
    files = members_of(tmp_path)
    bare = {name: data for name, data in files.items() if name != "fields.cpg"}
    for members in (files | {"fields.cpg": b"KLINGON"}, bare):
        (note,) = read(zipped(members)).notes
        assert "read as ISO-8859-1" in note
        assert read(zipped(members), "number").notes == []


def test_without_an_attribute_features_are_numbered_as_in_the_file() -> None:
    shapes = [shapely.box(0, 0, 1, 1), shapely.Point(0, 0), shapely.box(2, 0, 3, 1)]
    features = read(geojson(shapes, "abc"), field=None)
    assert features.values == ["1", "3"]
    assert zone_ids(features.values, "fields", None) == ["1", "3"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_without_other_attributes_are_numbered(suffix: str, tmp_path: Path) -> None:
    assert load_features(write(frame(), tmp_path, suffix), field=None).values == ["1", "2", "3", "4"]


def test_heights_and_measures_are_dropped(tmp_path: Path) -> None:
    table = frame()
    flat = table.geometry.to_numpy()
    table["geometry"] = shapely.force_3d(flat, 5.0)
    for suffix in FORMATS:
        ours = load_features(write(table, tmp_path / suffix[1:], suffix), field="name")
        assert not shapely.has_z(ours.shapes).any()
        assert shapely.equals(ours.shapes, flat).all()


@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_is_repaired_is_valid_and_has_its_area(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rings = [shapely.Polygon(rng.uniform(0, 50, (7, 2))) for _ in range(5)]
    features = read(geojson(rings, range(5), field="name"))
    assert shapely.is_valid(features.shapes).all()
    assert features.repaired == (~shapely.is_valid(rings)).sum()
    np.testing.assert_allclose(shapely.area(features.shapes), shapely.area(shapely.make_valid(rings)))


# Zones ----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(), st.text(min_size=1)), unique_by=str))
def test_ids_are_text_as_it_is_and_whole_numbers_in_digits(values: list[Any]) -> None:
    assert zone_ids(values, "fields", "id") == [str(value) for value in values]


def test_ids_of_other_types() -> None:
    values = [12.0, 12.5, Decimal("7.00"), Decimal("7.5"), " x", -3.0, 2**60]
    assert zone_ids(values, "fields", "id") == ["12", "12.5", "7", "7.5", " x", "-3", str(2**60)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["a", "b", "a", "b", "a"], "5 zone(s) of fields share their id with another, 3 of them 'a'"),
        ([12, "12", 3], "2 zone(s) of fields share their id with another, 2 of them '12'"),
        ([1, None, float("nan"), ""], "3 zone(s) of fields have no id; the first is polygon 2"),
        ([1.0, 2.0**53], "a float cannot hold exactly: 9007199254740992.0"),
        ([float("inf"), 1.0], "a float cannot hold exactly: inf"),
    ],
)
def test_ids_that_are_shared_missing_or_rounded_are_counted_and_named(values: list[Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        zone_ids(values, "fields", "id")
    assert words in str(refused.value)


# Stores ---------------------------------------------------------------------------------------------------------------


def test_a_shapefile_is_read_from_any_store_and_its_version_is_that_of_all_its_files(tmp_path: Path) -> None:
    folder = Url("memory://features/upper")
    for name, data in members_of(tmp_path).items():
        objects.put(folder / name.replace(".dbf", ".DBF"), data)
    url = folder / "fields.shp"
    planned = version(url)
    assert load_features(url, field="number", expected=planned).values == [3, 1, 4, 2]
    objects.put(folder / "fields.DBF", objects.read_bytes(folder / "fields.DBF"))
    with pytest.raises(InputError, match="source_changed"):
        load_features(url, field="number", expected=planned)


def test_a_shapefile_without_a_coordinate_system_or_its_files_is_refused(tmp_path: Path) -> None:
    url = write(frame(), tmp_path, ".shp")
    for suffix, words in (
        (".prj", "names no coordinate system"),
        (".dbf", "lacks its .dbf"),
        (".shx", ".shx and .dbf"),
    ):
        Path(url.raw[:-4] + suffix).unlink()
        with pytest.raises(ConfigError, match=words):
            load_features(url, field="name")


# Refused --------------------------------------------------------------------------------------------------------------


def test_archives_with_several_shapefiles_or_none_name_what_they_hold(tmp_path: Path) -> None:
    files = members_of(tmp_path)
    twice = files | {name.replace("fields", "deep/other"): data for name, data in files.items()}
    for members, words in (
        (twice, "2 shapefiles: 'fields.shp', 'deep/other.shp'"),
        ({"a.gpkg": b"x"}, "0 shapefiles: 'a.gpkg'"),
        ({}, "0 shapefiles: no file"),
    ):
        with pytest.raises(ConfigError) as refused:
            read(zipped(members))
        assert words in str(refused.value)
    finder = {f"__MACOSX/._{name}": b"x" for name in files}
    assert len(read(zipped(files | finder)).shapes) == 4


def test_layers_and_attributes_are_named(tmp_path: Path) -> None:
    url = write(frame(), tmp_path, ".gpkg", layer="one")
    frame().to_file(url.raw, layer="two")
    with pytest.raises(ConfigError, match="2 layers of geometries: one, two"):
        load_features(url, field="name")
    for suffix in FORMATS:
        with pytest.raises(ConfigError, match="name, number, share"):
            load_features(write(frame(), tmp_path / suffix[1:], suffix), field="crop")


@pytest.mark.parametrize("suffix", FORMATS)
def test_layers_without_polygons_or_without_features_are_refused(suffix: str, tmp_path: Path) -> None:
    points = frame().set_geometry(frame().geometry.centroid)
    with pytest.raises(ConfigError, match="has no polygon: 4 feature"):
        load_features(write(points, tmp_path / "points", suffix), field="name")
    with pytest.raises(ConfigError, match=r"has no polygon: 0 feature|has no attribute|layers of geometries"):
        load_features(write(frame().iloc[:0], tmp_path / "empty", suffix), field="name")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_ends_early_is_refused_wherever_it_ends(suffix: str, tmp_path: Path) -> None:
    table = geopandas.GeoDataFrame(
        {"name": [f"field {at}" for at in range(300)]},
        geometry=[shapely.Point(at, at).buffer(0.5) for at in range(300)],
        crs="EPSG:32614",
    )
    url = write(table, tmp_path, suffix)
    whole = Path(url.raw).read_bytes()
    for end in np.linspace(0, len(whole) - 3, 25).astype(int).tolist():
        Path(url.raw).write_bytes(whole[:end])
        with pytest.raises(ConfigError):
            load_features(url, field="name")


@pytest.mark.parametrize("suffix", [".shx", ".dbf"])
def test_a_file_beside_a_shapefile_that_ends_early_is_refused(suffix: str, tmp_path: Path) -> None:
    url = write(frame(), tmp_path, ".shp")
    beside = Path(url.raw[:-4] + suffix)
    whole = beside.read_bytes()
    for end in (0, 40, len(whole) // 2, len(whole) - 8):
        beside.write_bytes(whole[:end])
        with pytest.raises(ConfigError, match=r"is damaged|no shapefile"):
            load_features(url, field="name")


def test_a_virtual_data_set_leads_nowhere_under_any_name(tmp_path: Path) -> None:
    members = members_of(tmp_path / "there")
    secret = tmp_path / "there" / "fields.shp"
    layer = f"<OGRVRTDataSource><OGRVRTLayer name='fields'><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer>"
    layer += "</OGRVRTDataSource>"
    leading = layer.encode()
    for data in (leading, b"SQLite format 3\0" + leading, json.dumps({"type": layer}).encode()):
        with pytest.raises(ConfigError):
            read(data)
    for suffix in (".gpkg", ".geojson", ".shp", ".zip"):
        place = tmp_path / "here" / f"fields{suffix}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(leading)
        with pytest.raises(ConfigError, match=r"no file of polygons"):
            load_features(Url(str(place)), field="name")
    magic = shapefile.MAGIC + bytes(20) + struct.pack(">i", (len(leading) + 100) // 2)
    for shp in (leading, magic.ljust(100, b" ") + leading):
        with pytest.raises(ConfigError):
            read(zipped(members | {"fields.shp": shp}))
    with pytest.raises(ConfigError, match="0 shapefiles"):
        read(zipped({"fields.vrt": leading, "fields.gpkg": leading}))


def test_other_members_and_paths_of_an_archive_are_never_used(tmp_path: Path) -> None:
    files = members_of(tmp_path / "made")
    before = sorted(tmp_path.rglob("*"))
    out = {f"../../{tmp_path.name}/out/{name}": data for name, data in files.items()}
    vrt = {"../../features.vrt": b"<OGRVRTDataSource/>", "features.vrt": b"<OGRVRTDataSource/>"}
    assert read(zipped(vrt | out), "number").values == [3, 1, 4, 2]
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapefile, "_MOST_BYTES", 2**20)
    files = members_of(tmp_path)
    assert len(read(zipped(files)).shapes) == 4
    bomb = zipped(files | {"fields.dbf": bytes(2**26)})
    assert len(bomb) < 2**17
    with pytest.raises(ConfigError, match="bytes unpacked, limit 1048576"):
        read(bomb)
    size = struct.pack("<I", 2**26)
    assert bomb.count(size) == 2
    tracemalloc.start()
    with pytest.raises(ConfigError, match="CRC"):
        read(bomb.replace(size, struct.pack("<I", 1000)))
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_an_encrypted_or_damaged_archive_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(members_of(tmp_path), zipfile.ZIP_STORED))
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    broken = data.copy()
    broken[local + 200] ^= 255
    data[local + 6] |= 1
    data[central + 8] |= 1
    for archive in (broken, data):
        with pytest.raises(ConfigError, match="cannot be read as a zip archive"):
            read(bytes(archive))


@pytest.mark.parametrize(
    "plain",
    [
        [],
        {"type": "FeatureCollection"},
        {"type": "FeatureCollection", "features": None},
        {"type": "FeatureCollection", "features": [3]},
        {"type": "FeatureCollection", "features": [{"geometry": {"type": "Polygon"}, "properties": {"name": 1}}]},
        {"type": "FeatureCollection", "features": [{"geometry": 7, "properties": {"name": 1}}]},
        {"type": "FeatureCollection", "features": [], "crs": {"properties": {"name": "EPSG:0"}}},
        {"type": "FeatureCollection", "features": [], "crs": 5},
    ],
)
def test_json_of_another_shape_is_refused(plain: Any) -> None:
    with pytest.raises(ConfigError):
        read(json.dumps(plain).encode())


def test_geometries_in_another_encoding_are_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    polygons = frame().explode().reset_index(drop=True)
    polygons.to_parquet(tmp_path / "native.parquet", geometry_encoding="geoarrow")
    with pytest.raises(ConfigError, match="encoded as 'polygon'") as refused:
        read((tmp_path / "native.parquet").read_bytes())
    assert "GEOMETRY_ENCODING=WKB" in refused.value.hint


def test_coordinates_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    table = frame()
    table.loc[0, "geometry"] = shapely.Polygon([(0, 0), (float("nan"), 1), (1, 1)])
    with pytest.raises(ConfigError, match=r"1 polygon\(s\) of .* not finite"):
        load_features(write(table, tmp_path, ".parquet"), field="name")

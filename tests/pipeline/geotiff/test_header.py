from pipeline.geotiff.header import metadata_items

ITEM = '<Item name="DESCRIPTION" sample="0" role="description">{}</Item>'


def test_items_of_gdals_metadata_are_read() -> None:
    (item,) = metadata_items(f"<GDALMetadata>{ITEM.format('Red')}</GDALMetadata>")
    assert (item.text, item.get("sample"), item.get("role")) == ("Red", "0", "description")


def test_declarations_are_not_expanded_and_damaged_xml_gives_nothing() -> None:
    declared = '<!DOCTYPE x [<!ENTITY a "aaaaaaaa">]>'
    assert metadata_items(f"{declared}<GDALMetadata>{ITEM.format('&a;')}</GDALMetadata>") == []
    assert metadata_items("<GDALMetadata>") == []
    assert metadata_items(None) == []

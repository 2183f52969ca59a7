"""Table of data sets whose official layout can be read, by name."""

from pipeline.datasets import (
    ade20k,
    agriculture_vision,
    camvid,
    cityscapes,
    coco,
    cwfid,
    generated,
    isprs,
    kitti,
    landcover,
    loveda,
    nyu,
    person_part,
    sun_rgbd,
    voc,
)
from pipeline.datasets.layout import DatasetLayout

DATASET_LAYOUTS: dict[str, DatasetLayout] = {
    layout.name: layout
    for layout in (
        voc.VOC2012,
        person_part.PERSON_PART,
        ade20k.SCENE_PARSING,
        coco.THINGS,
        coco.AS_VOC,
        coco.STUFF,
        camvid.CAMVID,
        camvid.CAMVID32,
        cityscapes.FINE,
        cityscapes.COARSE,
        kitti.KITTI,
        sun_rgbd.SUN_RGBD,
        nyu.NYU40,
        nyu.NYU13,
        agriculture_vision.AGRICULTURE_VISION,
        loveda.LOVEDA,
        isprs.POTSDAM,
        isprs.VAIHINGEN,
        landcover.LANDCOVER,
        cwfid.CWFID,
        generated.FARMLAND,
        generated.FARMLAND_NIR,
    )
}

"""Every data set whose official layout can be read, by name."""

from pipeline.datasets import ade20k, camvid, cityscapes, coco, kitti, person_part, voc
from pipeline.datasets.layout import Layout

LAYOUTS: dict[str, Layout] = {
    one.name: one
    for one in (
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
    )
}

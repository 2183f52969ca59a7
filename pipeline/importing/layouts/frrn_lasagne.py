"""Lasagne weights of FRRN by its authors, https://github.com/TobyPDE/FRRN: dltools/architectures.py and nnet.py.

The arrays have no names: `importing.lasagne` names them after their place, and these layouts know the network's order.
"""

from collections.abc import Iterator

from pipeline.importing.layouts.layout import WeightsLayout
from pipeline.importing.layouts.shapes import ShapeOptions, Tensors, width_option
from pipeline.models.frrn import BASE_CHANNELS, FRRN, FRRNA, FRRNB, UNITS_AROUND
from pipeline.models.normalisation import Normalisation

FRRN_URL = "https://github.com/TobyPDE/FRRN"
UNCHANGED = Normalisation(
    (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), origin="none: pixels of 0 to 1, as TobyPDE/chianti, chianti/augmentation.h"
)


def _pairs(network: type[FRRN]) -> Iterator[tuple[str, str]]:
    """Our names of each convolution, in the order of the file, and of the batch norm behind it or nothing."""

    def unit(name: str) -> Iterator[tuple[str, str]]:
        yield f"{name}.residual.0.0.", f"{name}.residual.0.1."
        yield f"{name}.residual.1.", f"{name}.residual.2."

    yield "head.0.0.", "head.0.1."
    for number in range(1, UNITS_AROUND + 1):
        yield from unit(f"head.{number}")
    yield "to_residual.0.", "to_residual.1."
    for part, stages in (("encoder", network.encoder_stages), ("decoder", network.decoder_stages)):
        for index, stage in enumerate(stages):
            for number in range(stage.units):
                for half in (0, 1):
                    name = f"{part}.{index}.{number}.convolutions.{half}"
                    yield f"{name}.0.", f"{name}.1."
                yield f"{part}.{index}.{number}.to_residual.", ""
    for number in range(UNITS_AROUND):
        yield from unit(f"tail.{number}")
        if number == 0:
            yield "tail.0.project.", ""
    yield "logits.", ""


def _layout(letter: str, network: type[FRRN], *, size: str, scale: str) -> WeightsLayout:
    pairs = list(_pairs(network))
    rules = {f"layer{number}.conv.": conv for number, (conv, _) in enumerate(pairs)}
    rules |= {f"layer{number}.bn.": norm for number, (_, norm) in enumerate(pairs) if norm}
    scores = f"layer{len(pairs) - 1}.conv.weight"
    return WeightsLayout(
        name=f"lasagne-frrn-{letter}",
        title=f"the authors' FRRN {letter.upper()}",
        url=FRRN_URL,
        marks=("layer0.bn.running_var", scores, scores.replace("weight", "bias")),
        without=(f"layer{len(pairs)}.",),
        architecture=f"frrn_{letter}",
        options=_options,
        rules=rules,
        first=("head.0.0.weight",),
        scores=scores,
        output_stride=network.output_strides[0],
        normalisation=UNCHANGED,
        notes=(f"the authors train on and segment images at {size} of the size: --infer.scales {scale}",),
    )


def _options(tensors: Tensors) -> ShapeOptions:
    return width_option(tensors, "layer0.conv.weight", BASE_CHANNELS)


FRRN_LASAGNE_LAYOUTS: tuple[WeightsLayout, ...] = (
    _layout("a", FRRNA, size="a quarter", scale="0.25"),
    _layout("b", FRRNB, size="half", scale="0.5"),
)

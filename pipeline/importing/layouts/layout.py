"""A layout: the tensor names of one kind of weight file, and the facts that its shapes do not tell.

A layout maps prefixes of the file's names to prefixes of ours; the longest that fits wins. Facts that no shape tells
(normalisation, order of colours, rates, place of a stride) are beside the names, with their place in the source code.
No tensor is changed here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pipeline.importing.layouts.shapes import ShapeOptions, Tensors
from pipeline.models.normalisation import IMAGENET, Normalisation

BACKBONE_HEAD = "the classifier of a backbone"
RESNET_UNUSED = {"fc.": BACKBONE_HEAD}
STRIDE_UNKNOWN = "the file does not say its output stride; --output-stride does"
CORNERS = (
    "the source stretches its logits over the image, corner to corner; here cell (i, j) is at pixel (i, j) times the "
    "stride, which is the same for sides of a multiple of the stride and one more"
)


@dataclass(frozen=True, slots=True)
class WeightsLayout:
    """One way to write one kind of network."""

    name: str
    """As `--layout` takes it."""
    title: str
    url: str
    marks: tuple[str, ...]
    """Names that such a file has, all of them."""
    architecture: str
    """Our network; of a backbone, the one it goes into unless another is asked for."""
    rules: Mapping[str, str]
    """Beginnings of names, and of ours; what our networks call `encoder` is a `backbone` here too."""
    options: Callable[[Tensors], ShapeOptions]
    """Options of our network, from the tensors under their aliases."""
    without: tuple[str, ...] = ()
    """Beginnings of names that such a file has not."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of names that are left aside, and why."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Patterns and replacements that even out names before anything else looks at them."""
    scores: str = ""
    """The tensor whose first axis counts the classes, under its alias; empty for a backbone."""
    first: tuple[str, ...] = ("backbone.conv1.weight",)
    """Our convolutions that look at the image."""
    swapped: Mapping[str, int] = field(default_factory=dict)
    """Axes of our tensors along which the source has ASPP's channels in front of the low-level ones, not behind."""
    output_stride: int = 16
    """The source's default; most files do not say theirs."""
    rates: tuple[int, ...] = ()
    """ASPP's rates where the source has the same at every output stride; ours are doubled at 8."""
    normalisation: Normalisation = IMAGENET
    notes: tuple[str, ...] = ()
    """Where outputs may differ from the source's, and what only a person can know."""

    @property
    def is_backbone(self) -> bool:
        """Whether it is a feature extractor alone: the rest of the network is filled from a seed."""
        return not self.scores

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
"""Reason for unused tensors."""
RESNET_UNUSED = {"fc.": BACKBONE_HEAD}
"""Unused prefix of a ResNet alone."""
STRIDE_UNKNOWN = "the file does not store its output stride; set --output-stride if it is another"
"""Note of a layout."""
CORNERS = (
    "the source stretches its logits over the image, corner to corner; here cell (i, j) is at pixel (i, j) times the "
    "stride, which is the same for sides of a multiple of the stride plus one"
)
"""Note of a layout whose source aligns corners."""
FOLDED = (
    "the file has batch norm folded into its convolutions: it was filled in as the identity, with which outputs are "
    "the file's; statistics of a batch would change them, so train on with --batch-norm frozen"
)
"""Note of a layout without batch norm."""


@dataclass(frozen=True, slots=True)
class WeightsLayout:
    """Tensor names of one kind of weight file, and how its network maps to ours."""

    name: str
    """Value of `--layout`."""
    title: str
    """Name for people."""
    url: str
    """Source code that writes such files."""
    marks: tuple[str, ...]
    """Tensor names that identify such a file: it has all of them."""
    architecture: str
    """Our network; for a backbone the default network around it."""
    rules: Mapping[str, str]
    """Prefix of our names by prefix of the file's; networks whose extractor is `encoder` also use `backbone` here."""
    options: Callable[[Tensors], ShapeOptions]
    """Options of our network, from the tensors under their aliases."""
    without: tuple[str, ...] = ()
    """Prefixes that no name of such a file has."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of tensors that are not used, with the reason."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Prefixes of tensors that repeat those of another prefix, as modules under two names are saved; both are equal."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Regular expressions and replacements that normalise the file's names first."""
    scores: str = ""
    """Alias of the tensor with an axis of one length per class; empty for a backbone."""
    scores_axis: int = 0
    """That axis: 0 of a convolution, 1 of a transposed one."""
    first: tuple[str, ...] = ("backbone.conv1.weight",)
    """Our convolutions whose input is the image."""
    swapped: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Our tensors over two groups of channels that the source has in the other order: axis, and our convolution whose
    filters are the first group of ours."""
    folded: bool = False
    """The file has batch norm folded into its convolutions: ours is filled in as the identity, but for its bias."""
    output_stride: int = 16
    """Default output stride of the source; most files do not store theirs."""
    rates: tuple[int, ...] = ()
    """ASPP's rates if the source has the same at every output stride; ours are doubled at stride 8."""
    normalisation: Normalisation = IMAGENET
    """Input normalisation of the source."""
    normalisation_by_scores: Mapping[int, Normalisation] = field(default_factory=dict)
    """Another input normalisation by number of scores: some sources take the statistics of their training images."""
    notes: tuple[str, ...] = ()
    """Notes for the report: possible differences from the source's outputs, and facts the file does not store."""

    def input_normalisation(self, scores: int | None) -> Normalisation:
        """Input normalisation of a file with so many scores; None for a backbone."""
        return self.normalisation_by_scores.get(scores or 0, self.normalisation)

    @property
    def is_backbone(self) -> bool:
        """True for a feature extractor alone; a seed fills the rest of the network."""
        return not self.scores

"""Dense CRF in plain torch, for GPUs and for machines without the C++ extension.

In: a batch of 8-bit images of one size, their logits at any stride, valid masks. Out: the marginals Q. The kernels are
filtered over a permutohedral lattice (Adams, Baek and Davis 2010); the mean field is Krähenbühl and Koltun's (2011),
with the self term and the symmetric normalisation of their code. Every step of the filter is one sparse matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, reduce

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor

from pipeline.records import Bool, Float32, UInt8
from pipeline.refine.mean_field_torch import GraphedMeanField, mean_field
from pipeline.refine.presets import CrfParams

MAX_KEY = 2**62
"""Limit of keys: below it the keys of neighbours fit int64 too."""

_BLOCK_BYTES = 2**22
"""Size of the blocks of rows that a CPU computes at a time."""

LONGEST_BAG = 64
"""Entries of a row that a GPU sums one after the other: a vertex of a flat region has thousands, and all others would
wait for its sum."""

CACHED_LATTICES = 3
"""Spatial lattices kept, one per size of batch and sigma: a row of windows has up to three sizes, and so have all rows
between the first and the last. Each takes about 200 bytes per pixel."""


@dataclass(frozen=True, slots=True)
class SparseMatrix:
    """Sparse matrix by rows; its product is an embedding bag, on a CPU several times faster than torch's CSR."""

    starts: Tensor
    """(rows + 1,) int32, first entry of each row."""
    columns: Tensor
    """(entries,) int32."""
    weights: Tensor
    """(entries,) of the dtype of the values they multiply."""

    def __matmul__(self, values: Tensor) -> Tensor:
        """(columns, K) -> (rows, K)."""
        return F.embedding_bag(
            self.columns, values, self.starts, mode="sum", per_sample_weights=self.weights, include_last_offset=True
        )

    def in_blocks(self, values: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The product in blocks of rows, so a CPU can reuse memory: fresh pages cost more than the sums."""
        size = max(1, _BLOCK_BYTES // (values.shape[1] * values.element_size()))
        if len(self.starts) <= size:
            yield slice(None), self @ values
            return
        for first in range(0, len(self.starts) - 1, size):
            starts = self.starts[first : first + size + 1]
            entries = slice(int(starts[0]), int(starts[-1]))
            block = SparseMatrix(starts - starts[0], self.columns[entries], self.weights[entries])
            yield slice(first, first + size), block @ values

    def split(self, longest: int) -> tuple["SparseMatrix", "SparseMatrix"]:
        """Two factors: sums of at most `longest` entries each, (parts, columns), and sums of them, (rows, parts)."""
        lengths = self.starts.long().diff()
        parts = (lengths + longest - 1) // longest
        first = F.pad(parts.cumsum(0), (1, 0))
        row = torch.repeat_interleave(parts)
        number = torch.arange(len(row), device=row.device)
        starts = self.starts[row] + (number - first[row]) * longest
        starts = F.pad(starts, (0, 1), value=len(self.columns)).int()
        ones = self.weights.new_ones(len(row))
        return SparseMatrix(starts, self.columns, self.weights), SparseMatrix(first.int(), number.int(), ones)

    def clone(self) -> "SparseMatrix":
        """A copy in memory of its own."""
        return SparseMatrix(self.starts.clone(), self.columns.clone(), self.weights.clone())

    def copy_(self, other: "SparseMatrix") -> None:
        """Take over the values of a matrix of the same shape."""
        self.starts.copy_(other.starts)
        self.columns.copy_(other.columns)
        self.weights.copy_(other.weights)


@dataclass(frozen=True, slots=True)
class Lattice:
    """Gaussian filter of P points over M lattice vertices: splat, blur along each axis, slice."""

    splat: SparseMatrix
    """(M, P), or (parts, P) with `joins`."""
    blurs: tuple[SparseMatrix, ...]
    """(M, M) each, symmetric: 1 for the vertex, 1/2 for its neighbours along one axis, as far as they exist."""
    slice: SparseMatrix
    """(P, M)."""
    joins: SparseMatrix | None = None
    """(M, parts): for a GPU, `splat` sums each vertex in short parts, and this sums the parts."""

    def __matmul__(self, values: Tensor) -> Tensor:
        """(P, K) -> (P, K)."""
        return reduce(lambda filtered, step: step @ filtered, self.steps, values)

    @property
    def steps(self) -> tuple[SparseMatrix, ...]:
        """Matrices of the filter, the first one first."""
        joins = () if self.joins is None else (self.joins,)
        return (self.splat, *joins, *self.blurs, self.slice)

    def add_to(self, total: Tensor, values: Tensor, scratch: Tensor) -> None:
        """Add the filter of `values` to `total`, both (P, K).

        A CPU works in `scratch`, at least (2, M, K). With `joins`, for a GPU, it is not needed: torch reuses memory.
        """
        if self.joins is not None:
            total += self @ values
            return
        source, target = scratch[:, : self.vertices]
        for rows, block in self.splat.in_blocks(values):
            source[rows] = block
        for blur in self.blurs:
            for rows, block in blur.in_blocks(source):
                target[rows] = block
            source, target = target, source
        for rows, block in self.slice.in_blocks(source):
            total[rows] += block

    @property
    def vertices(self) -> int:
        """Number of vertices, M."""
        return len((self.joins or self.splat).starts) - 1

    def transposed(self) -> "Lattice":
        """Transposed filter: blurs in reverse, since they do not commute where neighbours are missing."""
        return replace(self, blurs=self.blurs[::-1])

    def normalised(self) -> "Lattice":
        """Symmetric normalisation D^-1/2 K D^-1/2, with the row sums of K in D."""
        scale = (self @ torch.ones_like(self.slice.weights[: len(self.slice.starts) - 1, None])).rsqrt()[:, 0]
        corners = len(self.blurs)
        return replace(
            self,
            splat=replace(self.splat, weights=self.splat.weights * scale[self.splat.columns]),
            slice=replace(self.slice, weights=self.slice.weights * scale.repeat_interleave(corners)),
        )

    def scaled(self, factor: float) -> "Lattice":
        """The filter multiplied by a number."""
        return replace(self, slice=replace(self.slice, weights=self.slice.weights * factor))

    def in_short_sums(self) -> "Lattice":
        """The same filter without long sums, for a GPU; sums have another order, which is fixed too."""
        splat, joins = self.splat.split(LONGEST_BAG)
        return replace(self, splat=splat, joins=joins)

    @property
    def least_padding(self) -> int:
        """Vertices by which `padded` must add to the lattice at least, to have room for all parts that others have."""
        return 0 if self.joins is None else len(self.splat.columns) // LONGEST_BAG**2 + 1

    def padded(self, vertices: int) -> "Lattice":
        """The same filter with vertices that no point touches, so that all its shapes follow from P and `vertices`."""
        extra = vertices - self.vertices
        blurs = tuple(_with_empty_rows(blur, extra) for blur in self.blurs)
        if self.joins is None:
            return replace(self, splat=_with_starts(self.splat, extra), blurs=blurs)
        parts = len(self.joins.columns)
        more = len(self.splat.columns) // LONGEST_BAG + vertices - parts
        # A matrix has no entries beyond its last row: those of parts that there are not are spread over the new rows.
        ends = parts + torch.arange(1, extra + 1, device=self.joins.starts.device) * more // extra
        joins = SparseMatrix(
            torch.cat([self.joins.starts, ends.int()]),
            F.pad(self.joins.columns, (0, more)),
            F.pad(self.joins.weights, (0, more)),
        )
        return replace(self, splat=_with_starts(self.splat, more), joins=joins, blurs=blurs)

    def clone(self) -> "Lattice":
        """A copy in memory of its own."""
        joins = None if self.joins is None else self.joins.clone()
        return Lattice(self.splat.clone(), tuple(blur.clone() for blur in self.blurs), self.slice.clone(), joins)

    def copy_(self, other: "Lattice") -> None:
        """Take over the values of a lattice of the same shapes."""
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            mine.copy_(theirs)


def _with_starts(matrix: SparseMatrix, rows: int) -> SparseMatrix:
    """The matrix with more rows, without entries."""
    return replace(matrix, starts=F.pad(matrix.starts, (0, rows), value=len(matrix.columns)))


def _with_empty_rows(blur: SparseMatrix, rows: int) -> SparseMatrix:
    """A blur with more rows of three entries, all 0."""
    starts = torch.arange(0, 3 * (len(blur.starts) + rows), 3, dtype=torch.int32, device=blur.starts.device)
    return SparseMatrix(starts, F.pad(blur.columns, (0, 3 * rows)), F.pad(blur.weights, (0, 3 * rows)))


def build_lattice(features: Tensor, groups: Tensor) -> Lattice:
    """Build the lattice of a Gaussian of sigma 1 in `features`, separate for each group of points.

    Args:
        features: (d, P) float, P at least 1.
        groups: (P,) int64; points of different groups share no vertices.
    """
    dims = len(features)
    corner, rank, weights = _simplex(features)
    strides = _strides(corner, groups)
    step = sum(strides[:-1])
    # From one corner of a simplex to the next all coordinates grow by 1, except that one falls by d: that of the next
    # lower rank (Adams 2010, sec. 3.1).
    stride_of = torch.tensor([*strides[:-1], 0], device=features.device)
    falling = torch.empty_like(rank).scatter_(0, rank, stride_of[:, None].expand_as(rank))
    key = groups * strides[-1]
    for i in range(dims):
        key = key + corner[i] * strides[i]
    keys = [key]
    for remainder in range(1, dims + 1):
        keys.append(keys[-1] + _wrapped(step) - falling[dims + 1 - remainder] * (dims + 1))
    axes = [_wrapped(step - (dims + 1) * stride) for stride in (*strides[:-1], 0)]
    return _assemble(torch.stack(keys, dim=1), weights.t().contiguous(), axes)


def _simplex(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Simplex around each point: (d+1, P) corner of remainder 0, rank of each coordinate, weight of each corner.

    Adams 2010, sec. 3.1: points are embedded in the plane of d+1 coordinates that sum to 0, scaled so that splatting,
    blurring and slicing together have a standard deviation of 1.
    """
    dims = len(features)
    deviation = (2 / 3) ** 0.5 * (dims + 1)
    rest = torch.zeros_like(features[0])
    elevated = torch.empty((dims + 1, *rest.shape), dtype=features.dtype, device=features.device)
    for i in range(dims, 0, -1):
        scaled = features[i - 1] * (deviation / (i * (i + 1)) ** 0.5)
        elevated[i] = rest - i * scaled
        rest = rest + scaled
    elevated[0] = rest
    corner = (elevated / (dims + 1)).round().long()
    rank = _ranks(elevated - corner * (dims + 1)) + corner.sum(0)
    # Rounding may leave the plane: move the coordinates with the largest rounding error back.
    turns = rank.lt(0).long() - rank.gt(dims).long()
    rank, corner = rank + turns * (dims + 1), (corner + turns) * (dims + 1)
    distance = (elevated - corner) / (dims + 1)
    by_rank = torch.empty_like(distance).scatter_(0, rank, distance).flip(0)
    weights = by_rank - by_rank.roll(1, 0)
    weights[0] += 1
    return corner, rank, weights


def _ranks(distance: Tensor) -> Tensor:
    """(d+1, P) -> rank of each coordinate of a point, 0 for the largest; the first of equals comes first."""
    rank = torch.zeros_like(distance, dtype=torch.long)
    for i in range(len(distance)):
        for j in range(i + 1, len(distance)):
            less = distance[i] < distance[j]
            rank[i] += less
            rank[j] += ~less
    return rank


def _strides(corner: Tensor, groups: Tensor) -> list[int]:
    """Factors that combine the first d coordinates and the group into one int64 key.

    They index a box around all vertices and their neighbours. A box that is too large, as with many bands, gets random
    factors: then two of ten million vertices share a key with a probability of about one in 400 000.
    """
    dims = len(corner) - 1
    low, high = corner[:-1].amin(1).tolist(), corner[:-1].amax(1).tolist()
    strides = [1]
    for first, last in zip(low, high, strict=True):
        strides.append(strides[-1] * (last - first + 4 * (dims + 1)))
    if strides[-1] * (int(groups.max()) + 1) < MAX_KEY:
        return strides
    random = np.random.default_rng(0)
    return [int(factor) | 1 for factor in random.integers(-(2**63), 2**63, dims + 1)]


def _wrapped(number: int) -> int:
    """The int64 value of a sum after overflow."""
    return (number + 2**63) % 2**64 - 2**63


def _assemble(keys: Tensor, weights: Tensor, axes: list[int]) -> Lattice:
    """Lattice of points with (P, d+1) keys and weights of their corners; neighbours are at +-`axes` from a key."""
    points, corners = keys.shape
    ordered, order = keys.flatten().sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = F.pad(is_first.nonzero()[:, 0], (0, 1), value=len(ordered)).int()
    vertex = torch.empty_like(order, dtype=torch.int32)
    vertex[order] = is_first.cumsum(0, dtype=torch.int32) - 1
    first_entries = torch.arange(0, (points + 1) * corners, corners, dtype=torch.int32, device=keys.device)
    lattice = Lattice(
        splat=SparseMatrix(starts, (order // corners).int(), weights.flatten()[order]),
        blurs=tuple(_blur(ordered[is_first], axis, weights) for axis in axes),
        slice=SparseMatrix(first_entries, vertex, weights.flatten()),
    )
    return lattice if keys.device.type == "cpu" else lattice.in_short_sums()


def _blur(vertices: Tensor, axis: int, like: Tensor) -> SparseMatrix:
    """Blur along one axis of vertices with ascending keys (M,)."""
    size = len(vertices)
    next_keys = vertices + axis
    own = torch.arange(size, device=vertices.device)
    after = torch.searchsorted(vertices, next_keys).clamp(max=size - 1)
    exists = vertices[after] == next_keys
    before = torch.arange(size + 1, device=vertices.device)
    before[torch.where(exists, after, size)] = own
    before = before[:size]
    # A neighbour that does not exist is the vertex itself, times 0.
    columns = torch.stack([own, torch.where(exists, after, own), before], dim=1).int()
    weights = torch.stack([torch.full_like(exists, 2, dtype=like.dtype), exists, before != own], dim=1) / 2
    starts = torch.arange(0, 3 * size + 1, 3, dtype=torch.int32, device=vertices.device)
    return SparseMatrix(starts, columns.flatten(), weights.to(like.dtype).flatten())


def _places(height: int, width: int, sigma: float, like: Tensor) -> Tensor:
    """(2, H, W): column and row of each pixel, in sigmas."""
    y, x = (torch.arange(side, dtype=like.dtype, device=like.device) / sigma for side in (height, width))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])


def _points(images: Tensor, valid: Tensor | None, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """(2, P) places in sigmas, (B, P) colours and (P,) image index of each valid pixel."""
    count, height, width, _ = images.shape
    places = _places(height, width, sigma, images)
    if valid is None:
        groups = torch.arange(count, device=images.device).repeat_interleave(height * width)
        return places.flatten(1).repeat(1, count), images.flatten(0, 2).t(), groups
    groups, y, x = valid.nonzero(as_tuple=True)
    return places[:, y, x], images[groups, y, x].t(), groups


@lru_cache(maxsize=CACHED_LATTICES)
def _spatial(size: torch.Size, sigma: float, dtype: torch.dtype, device: torch.device) -> Lattice:
    places, _, groups = _points(torch.empty((*size, 0), dtype=dtype, device=device), None, sigma)
    return build_lattice(places, groups).normalised()


def spatial_lattice(images: Tensor, valid: Tensor | None, sigma: float) -> Lattice:
    """Smoothness kernel, normalised, of (N, H, W, B) float images; cached for the next batch of that size."""
    if valid is None:
        return _spatial(images.shape[:3], sigma, images.dtype, images.device)
    places, _, groups = _points(images, valid, sigma)
    return build_lattice(places, groups).normalised()


def bilateral_lattice(images: Tensor, valid: Tensor | None, sigma_xy: float, sigma_colour: float | Tensor) -> Lattice:
    """Appearance kernel, normalised, of (N, H, W, B) float images, values 0 to 255; one colour sigma, or (B,)."""
    places, colours, groups = _points(images, valid, sigma_xy)
    sigmas = sigma_colour.view(-1, 1) if isinstance(sigma_colour, Tensor) else sigma_colour
    return build_lattice(torch.cat([places, colours / sigmas]), groups).normalised()


def upsample_logits(logits: Tensor, height: int, width: int, *, stride: int, align_corners: bool) -> Tensor:
    """(N, K, h, w) logits at a stride -> (N, H, W, K), by the rule of `unary.upsample_window`."""
    if stride == 1:
        return logits.permute(0, 2, 3, 1).contiguous()
    cells = logits.permute(0, 2, 3, 1)
    for axis, length in ((2, width), (1, height)):
        pixels = torch.arange(length, dtype=logits.dtype, device=logits.device)
        centres = pixels / stride if align_corners else (pixels + 0.5) / stride - 0.5
        centres = centres.clamp(0, cells.shape[axis] - 1)
        before = centres.long()
        after = (before + 1).clamp(max=cells.shape[axis] - 1)
        weight = (centres - before).view(-1, *(1,) * (3 - axis))
        cells = torch.lerp(cells.index_select(axis, before), cells.index_select(axis, after), weight)
    return cells


class DenseCRF:
    """Dense CRF on one device. Sums have a fixed order, so the same input gives the same output."""

    def __init__(self, device: str | torch.device | None = None, *, graphs: bool | None = None) -> None:
        """`device` None takes a GPU where torch has one; `graphs` None captures CUDA graphs there."""
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._graphed = GraphedMeanField() if graphs or (graphs is None and self.device.type == "cuda") else None

    def refine_one(
        self,
        pixels_hwc: UInt8,
        logits_khw: Float32,
        valid_hw: Bool | None,
        params: CrfParams,
        *,
        band_sigmas: tuple[float, ...] | None = None,
        deadline: float = float("inf"),
    ) -> Float32:
        """`refine` for one image in numpy, with full-size logits: marginals (K, H, W) float32."""
        valid = None if valid_hw is None else torch.tensor(valid_hw)[None]
        images, logits = torch.tensor(pixels_hwc)[None], torch.tensor(logits_khw)[None]
        marginals = self.refine(images, logits, valid, params, band_sigmas=band_sigmas, deadline=deadline)
        probs: Float32 = marginals[0].cpu().numpy()
        return probs

    @torch.inference_mode()
    def refine(
        self,
        images: Tensor,
        logits: Tensor,
        valid: Tensor | None,
        params: CrfParams,
        *,
        band_sigmas: tuple[float, ...] | None = None,
        stride: int = 1,
        align_corners: bool = False,
        deadline: float = float("inf"),
    ) -> Tensor:
        """Marginals of the mean field after `params.iterations` steps.

        Pixels that are not valid take no part: they send and receive no message and keep the softmax of their logits.
        With 21 classes it takes 0.7 to 1.5 kB per pixel, more where colours are many sigmas apart.

        Args:
            images: (N, H, W, B) uint8, of any number of bands.
            logits: (N, K, ceil(H / stride), ceil(W / stride)) floating point, finite.
            valid: (N, H, W) bool, or None when all pixels are valid.
            params: kernel weights and sigmas.
            band_sigmas: one colour sigma per band; None takes `params.bi_rgb` for each.
            stride: pixels per logit and axis; 1 for logits of full size.
            align_corners: alignment of the logits, as in `unary.upsample_window`.
            deadline: `time.monotonic()` after which no further iteration starts.

        Returns:
            (N, K, H, W) float32 on the engine's device, sum 1 over K; K is innermost in memory.

        Raises:
            ValueError: for shapes and dtypes other than these.
            DeadlinePassed: the deadline passed before an iteration.
        """
        _check(images, logits, valid, stride)
        images, logits = images.to(self.device).float(), logits.to(self.device).float()
        valid = None if valid is None or bool(valid.all()) else valid.to(self.device)
        scores = upsample_logits(logits, *images.shape[1:3], stride=stride, align_corners=align_corners)
        points = scores.flatten(0, 2) if valid is None else scores[valid]
        if len(points):
            # Points that are valid differ in number from image to image, so graphs of them would never be used again.
            run = mean_field if self._graphed is None or valid is not None else self._graphed
            points = run(points, _kernels(images, valid, params, band_sigmas), params.iterations, deadline)
        if valid is None:
            return points.view_as(scores).permute(0, 3, 1, 2)
        probs = scores.softmax(-1)
        probs[valid] = points
        return probs.permute(0, 3, 1, 2)


def _kernels(
    images: Tensor, valid: Tensor | None, params: CrfParams, band_sigmas: tuple[float, ...] | None
) -> list[Lattice]:
    """Kernels of non-zero weight, multiplied by it."""
    kernels = []
    if params.pos_w:
        kernels.append(spatial_lattice(images, valid, params.pos_xy).scaled(params.pos_w))
    if params.bi_w:
        colour = params.bi_rgb if band_sigmas is None else images.new_tensor(band_sigmas)
        kernels.append(bilateral_lattice(images, valid, params.bi_xy, colour).scaled(params.bi_w))
    return kernels


def _check(images: Tensor, logits: Tensor, valid: Tensor | None, stride: int) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or 0 in images.shape:
        raise ValueError(f"images must be (N, H, W, B) uint8, got {tuple(images.shape)} {images.dtype}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    count, height, width, _ = images.shape
    grid = -(-height // stride), -(-width // stride)
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape:
        raise ValueError(f"logits must be (N, K, h, w) floating point, got {tuple(logits.shape)} {logits.dtype}")
    if (len(logits), *logits.shape[2:]) != (count, *grid):
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit images {tuple(images.shape)} at stride {stride}: "
            f"expected ({count}, K, {grid[0]}, {grid[1]})"
        )
    if valid is not None and (valid.dtype != torch.bool or valid.shape != images.shape[:3]):
        raise ValueError(f"valid must be {tuple(images.shape[:3])} bool, got {tuple(valid.shape)} {valid.dtype}")

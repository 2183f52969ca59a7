"""What a mask and its probabilities say about one image, in numbers that can be added up over many.

Sums and counts, not means, are what windows and shards exchange: merging them is exact.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.records import Bool, Float32, UInt8


@dataclass(slots=True)
class PixelStats:
    """Sums over the valid pixels of some windows of one image."""

    class_pixels: npt.NDArray[np.int64]
    """(K,) pixels per class."""
    valid_pixels: int = 0
    confidence_sum: float = 0.0
    """Sum of the largest probability of each pixel."""
    entropy_sum: float = 0.0
    """Sum of each pixel's entropy divided by log(K)."""
    changed_pixels: int = 0
    """Pixels to which the refiner gave another class."""

    def add(
        self, mask_hw: UInt8, confidence_hw: Float32, nats_hw: Float32, changed_hw: Bool, valid_hw: Bool | None
    ) -> None:
        """Count one window; pixels that are not valid do not count.

        Args:
            mask_hw: class ids.
            confidence_hw: the largest probability the network gave.
            nats_hw: entropy of its probabilities, of all classes or of those that can win.
            changed_hw: where the refiner changed the class.
            valid_hw: None when every pixel is valid.
        """
        valid = np.ones(mask_hw.shape, bool) if valid_hw is None else valid_hw
        uniform = np.log(max(len(self.class_pixels), 2))
        self.class_pixels += np.bincount(mask_hw[valid], minlength=len(self.class_pixels))
        self.valid_pixels += int(valid.sum())
        self.confidence_sum += float(confidence_hw[valid].sum(dtype=np.float64))
        self.entropy_sum += float(nats_hw[valid].sum(dtype=np.float64) / uniform)
        self.changed_pixels += int((changed_hw & valid).sum())

    def mean(self, total: float) -> float:
        """A sum per valid pixel; 0 when there are none."""
        return total / self.valid_pixels if self.valid_pixels else 0.0

"""The network of a run, asked again for one photo: its row holds the refined mask, not what the network said before.

In: the image as the run decoded it. Out: the network's mask and confidence. Weights other than the run's are refused.
"""

from functools import cached_property
from threading import Lock

import numpy as np

from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError
from pipeline.records import Image, UInt8


class NetworkAgain:
    """Network of one run. It is loaded at the first call; calls take turns."""

    def __init__(self, cfg: EvaluateConfig) -> None:
        """Keep the settings of a run: its checkpoint, tiling and inference."""
        self._cfg, self._turn = cfg, Lock()

    def __call__(self, image: Image, model_fp: str) -> tuple[UInt8, UInt8]:
        """Mask, (H, W) class ids, and confidence, (H, W) 0 to 255.

        Args:
            image: the bands that the checkpoint takes.
            model_fp: first digits of the digest of the weights that made the row.

        Raises:
            ConfigError: the run has no checkpoint, or it is gone, or holds other weights now.
            InputError: the image is too large for the limits of the run.
        """
        from pipeline.run.one_image import segment  # noqa: PLC0415  # torch takes seconds to import

        with self._turn:
            if not self._digest.startswith(model_fp):
                raise ConfigError(
                    f"{self._cfg.checkpoint} now holds other weights than those of this row",
                    hint=f"digest {self._digest[:12]}, of the row {model_fp}",
                )
            mask_hw, confidence_hw = segment(
                image.pixels_hwc,
                self._cfg.checkpoint,
                refine=False,
                valid_hw=image.valid_hw,
                tile=self._cfg.tile,
                infer=self._cfg.infer,
            )
        return mask_hw, np.rint(confidence_hw * 255).astype(np.uint8)

    @cached_property
    def _digest(self) -> str:
        from pipeline.models.checkpoint import load_checkpoint  # noqa: PLC0415

        if not self._cfg.checkpoint:
            raise ConfigError("the masks of this run come from another program: there is no network to ask")
        return load_checkpoint(self._cfg.checkpoint).sha256

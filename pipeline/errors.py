"""Exceptions of the project, as one tree, and the codes of failure rows.

    AtrousError
    ├── InputError        one work item is bad: it becomes a failure row, and the run continues
    ├── DeadlinePassed    a refinement engine ran out of time without a result; never leaves the refiner
    └── JobError          the run cannot continue: shown to the user with a hint
        ├── ConfigError       a setting, checkpoint or class map is wrong
        ├── LabelError        a label does not fit its image or the class map
        ├── StorageError      an object store refuses or does not answer
        │   ├── AccessDenied      403: no retry will help
        │   ├── NothingThere      a listing found neither an object nor a folder
        │   └── StorageTimeout    every attempt timed out
        └── OwnedElsewhere    another live driver holds this output

An `InputError` carries a stable, countable `code`. The codes and their meanings are in
`ERROR_CODES`, from which the report shows them.
"""

from functools import partial
from typing import Any

ERROR_CODES: dict[str, str] = {
    "empty": "the object has no bytes",
    "not_an_image": "the bytes are not an image",
    "unsupported_format": "an image format that --decode.formats does not allow",
    "truncated": "the image data ends early",
    "corrupt": "the image data contradicts itself",
    "too_many_pixels": "more pixels than --decode.max-mpx, --tile.whole-mpx, --infer.max-logits-mib or "
    "--raster.max-gpx allow",
    "too_many_bytes": "the object is larger than --decode.max-mib",
    "too_small": "the image has a side of 0, or below --decode.min-px",
    "block_too_large": "a raster's tile or strip has more than 64 MiB decoded",
    "multi_frame": "the file has several frames; --decode.frame first uses the first",
    "band_mismatch": "the number or type of bands differs from the expected",
    "no_valid_pixels": "every pixel is transparent, nodata or not finite",
    "duplicate_key": "an earlier sample has the same name; --read.on-duplicate suffix keeps both",
    "missing_pair": "a sample of a tar has no image member",
    "archive_truncated": "the tar ends before its end-of-archive blocks, or a header is damaged",
    "empty_archive": "the tar or Parquet file holds no sample",
    "bad_parquet": "the Parquet file cannot be read, or has no image column",
    "source_changed": "the object changed between planning and reading",
    "not_found": "the object no longer exists",
    "storage_timeout": "the object store timed out, retries included",
    "storage_error": "the object store failed, retries included",
    "label_missing": "an image for training or scoring has no label",
    "label_format": "the label is not a PNG, is damaged, or does not hold class ids (or colours, if configured)",
    "label_size": "label and image differ in size",
    "label_value": "the label has a value that is neither a class nor the ignore id",
    "label_empty": "every pixel of the label is ignored",
    "mask_missing": "this image has no mask to score",
    "mask_unusable": "the mask to score is damaged, or does not fit its label or the class map",
    "non_finite_logits": "the network's logits are NaN or infinite, in float32 too",
    "gpu_oom": "the image does not fit the GPU, even alone",
    "crashed": "this item killed its worker twice",
    "refine_crashed": "this item killed its refiner twice",
}

NO_IMAGE = frozenset({"empty_archive", "missing_pair"})
"""Codes of tars, samples and Parquet files without an image."""


class AtrousError(Exception):
    """Base class of the project's exceptions."""


class DeadlinePassed(AtrousError):
    """A refinement engine ran out of time without a result."""


class InputError(AtrousError):
    """One work item is bad.

    Attributes:
        code: stable snake_case name, one of `ERROR_CODES`.
        detail: one line with the value seen and the value allowed.
        hint: the setting that changes the outcome; may be empty.
    """

    def __init__(self, code: str, detail: str, *, hint: str = "") -> None:
        if code not in ERROR_CODES:
            raise ValueError(f"unknown error code {code!r}")
        super().__init__(code, detail, hint)
        self.code, self.detail, self.hint = code, detail, hint

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), hint=self.hint), (self.code, self.detail)

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" + (f" ({self.hint})" if self.hint else "")


class JobError(AtrousError):
    """The run cannot continue.

    Attributes:
        hint: change for the user to make; may be empty.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), hint=self.hint), (self.message,)

    def __str__(self) -> str:
        return self.message + (f"\n  -> {self.hint}" if self.hint else "")


class ConfigError(JobError):
    """A setting, a checkpoint or a class map is wrong."""


class LabelError(JobError):
    """A label does not fit its image or the class map, so a score against it would be meaningless.

    Attributes:
        code: code of the failure row of its image, one of `ERROR_CODES`.
    """

    def __init__(self, message: str, *, code: str = "label_format", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), code=self.code, hint=self.hint), (self.message,)


class StorageError(JobError):
    """An object store refuses, does not answer, or answers nonsense."""


class AccessDenied(StorageError):
    """The store answered 403: credentials or policy must change, a retry cannot help."""


class NothingThere(StorageError):
    """A listing found neither an object nor a folder."""


class StorageTimeout(StorageError):
    """Every attempt timed out."""


class OwnedElsewhere(JobError):
    """Another live driver holds this output."""

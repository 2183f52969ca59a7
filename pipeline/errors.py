"""Everything that can go wrong, as one small tree.

    AtrousError
    ├── InputError        one work item is bad: becomes a failure row, the run goes on
    ├── DeadlinePassed    a refinement engine ran out of time with nothing to give; never leaves the refiner
    └── JobError          the run cannot go on: shown to the user with what to change
        ├── ConfigError       a setting, checkpoint or class map is wrong
        ├── LabelError        a label does not fit its image or the class map
        ├── StorageError      an object store refuses or has gone away
        │   ├── AccessDenied      403: no retry will help
        │   ├── NothingThere      a listing found neither an object nor a folder
        │   └── StorageTimeout    every attempt timed out
        └── OwnedElsewhere    another live driver holds this output

An `InputError` carries a stable, countable `code`. The codes are listed in `ERROR_CODES`; the report
shows their meaning from there.
"""

from functools import partial
from typing import Any

ERROR_CODES: dict[str, str] = {
    "empty": "the object has no bytes",
    "not_an_image": "the bytes are not an image at all",
    "unsupported_format": "a real format that is not on the allow-list",
    "truncated": "the image data ends early",
    "corrupt": "the image data contradicts itself",
    "too_many_pixels": "more pixels than --decode.max-mpx, --tile.whole-mpx or --infer.max-logits-mib allow",
    "too_many_bytes": "the object is larger than --decode.max-mib",
    "too_small": "the image has a side of 0, or below --decode.min-px",
    "multi_frame": "more than one frame; --decode.frame first takes the first",
    "band_mismatch": "the number or type of bands is not the expected one",
    "no_valid_pixels": "every pixel is transparent, nodata or not finite",
    "duplicate_key": "a sample of this name came before; --read.on-duplicate suffix keeps both",
    "missing_pair": "a sample of a tar has no image member",
    "archive_truncated": "the tar ends before its end-of-archive blocks, or a header is damaged",
    "empty_archive": "the tar or Parquet file holds no sample",
    "bad_parquet": "the Parquet file cannot be read, or has no image column",
    "source_changed": "the object changed between planning and reading",
    "not_found": "the object is gone",
    "storage_timeout": "the object store kept timing out",
    "storage_error": "the object store kept failing",
    "label_missing": "an image to train on or to score has no label",
    "label_format": "the label is no PNG, is damaged, or is no class ids (or colours, where they were asked for)",
    "label_size": "the label has another size than its image",
    "label_value": "the label holds a value that is neither a class nor the ignore id",
    "label_empty": "every pixel of the label is ignored",
    "mask_missing": "there is no mask to score for this image",
    "mask_unusable": "the mask to score is damaged, or does not fit its label or the class map",
    "non_finite_logits": "the network gave NaN or infinity, also in float32",
    "gpu_oom": "the image does not fit the GPU, even alone",
    "crashed": "this item killed its worker twice",
    "refine_crashed": "this item killed its refiner twice",
}


class AtrousError(Exception):
    """Base of all errors raised on purpose."""


class DeadlinePassed(AtrousError):
    """A refinement engine did not finish in time, and has nothing to give."""


class InputError(AtrousError):
    """One work item is bad.

    Attributes:
        code: stable snake_case name, one of `ERROR_CODES`.
        detail: what was seen and what is allowed, in one line.
        hint: the option that changes the outcome; may be empty.
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
    """The run cannot go on.

    Attributes:
        hint: what the user can change; may be empty.
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
    """A label does not fit its image or the class map: no score against it would mean anything.

    Attributes:
        code: that of the failure row of its image, where there are rows; one of `ERROR_CODES`.
    """

    def __init__(self, message: str, *, code: str = "label_format", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), code=self.code, hint=self.hint), (self.message,)


class StorageError(JobError):
    """An object store refuses, has gone away, or answers nonsense."""


class AccessDenied(StorageError):
    """The store answered 403: credentials or policy must change, a retry cannot help."""


class NothingThere(StorageError):
    """A listing found neither an object nor a folder."""


class StorageTimeout(StorageError):
    """Every attempt timed out."""


class OwnedElsewhere(JobError):
    """Another live driver holds this output."""

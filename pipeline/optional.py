"""Optional packages: an import that fails becomes an error that names the extra to install."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import ConfigError


@contextmanager
def package(name: str, *, extra: str, needed_by: str, instead: str = "") -> Iterator[None]:
    """Import an optional package inside this block.

    Args:
        name: of the package on PyPI.
        extra: of this project, which brings the package.
        needed_by: the setting, data set or kind of URL that cannot do without; the error begins with it.
        instead: what else the user can change, such as "give --runtime.tracker none".

    Raises:
        ConfigError: the import failed, because the package or one that it needs is missing or broken.
    """
    try:
        yield
    except ImportError as error:
        hint = f"pip install 'atrous[{extra}]'" + (f", or {instead}" if instead else "")
        raise ConfigError(f"{needed_by} needs {name}, which cannot be imported: {error}", hint=hint) from error

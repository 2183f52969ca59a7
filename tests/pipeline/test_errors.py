import pickle

import pytest

from pipeline import errors
from pipeline.errors import AccessDenied, ConfigError, InputError, JobError, OwnedElsewhere, StorageTimeout


@pytest.mark.parametrize("kind", [JobError, ConfigError, AccessDenied, StorageTimeout, OwnedElsewhere])
def test_errors_of_a_job_cross_process_boundaries_whole(kind: type[JobError]) -> None:
    """Ray sends exceptions of workers to the driver."""
    error = pickle.loads(pickle.dumps(kind("what happened", hint="what to do")))
    assert (type(error), error.message, error.hint) == (kind, "what happened", "what to do")
    assert str(error) == "what happened\n  -> what to do"


def test_errors_of_an_item_cross_process_boundaries_whole() -> None:
    error = pickle.loads(pickle.dumps(InputError("truncated", "3 of 9 bytes", hint="fetch it again")))
    assert (error.code, error.detail, error.hint) == ("truncated", "3 of 9 bytes", "fetch it again")


def test_a_code_that_is_not_listed_cannot_be_raised() -> None:
    with pytest.raises(ValueError, match="unknown error code 'oops'"):
        InputError("oops", "")


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    named = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}
    assert named == {word for word in errors.__doc__.split() if word in vars(errors)}

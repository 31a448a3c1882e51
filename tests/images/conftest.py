"""What tests of image files share."""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest


@contextlib.contextmanager
def _ordinary_user() -> Iterator[None]:
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def ordinary_user() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context in which the superuser, who may read everything, is nobody."""
    return _ordinary_user

"""What the tests of LIBERO need: LIBERO. Where it is not installed they are skipped, and the reason says what lacks."""

import pytest

from worldenv.errors import UserError
from worldenv.suites.actors import ask_once
from worldenv.suites.libero.suite import PROGRAM


@pytest.fixture(scope="session")
def libero():
    try:
        return ask_once(PROGRAM, ("describe", "libero_object"), 120.0)
    except UserError as error:
        pytest.skip(str(error))

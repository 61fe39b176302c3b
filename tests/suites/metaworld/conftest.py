"""What the tests of Meta-World need: Meta-World. Where it lacks they are skipped, and the reason says why."""

import pytest

from worldenv.errors import UserError
from worldenv.suites.metaworld.installed import installed


@pytest.fixture(scope="session")
def metaworld():
    try:
        return installed()
    except UserError as error:
        pytest.skip(str(error))

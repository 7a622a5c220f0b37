"""Sites: a Nucleus of its own per module, as root and as an ordinary user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .site import USER, Site


@pytest.fixture(scope="module", params=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(0 if request.param == "root" else USER)
    yield made
    made.close()


@pytest.fixture
def root_site() -> Iterator[Site]:
    made = Site(0)
    yield made
    made.close()

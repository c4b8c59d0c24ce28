"""Databases of both kinds, for what must hold on each."""

from collections.abc import Callable

import pytest

NewUrl = Callable[[], str | None]


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.databases)]
)
def new_url(request: pytest.FixtureRequest) -> NewUrl:
    """The URL of a new Postgres database; None where it is to be SQLite."""
    if request.param == "sqlite":
        return lambda: None
    fresh: NewUrl = request.getfixturevalue("postgres").fresh
    return fresh

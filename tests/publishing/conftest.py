from __future__ import annotations

from collections.abc import Iterator

import pytest
from hub import TOKEN, Hub, Pusher


@pytest.fixture(scope="module")
def only_pusher(hub: Hub) -> Iterator[Pusher]:
    """The one process of a module that pushes; it must never have printed the token."""
    pusher = Pusher(hub)
    yield pusher
    assert TOKEN not in pusher.close()


@pytest.fixture
def pusher(hub: Hub, only_pusher: Pusher) -> Pusher:
    """A process that pushes to a Hub without faults."""
    hub.fail()
    return only_pusher

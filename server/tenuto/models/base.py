"""What the API needs of the models, wherever their engines run."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

from tenuto.engine.base import Prompts
from tenuto.models.registry import Entry
from tenuto.models.slot import Lease, Slot
from tenuto.models.waiting import ANYONE, Asker


class Models(Protocol):
    """Those of the registry that are on this host, by id in `slots`. `started` is set once the
    start's loads are over."""

    @property
    def slots(self) -> Mapping[str, Slot]: ...

    @property
    def started(self) -> asyncio.Event: ...

    async def load(self, ids: Sequence[str]) -> None:
        """Waits for them as long as it takes. Errors: `EngineStartError`, `CheckpointError`."""
        ...

    def want(self, model_id: str) -> None:
        """Begins to load it."""
        ...

    def dismiss(self, model_id: str, to: Literal["asleep", "cold"]) -> None:
        """Once its running requests have ended. Errors: `BadRequest` where that is not for this
        server to say."""
        ...

    def adopt(self, entries: Iterable[Entry]) -> None:
        """These are the models from now on."""
        ...

    async def prompts(self, entry: Entry) -> Prompts:
        """Without the model's weights. Errors: `Unavailable`."""
        ...

    async def lease(self, entry: Entry, sequences: int = 1, asker: Asker = ANYONE) -> Lease:
        """The right to use its engine, perhaps after a wait. Errors: `Unavailable`."""
        ...

    def is_ready(self, entry: Entry) -> bool: ...

    async def close(self, drain_s: float) -> None:
        """Ends all requests, and every wait with an error."""
        ...

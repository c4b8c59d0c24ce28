"""Chooses a replica for a request in Ray Serve: one whose prefix cache is warm for its prompt.

Each front end has a router of its own for each model, and remembers its own requests alone: what it
does not know costs one cold prefix.
"""

import math
import random
from contextvars import ContextVar

from ray.serve._private.common import RequestMetadata
from ray.serve._private.replica_result import ReplicaResult
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, ReplicaID, RunningReplica

from tenuto.engine.prefixes import Prefixes

# A warm replica may have MAX_IMBALANCE times as many requests as the one that would be chosen
# without it, and SLACK more. A slack alone that lets conversations stay where replicas have
# hundreds of requests gathers everything on one where they have a few.
SLACK, MAX_IMBALANCE = 2, 1.5


class PrefixRouter(PowerOfTwoChoicesRequestRouter):
    """The first positional argument of a call is `prefix_hashes` of its prompt.

    A call without it is routed by the power of two choices.
    """

    def initialize_state(self, slack: int = SLACK) -> None:
        """Serve passes its `request_router_kwargs`."""
        self._slack = slack
        self._prefixes = Prefixes[ReplicaID]()
        # Of a task that routes: the request for which it has just chosen a warm replica.
        self._chosen_for: ContextVar[PendingRequest | None] = ContextVar("chosen_for", default=None)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """In ranks: Serve takes the least busy of the first in which one has room."""
        ranks = await super().choose_replicas(candidate_replicas, pending_request)
        others = [replica for rank in ranks for replica in rank]
        warm = await self._warm(_hashes_of(pending_request), others)
        self._chosen_for.set(pending_request if warm else None)
        return [[warm], *ranks] if warm else ranks

    async def _warm(
        self, hashes: tuple[int, ...], others: list[RunningReplica]
    ) -> RunningReplica | None:
        held = self._prefixes.find(hashes, self._replicas)
        if not held:
            return None
        two = [self._replicas[replica_id] for replica_id in random.sample(held, min(2, len(held)))]
        ongoing, warm = min(await self._ongoing(two), key=lambda pair: pair[0])
        if ongoing >= warm.max_ongoing_requests:
            return None
        if ongoing > self._slack:
            least = min(count for count, _ in await self._ongoing(others))
            if ongoing > self._slack + MAX_IMBALANCE * least:
                return None
        return warm

    async def _ongoing(self, replicas: list[RunningReplica]) -> list[tuple[float, RunningReplica]]:
        """How many requests each has, as far as is known here; those not heard of lately are asked.
        Without an answer it is infinity."""
        known = {one: self.replica_queue_len_cache.get(one.replica_id) for one in replicas}
        unknown = [one for one, count in known.items() if count is None]
        known.update(await self._probe_queue_lens(unknown, 0))
        return [(math.inf if count is None else count, one) for one, count in known.items()]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult
    ) -> None:
        self._prefixes.saw(_hashes_of(pending_request), replica_id)

    def _get_pending_request_matching_metadata(
        self, request_metadata: RequestMetadata | None = None
    ) -> PendingRequest | None:
        """Serve would give a replica to the request that has waited longest, whomever it was chosen
        for. A warm one is of use to its own request alone."""
        own = self._chosen_for.get()
        if own is not None and not own.future.done():
            return own
        return super()._get_pending_request_matching_metadata(request_metadata)


def _hashes_of(request: PendingRequest | None) -> tuple[int, ...]:
    first = request.args[0] if request is not None and request.args else None
    return first if isinstance(first, tuple) else ()

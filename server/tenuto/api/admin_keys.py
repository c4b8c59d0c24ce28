"""What the owner does with the stored keys; with an admin key alone."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tenuto.access.key_store import StoredKey
from tenuto.access.new_key import NewKey
from tenuto.access.watching import KeyWatcher
from tenuto.api.body import json_response, wire_request
from tenuto.api.exchange import exchange_of
from tenuto.api.services import Services
from tenuto.errors import Unavailable
from tenuto.wire.responses import AdminKey, AdminKeyList

logger = logging.getLogger(__name__)
CREATED = 201
T = TypeVar("T")


class KeyRoutes:
    """Every change is in force in this process when it is answered, within 1 s in the others; a
    new secret is answered even where the keys cannot be read again yet."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def keys(self, request: Request) -> Response:
        stored = await asyncio.to_thread(self._watcher.store.rows)
        return json_response(AdminKeyList([admin_key(row) for row in stored]))

    async def key(self, request: Request) -> Response:
        name = request.path_params["name"]
        return json_response(admin_key(await asyncio.to_thread(self._watcher.store.find, name)))

    async def create(self, request: Request) -> Response:
        watcher = self._watcher
        wanted = await wire_request(request, NewKey, "/admin/keys", self._services)
        stored, secret = await self._changed(lambda: watcher.store.create(wanted))
        _log(request, stored, "created")
        return json_response(admin_key(stored, secret), status=CREATED)

    async def rotate(self, request: Request) -> Response:
        """The old secret stops at once."""
        watcher, name = self._watcher, request.path_params["name"]
        stored, secret = await self._changed(lambda: watcher.store.rotate(name))
        _log(request, stored, "rotated")
        return json_response(admin_key(stored, secret))

    async def revoke(self, request: Request) -> Response:
        watcher, name = self._watcher, request.path_params["name"]
        stored = await asyncio.to_thread(watcher.store.revoke, name)
        await watcher.refresh()
        _log(request, stored, "revoked")
        return json_response(admin_key(stored))

    @property
    def _watcher(self) -> KeyWatcher:
        if self._services.key_watcher is None:
            raise Unavailable("This server stores no keys.")
        return self._services.key_watcher

    async def _changed(self, change: Callable[[], T]) -> T:
        """What the change has made, which is lost unless it is answered."""
        result = await asyncio.to_thread(change)
        try:
            await self._watcher.refresh()
        except Exception as error:
            # The watcher goes on trying, and says when it cannot.
            logger.error("a key has changed, and is not in force yet: %s", type(error).__name__)
        return result


def admin_key(stored: StoredKey, secret: str | msgspec.UnsetType = msgspec.UNSET) -> AdminKey:
    key, limits = stored.key, stored.key.limits
    return AdminKey(
        id=key.id,
        prefix=stored.prefix,
        state=stored.state,
        role=key.role,
        note=stored.note,
        created_at=_moment(stored.created_at),
        expires_at=None if key.expires_at is None else _moment(key.expires_at),
        revoked_at=None if stored.revoked_at is None else _moment(stored.revoked_at),
        models=key.models,
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        parallel_requests=limits.parallel_requests,
        tokens_per_month=limits.tokens_per_month,
        first_priority=key.first_priority,
        last_priority=key.last_priority,
        secret=secret,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _log(request: Request, stored: StoredKey, action: str) -> None:
    key = exchange_of(request).key
    logger.info("key %s %s by %s", stored.key.id, action, key.id if key else "nobody")

"""Embeddings: parse, judge, render, lease, embed, answer."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from tenuto.access.keys import priority_of
from tenuto.api.body import ignored_header, json_response, wire_request
from tenuto.api.exchange import Exchange, exchange_of
from tenuto.api.retry import again_once
from tenuto.api.services import Services
from tenuto.api.stream import until_disconnect
from tenuto.engine.types import Prompt
from tenuto.generation.embedding import (
    embedded,
    embedding_answer,
    judge_dimensions,
    render_inputs,
)
from tenuto.generation.usage import Tally
from tenuto.models.registry import Entry
from tenuto.wire.judge import judge_embedding
from tenuto.wire.requests import EmbeddingRequest

ROUTE = "/embeddings"


class EmbeddingRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def embeddings(self, request: Request) -> Response:
        exchange = exchange_of(request)
        await self._services.admit(exchange)
        wire = await wire_request(request, EmbeddingRequest, ROUTE, self._services)
        entry = self._services.target(wire.model, ROUTE, "embed", key=exchange.key).entry
        exchange.model = entry.id
        batch = judge_embedding(wire, self._services.bounds)
        work = self._respond(wire, batch, entry, exchange)
        return await until_disconnect(request.receive, work)

    async def _respond(
        self,
        wire: EmbeddingRequest,
        batch: list[str | list[int]],
        entry: Entry,
        exchange: Exchange,
    ) -> Response:
        prompts = await self._services.pool.prompts(entry)
        judge_dimensions(wire.dimensions, prompts.facts)
        rendered = await render_inputs(batch, prompts)
        exchange.charge(rendered)
        vectors = await again_once(
            lambda: self._embedded(entry, rendered, wire.dimensions, exchange)
        )
        answer = embedding_answer(wire, vectors, Tally.of(rendered))
        return json_response(answer, ignored_header(wire))

    async def _embedded(
        self,
        entry: Entry,
        rendered: Sequence[Prompt],
        dimensions: int | None,
        exchange: Exchange,
    ) -> list[list[float]]:
        priority = priority_of(exchange.key, None)
        lease = await self._services.lease(exchange, entry, len(rendered), priority)
        try:
            with lease.watched() as engine:
                return await embedded(engine, rendered, dimensions)
        finally:
            lease.release()

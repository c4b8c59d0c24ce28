"""Chat and text completions: parse, judge, lease, render, generate, answer."""

import time
import uuid
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from tenuto.api.body import ignored_header, json_response, wire_request
from tenuto.api.exchange import Exchange, exchange_of
from tenuto.api.services import Services, policy_of
from tenuto.api.stream import EventStream, Replay, Steps, until_disconnect
from tenuto.engine.types import Prompt
from tenuto.generation.answer import Head, returned
from tenuto.generation.endpoint import CHAT, COMPLETION, Endpoint
from tenuto.generation.fold import fold
from tenuto.generation.frames import step_of
from tenuto.generation.run import Generation, start
from tenuto.generation.translate import Plan
from tenuto.models.pool import Lease
from tenuto.models.registry import Target
from tenuto.wire.parse import with_defaults
from tenuto.wire.requests import GenerationRequest


class GenerationRoutes:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def chat_completions(self, request: Request) -> Response:
        return await self._serve(request, CHAT)

    async def completions(self, request: Request) -> Response:
        return await self._serve(request, COMPLETION)

    async def _serve(self, request: Request, endpoint: Endpoint) -> Response:
        wire = await wire_request(request, endpoint.kind, endpoint.route, self._services)
        target = self._services.target(wire.model, endpoint.route, "generate")
        exchange = exchange_of(request)
        exchange.model = target.id
        wire = with_defaults(wire, target.entry.request_defaults)
        endpoint.judge(wire, self._services.bounds)
        endpoint.admit(wire, policy_of(target.entry))
        work = self._respond(wire, target, endpoint, exchange)
        return await until_disconnect(request.receive, work)

    async def _respond(
        self, wire: GenerationRequest, target: Target, endpoint: Endpoint, exchange: Exchange
    ) -> Response:
        lease = self._services.pool.lease(target.entry)
        try:
            generation, plan = await self._start(wire, target, endpoint, lease)
        except BaseException:
            lease.release()
            raise
        head = Head(f"{endpoint.id_prefix}{uuid.uuid4().hex}", int(time.time()), wire.model)
        headers = ignored_header(wire)
        if plan.sampling.stream:
            return self._stream(
                generation, generation.prompts, head, plan, endpoint, exchange, headers
            )
        async with generation:
            folded = await fold(generation)
        prompts = generation.prompts
        if plan.stream:
            steps = Replay(step_of(returned(folded, prompts, plan), folded, plan))
            return self._stream(steps, prompts, head, plan, endpoint, exchange, headers)
        answer, exchange.tally = endpoint.answer(head, folded, prompts, plan)
        return json_response(answer, headers)

    async def _start(
        self, wire: GenerationRequest, target: Target, endpoint: Endpoint, lease: Lease
    ) -> tuple[Generation, Plan]:
        entry = target.entry
        prompts = await self._services.pool.prompts(entry)
        plan = endpoint.plan(wire, prompts.facts, self._services.bounds)
        plan = plan.stopping_at(entry.stop_token_ids)
        if target.lora is not None:
            plan = plan.adapted_by(target.lora.id)
        rendered = await endpoint.render(wire, prompts, policy_of(entry))
        generation = await start(
            lease.engine,
            rendered,
            plan,
            prompts.facts,
            endpoint.prompt_param,
            on_close=lease.release,
        )
        return generation, plan

    def _stream(
        self,
        steps: Steps,
        prompts: Sequence[Prompt],
        head: Head,
        plan: Plan,
        endpoint: Endpoint,
        exchange: Exchange,
        headers: dict[str, str],
    ) -> EventStream:
        frames = endpoint.frames(head, prompts, plan)
        exchange.tally = frames.tally
        return EventStream(steps, frames, self._services.keep_alive_s, headers)

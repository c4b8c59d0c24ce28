"""Chat and text completions: parse, judge, render, lease, generate, answer."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from tenuto.access.keys import priority_of
from tenuto.api.body import ignored_header, json_response, wire_request
from tenuto.api.exchange import Exchange, exchange_of
from tenuto.api.retry import again_once
from tenuto.api.services import Services, policy_of
from tenuto.api.stream import EventStream, Replay, deferred, until_disconnect
from tenuto.engine.types import ModelFacts, Prompt, Steps
from tenuto.generation.answer import Head, returned
from tenuto.generation.endpoint import CHAT, COMPLETION, Endpoint
from tenuto.generation.fold import Folded, fold
from tenuto.generation.frames import step_of
from tenuto.generation.run import Generation, start
from tenuto.generation.translate import Plan
from tenuto.models.registry import Entry, Target
from tenuto.models.slot import Lease
from tenuto.observe.metrics import Gaps
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
        exchange = exchange_of(request)
        await self._services.admit(exchange)
        wire = await wire_request(request, endpoint.kind, endpoint.route, self._services)
        target = self._services.target(wire.model, endpoint.route, "generate", key=exchange.key)
        exchange.model = target.id
        wire = with_defaults(wire, target.entry.request_defaults)
        endpoint.judge(wire, self._services.bounds)
        endpoint.admit(wire, policy_of(target.entry))
        work = self._respond(wire, target, endpoint, exchange)
        return await until_disconnect(request.receive, work)

    async def _respond(
        self, wire: GenerationRequest, target: Target, endpoint: Endpoint, exchange: Exchange
    ) -> Response:
        job = await self._job(wire, target, endpoint, exchange)
        exchange.charge(job.prompts)
        head = Head(f"{endpoint.id_prefix}{os.urandom(16).hex()}", int(time.time()), wire.model)
        headers = ignored_header(wire)
        if job.plan.stream:
            return await self._stream(job, head, exchange, headers)
        folded = await again_once(lambda: self._fold(job, exchange))
        answer, exchange.tally = endpoint.answer(head, folded, job.prompts, job.plan)
        return json_response(answer, headers)

    async def _job(
        self, wire: GenerationRequest, target: Target, endpoint: Endpoint, exchange: Exchange
    ) -> "_Job":
        """All that can be refused is, before a model is loaded for it."""
        entry, priority = target.entry, priority_of(exchange.key, wire.priority)
        prompts = await self._services.pool.prompts(entry)
        plan = endpoint.plan(wire, prompts.facts, self._services.bounds)
        plan = plan.stopping_at(entry.stop_token_ids)
        salt = self._services.salt(exchange.key, wire.cache_salt)
        plan = plan.asked_by(priority, salt, target.lora.id if target.lora is not None else None)
        rendered = await endpoint.render(wire, prompts, policy_of(entry))
        return _Job(entry, endpoint, plan, rendered, prompts.facts)

    async def _start(self, job: "_Job", exchange: Exchange) -> tuple[Generation, Lease]:
        priority = job.plan.sampling.priority
        lease = await self._services.lease(exchange, job.entry, job.sequences, priority)
        try:
            with lease.watched() as engine:
                generation = await start(
                    engine,
                    job.prompts,
                    job.plan,
                    job.facts,
                    job.endpoint.prompt_param,
                    on_close=lease.release,
                )
        except BaseException:
            lease.release()
            raise
        return generation, lease

    async def _fold(self, job: "_Job", exchange: Exchange) -> Folded:
        generation, lease = await self._start(job, exchange)
        exchange.folded = Folded()
        async with generation:
            with lease.watched():
                return await fold(generation, exchange.folded)

    async def _stream(
        self, job: "_Job", head: Head, exchange: Exchange, headers: dict[str, str]
    ) -> EventStream:
        """Until the first step every failure has its true status, unless the registry has the
        client see comments while its model loads."""
        early = job.entry.wait == "stream" and not self._services.pool.is_ready(job.entry)
        if early:
            exchange.patience_s = math.inf
            steps: Steps = deferred(lambda: self._steps(job, exchange))
        else:
            steps = await self._steps(job, exchange)
        frames = job.endpoint.frames(head, job.prompts, job.plan)
        exchange.tally, exchange.gaps = frames.tally, Gaps()
        keep_alive_s = self._services.keep_alive_s
        return EventStream(steps, frames, keep_alive_s, headers, exchange.gaps, at_once=early)

    async def _steps(self, job: "_Job", exchange: Exchange) -> Steps:
        if job.plan.sampling.stream:
            generation, _ = await again_once(lambda: self._start(job, exchange))
            return generation
        folded = await again_once(lambda: self._fold(job, exchange))
        return Replay(step_of(returned(folded, job.prompts, job.plan), folded, job.plan))


@dataclass(frozen=True)
class _Job:
    """A request as the engine will get it."""

    entry: Entry
    endpoint: Endpoint
    plan: Plan
    prompts: Sequence[Prompt]
    facts: ModelFacts

    @property
    def sequences(self) -> int:
        return len(self.prompts) * self.plan.sampling.n

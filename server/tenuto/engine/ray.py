"""Models on the hosts of a Ray cluster: Ray Serve places their replicas, starts as many as the
requests want, and finds one for each request."""

import asyncio
import hashlib
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields, replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayActorError, RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from tenuto import __version__
from tenuto.engine.base import Backend, Engine
from tenuto.engine.channel import Failure, Inbox, Receiver
from tenuto.engine.forkserver import first_line
from tenuto.engine.prefixes import prefix_hashes
from tenuto.engine.ray_replica import Call, Embed, Replica, packed
from tenuto.engine.types import (
    Canary,
    Deployed,
    Deployment,
    EngineSpec,
    EngineStats,
    Prompt,
    Sampling,
    Scale,
    SleepLevel,
    Step,
    Steps,
)
from tenuto.errors import ApiError, ConfigError, EngineLost, InternalError, Unavailable

logger = logging.getLogger(__name__)
DEPLOYMENT = "engine"
APP_PREFIX = "tenuto."
ROUTER = RequestRouterConfig(request_router_class="tenuto.engine.ray_router:PrefixRouter")
# A replica that goes, for a change of its model or since fewer are wanted, ends its running
# requests first.
DRAIN_S = 3600.0
# What a replica takes beyond its target: vLLM has something to go on with when a request ends.
SURPLUS = 1.5
UPSCALE_DELAY_S = 5.0
DOWNSCALE_DELAY_S = 300.0
# Half of the surplus goes at a time: with all of it, the day of docs/scaling.md swings between too
# many replicas and too few.
DOWNSCALING_FACTOR = 0.5
# So much later, at most, another one starts for a replica that has died; those who had a request on
# it hear of it at once.
HEALTH_EVERY_S = 10.0
# The last step comes by another way than the word that the request has ended.
LATE_S = 5.0
# A host that goes may have had several replicas, and a request may meet them one after the other.
MAX_ATTEMPTS = 10


class RayCluster:
    """A front end's view of the cluster. `make_backend` is called in each replica's process; a
    request waits for a replica for at most `max_wait_s`, and at most `max_waiting` of one model
    do."""

    def __init__(
        self, make_backend: Callable[[], Backend], max_wait_s: float, max_waiting: int
    ) -> None:
        self._make_backend = make_backend
        self._max_wait_s, self._max_waiting = max_wait_s, max_waiting
        self._receiver: Receiver | None = None

    async def deploy(self, models: Sequence[Deployed]) -> dict[str, Engine]:
        if self._receiver is None:
            self._receiver = await Receiver.open(ray.util.get_node_ip_address())
        with _reached():
            handles = await asyncio.to_thread(self._run, models)
            for handle in handles:
                # That of a model which it knows already is the one of before.
                if not handle.is_initialized:
                    # With a thread of their own, calls take twice the processor time.
                    handle._init(_run_router_in_separate_loop=False)
        return {
            model.name: RayEngine(handle, self._receiver, model.spec, self._max_wait_s)
            for model, handle in zip(models, handles, strict=True)
        }

    def _run(self, models: Sequence[Deployed]) -> list[DeploymentHandle[Any]]:
        if not models:
            return []
        gpus_per_host = max(node["Resources"].get("GPU", 0) for node in ray.nodes())
        targets = [self._target(model, int(gpus_per_host)) for model in models]
        return list(
            serve.run_many(
                targets,
                wait_for_applications_running=False,
                wait_for_ingress_deployment_creation=False,
            )
        )

    def _target(self, model: Deployed, gpus_per_host: int) -> serve.RunTarget:
        spec, options = hosted(model.spec, gpus_per_host)
        deployment = serve.deployment(Replica).options(
            name=DEPLOYMENT,
            # Ray Serve would make one up: each front end that starts would replace all replicas.
            version=_version(spec),
            _internal=True,
            autoscaling_config=_autoscaling(model.scale),
            max_ongoing_requests=math.ceil(model.scale.target_ongoing_requests * SURPLUS),
            max_queued_requests=self._max_waiting,
            graceful_shutdown_timeout_s=DRAIN_S,
            graceful_shutdown_wait_loop_s=0.5,
            health_check_period_s=HEALTH_EVERY_S,
            request_router_config=ROUTER,
            **options,
        )
        app = deployment.bind(self._make_backend, spec)
        return serve.RunTarget(app, name=APP_PREFIX + model.name, route_prefix=None)

    async def states(self) -> dict[str, tuple[Deployment, str | None]]:
        with _reached():
            apps = (await asyncio.to_thread(serve.status)).applications
        return {
            name.removeprefix(APP_PREFIX): _state(app)
            for name, app in apps.items()
            if name.startswith(APP_PREFIX)
        }

    async def retire(self, names: Sequence[str]) -> None:
        with _reached():
            for name in names:
                await asyncio.to_thread(serve.delete, APP_PREFIX + name, _blocking=False)

    async def close(self) -> None:
        if self._receiver is not None:
            self._receiver.close()


class RayEngine:
    """`tenuto.engine.base.Engine`: all replicas of one model."""

    capacity = sys.maxsize
    can_sleep = False
    start_phases: Mapping[str, float] = {}

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        receiver: Receiver,
        spec: EngineSpec,
        max_wait_s: float,
    ) -> None:
        # Through Ray's object store a call takes twice the processor time.
        handle = handle.options(
            _by_reference=False, request_serialization="pickle", response_serialization="pickle"
        )
        self.generates = handle.options(method_name="generate")
        self.receiver, self.model_id, self.max_wait_s = receiver, spec.model_id, max_wait_s
        self._embeds = handle.options(method_name="embed")
        self._wakes = handle.options(method_name="wake")

    def generate(self, prompt: Prompt, sampling: Sampling, request_id: str) -> Steps:
        return RemoteSteps(self, prompt, sampling, request_id)

    async def embed(self, prompt: Prompt, dimensions: int | None, request_id: str) -> list[float]:
        to = self.receiver.address
        request = packed(Embed(to, request_id, prompt.token_ids, dimensions))
        response = self._embeds.remote(prefix_hashes(prompt.token_ids, ""), request)
        try:
            async with self.patience():
                answer = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            response.cancel()
            raise error_of(error, request_id) from None
        if isinstance(answer, Failure):
            raise answer.error()
        return list(answer)

    @asynccontextmanager
    async def patience(self) -> AsyncIterator[None]:
        """Errors: `Unavailable` when no replica had time for it."""
        try:
            async with asyncio.timeout(self.max_wait_s):
                yield
        except TimeoutError:
            message = f"{self.model_id} was not ready within {self.max_wait_s:g} s. Please retry."
            raise Unavailable(message) from None

    async def wait_lost(self) -> None:
        """Never returns: what is lost is replaced."""
        await asyncio.get_running_loop().create_future()

    async def sleep(self, level: SleepLevel) -> None:
        raise RuntimeError("replicas do not sleep: they end when their model is not used")

    async def wake(self) -> None:
        """Has a first replica started, if there is none."""
        async with self.patience():
            await self._wakes.remote(())

    async def check(self) -> Canary:
        raise RuntimeError("replicas start from the checkpoint each time")

    def stats(self) -> EngineStats:
        """Of the replicas that this front end has used, whoever else uses them."""
        return _summed(self.receiver.stats(self.model_id))

    async def close(self, drain_s: float) -> None:
        """The replicas serve other front ends, too."""


class RemoteSteps:
    """Of one request. The call to its replica lasts as long as the request does there; the steps
    come by the channel. A replica that is lost before its first step costs nothing but time."""

    def __init__(
        self, engine: RayEngine, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> None:
        self._engine = engine
        self._prompt, self._sampling, self._request_id = prompt, sampling, request_id
        self._inbox = Inbox()
        self._stream = engine.receiver.add(self._inbox)
        self._response: DeploymentResponse[Any] | None = None
        self._calling: asyncio.Task[None] | None = None

    def __aiter__(self) -> "RemoteSteps":
        return self

    def __anext__(self) -> Awaitable[Step]:
        return self._inbox.take() if self._calling is not None else self._first()

    async def aclose(self) -> None:
        self._engine.receiver.forget(self._stream, self._inbox)
        if self._inbox.has_ended:
            return
        self._inbox.end()
        if self._response is not None:
            self._response.cancel()
        if self._calling is not None:
            self._calling.cancel()

    async def _first(self) -> Step:
        self._calling = asyncio.create_task(self._call())
        async with self._engine.patience():
            await self._inbox.accepted.wait()
        return await self._inbox.take()

    async def _call(self) -> None:
        salt = f"{self._sampling.lora}:{self._sampling.cache_salt}"
        prefix = prefix_hashes(self._prompt.token_ids, salt)
        for _ in range(MAX_ATTEMPTS):
            failure = await self._attempt(prefix)
            is_over = self._inbox.has_begun or self._inbox.has_ended
            if is_over or not isinstance(failure, EngineLost):
                break
            self._again()
        if failure is not None:
            self._inbox.end(failure)
        elif not self._inbox.has_ended:
            asyncio.get_running_loop().call_later(LATE_S, self._inbox.end, EngineLost())

    async def _attempt(self, prefix: Sequence[int]) -> ApiError | None:
        """Why a replica did not answer; None when it did."""
        try:
            self._response = self._engine.generates.remote(prefix, packed(self._request()))
            await self._response
        except asyncio.CancelledError:
            raise
        except Exception as error:
            return error_of(error, self._request_id)
        return None

    def _again(self) -> None:
        """Under another number: nothing of the first attempt may come in between."""
        self._engine.receiver.forget(self._stream, self._inbox)
        self._stream = self._engine.receiver.add(self._inbox)

    def _request(self) -> Call:
        return Call(
            to=self._engine.receiver.address,
            stream=self._stream,
            request_id=self._request_id,
            token_ids=self._prompt.token_ids,
            sampling=self._sampling,
            reasoning_ended=self._prompt.reasoning_ended,
            template_kwargs=self._prompt.template_kwargs,
        )


def connect(address: str, node_ip: str | None) -> None:
    """Joins the cluster, or makes one of this host alone for `local`, which ends with this
    process. `node_ip` is what the cluster calls this host. Errors: `ConfigError`."""
    # No reports to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    is_local = address == "local"
    asked: dict[str, Any] = {"include_dashboard": False} if is_local else {}
    if is_local or node_ip is not None:
        asked["_node_ip_address"] = node_ip or "127.0.0.1"
    try:
        ray.init(address, log_to_driver=False, configure_logging=False, **asked)
        _start_serve()
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot join the Ray cluster {address}: {first_line(error)}") from None


def _start_serve() -> None:
    """Of several front ends that start at once, one makes Ray Serve's controller."""
    try:
        serve.start(proxy_location="Disabled")
    except ActorAlreadyExistsError:
        serve.start(proxy_location="Disabled")


def hosted(spec: EngineSpec, gpus_per_host: int) -> tuple[EngineSpec, dict[str, Any]]:
    """The spec for a replica and what Ray reserves for it: all its GPUs on one host when these
    suffice, else bundles that vLLM's Ray executor fills. Without any GPU a processor."""
    num_gpus = spec.tensor_parallel_size * spec.pipeline_parallel_size
    actor: dict[str, Any] = {"num_cpus": 1}
    if gpus_per_host == 0:
        return spec, {"ray_actor_options": actor}
    if num_gpus <= gpus_per_host:
        return spec, {"ray_actor_options": actor | {"num_gpus": num_gpus}}
    arguments = {"distributed_executor_backend": "ray", **spec.engine_args}
    bundles = [{"CPU": 1, "GPU": 1}] * num_gpus
    return replace(spec, engine_args=arguments), {
        "ray_actor_options": actor,
        "placement_group_bundles": bundles,
        "placement_group_strategy": "PACK",
    }


def _version(spec: EngineSpec) -> str:
    """Differs when a running replica is not what the spec asks for. Prompts are rendered, and
    answers parsed, in the front ends."""
    arguments = dict(sorted(spec.engine_args.items()))
    asked = replace(spec, chat_template=None, tool_parser=None, engine_args=arguments)
    return hashlib.sha256(f"{__version__} {asked}".encode()).hexdigest()[:16]


def _autoscaling(scale: Scale) -> dict[str, Any]:
    return {
        "min_replicas": scale.min_replicas,
        "max_replicas": scale.max_replicas,
        "target_ongoing_requests": scale.target_ongoing_requests,
        "upscale_delay_s": UPSCALE_DELAY_S,
        "downscale_delay_s": DOWNSCALE_DELAY_S,
        "downscaling_factor": DOWNSCALING_FACTOR,
        "downscale_to_zero_delay_s": scale.idle_s,
    }


def _state(app: ApplicationStatusOverview) -> tuple[Deployment, str | None]:
    if app.status == ApplicationStatus.DEPLOY_FAILED:
        # The message may quote a path of some host; the log of the replica has it.
        return "failed", "it did not load"
    replicas: Counter[str] = Counter()
    for deployment in app.deployments.values():
        replicas.update({str(state): number for state, number in deployment.replica_states.items()})
    if replicas["RUNNING"] or replicas["PENDING_MIGRATION"]:
        return "ready", None
    begun = replicas["STARTING"] + replicas["UPDATING"] + replicas["RECOVERING"]
    return ("loading" if begun else "cold"), None


def _summed(stats: Sequence[EngineStats]) -> EngineStats:
    sums = {f.name: sum(getattr(one, f.name) for one in stats) for f in fields(EngineStats)}
    sums["kv_cache_usage"] /= max(1, len(stats))
    return EngineStats(**sums)


def error_of(error: Exception, request_id: str) -> ApiError:
    """What Ray raises, by type, as ours."""
    match error:
        case ApiError():
            return error
        case BackPressureError() | DeploymentUnavailableError():
            return Unavailable("The model's replicas have too many requests. Please retry.")
        case RayActorError() | RequestCancelledError():
            return EngineLost()
    # Without its text, which may quote the request.
    logger.error("request %s: %s", request_id, type(error).__name__)
    return InternalError()


@contextmanager
def _reached() -> Iterator[None]:
    """Errors: `Unavailable` while the cluster's head cannot be asked."""
    try:
        yield
    except (RayError, RayServeException, OSError, RuntimeError) as error:
        raise Unavailable(f"the Ray cluster does not answer: {first_line(error)}") from None

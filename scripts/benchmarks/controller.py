"""Ray Serve's controller, one process for a whole cluster: what of a processor it takes for what.

To look after 20 models, and each replica; a check of a replica's health; a push of a front end's
figures about one model; a front end's look at the states of all. The replicas do nothing.

python -m scripts.benchmarks.controller [--seconds S]
"""

import time
from collections.abc import Callable
from typing import Any

from scripts.benchmarks.asking import as_command
from scripts.benchmarks.hosts import local_serve
from tenuto.bench.processes import cpu_s

NUM_MODELS, FEW, MANY = 20, 20, 100
OFTEN_S, SELDOM_S = 1.0, 10.0
TIMES, APART_S = 200, 0.01
SETTLED_S = 5.0


class Idle:
    """A replica, and nothing else."""

    async def generate(self) -> None: ...


def measured(seconds: float) -> dict[str, float]:
    with local_serve(num_cpus=2 * MANY):
        controller = _Controller(seconds)
        controller.deploy(FEW, SELDOM_S)
        few, look_at_few = controller.share(), controller.ms_of(controller.look)
        controller.deploy(MANY, OFTEN_S)
        often = controller.share()
        controller.deploy(MANY, SELDOM_S)
        many, look_at_many = controller.share(), controller.ms_of(controller.look)
        push = controller.ms_of(controller.push)
    check_s = (often - many) / (MANY / OFTEN_S - MANY / SELDOM_S)
    of_replica = (many - few) / (MANY - FEW) - check_s / SELDOM_S
    return {
        "share_of_models": few - FEW * (of_replica + check_s / SELDOM_S),
        "share_of_a_replica": of_replica,
        "ms_of_a_check": check_s * 1e3,
        "ms_of_a_push": push,
        f"ms_of_a_look_at_{FEW}_replicas": look_at_few,
        f"ms_of_a_look_at_{MANY}_replicas": look_at_many,
    }


class _Controller:
    def __init__(self, seconds: float) -> None:
        import ray
        from ray import serve
        from ray.serve.context import _get_global_client

        client: Any = _get_global_client()
        self._pid, self._seconds = ray.get(client._controller.get_pid.remote()), seconds
        self._handle: Any = None
        self.look: Callable[[], object] = serve.status

    def deploy(self, replicas: int, health_s: float) -> None:
        """Returns once all run, and nothing of their start is left."""
        from ray import serve

        count = replicas // NUM_MODELS
        deployment = serve.deployment(Idle).options(
            name="engine",
            version="1",
            _internal=True,
            health_check_period_s=health_s,
            autoscaling_config={
                "min_replicas": count,
                "max_replicas": count,
                "initial_replicas": count,
            },
        )
        targets = [
            serve.RunTarget(deployment.bind(), name=f"model{number}", route_prefix=None)
            for number in range(NUM_MODELS)
        ]
        self._handle = serve.run_many(targets)[0]
        for _ in range(TIMES):
            self._handle.generate.remote().result()
        time.sleep(SETTLED_S)

    def push(self) -> None:
        """As each front end does for each model."""
        self._handle._router._asyncio_router._metrics_manager.push_autoscaling_metrics_to_controller()

    def share(self) -> float:
        """Of one processor, while nobody asks anything."""
        began, before_s = time.monotonic(), cpu_s(self._pid)
        time.sleep(self._seconds)
        return (cpu_s(self._pid) - before_s) / (time.monotonic() - began)

    def ms_of(self, asked: Callable[[], object]) -> float:
        idle, began, before_s = self.share(), time.monotonic(), cpu_s(self._pid)
        for _ in range(TIMES):
            asked()
            time.sleep(APART_S)
        lasted_s = time.monotonic() - began
        return (cpu_s(self._pid) - before_s - idle * lasted_s) / TIMES * 1e3


if __name__ == "__main__":
    as_command(measured, __doc__)

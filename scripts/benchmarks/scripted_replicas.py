"""`tenuto serve`, with engines that give a token each INTERVAL_S in place of vLLM's.

`python -m scripts.benchmarks.scripted_replicas serve --cluster ...`; SCRIPTED_INTERVAL_S in the
environment is that of this front end's replicas. Each token's text is their process's id.
"""

import os
from functools import partial
from typing import Any

import tenuto.wiring
from scripts.benchmarks import scripted_replicas as here
from scripts.benchmarks.scripted_server import PacedBackend
from tenuto.cli import main

INTERVAL = "SCRIPTED_INTERVAL_S"


def replica_backend(interval_s: float, *given: Any) -> PacedBackend:
    return PacedBackend(interval_s=interval_s, word=f" {os.getpid()}")


if __name__ == "__main__":
    # By its importable name, which a replica's process knows as well.
    interval_s = float(os.environ.get(INTERVAL, "0.02"))
    backend: Any = partial(here.replica_backend, interval_s)
    tenuto.wiring.replica_backend = backend
    # For prompts; without a cluster, for engines as well.
    vars(tenuto.wiring)["LazyVllm"] = backend
    main()

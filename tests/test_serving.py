"""The listener, and the end of the serving process. The live tests end a real one by signals."""

import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tenuto.errors import ConfigError, EngineStartError
from tenuto.serving import Tls, address, listen, tls_of
from tests.conftest import MODEL, Running, Serve
from tests.engines import StepwiseBackend


@pytest.mark.parametrize(
    ("host", "pattern"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")]
)
def test_listen_on_a_free_port(host: str, pattern: str) -> None:
    with listen(host, 0) as listener:
        assert address(listener).startswith(pattern)
        assert not listener.get_inheritable()


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}"):
            listen("127.0.0.1", port)


def test_a_host_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="cannot listen on"):
        listen("host.invalid", 0)


def test_an_idle_server_ends_at_once(own: Running) -> None:
    engine = own.engine()
    own.call(lambda: own.process.handle_exit(signal.SIGTERM, None))
    own.wait_ended()
    assert own.process.should_exit
    assert not own.process.failed
    assert engine.running == 0


def test_a_second_signal_ends_what_still_runs(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenuto.serving.SAME_SIGNAL_S", -1)
    server = serve(backend=StepwiseBackend(), drain_s=600)
    server.engine()
    body = {"model": "demo", "prompt": "Hi", "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_text())
        for _ in range(2):
            server.call(lambda: server.process.handle_exit(signal.SIGINT, None))
        assert server.process.force_exit


def test_a_signal_in_the_same_breath_undoes_nothing(own: Running) -> None:
    def signalled() -> bool:
        own.process.handle_exit(signal.SIGTERM, None)
        own.process.should_exit = True
        own.process.handle_exit(signal.SIGTERM, None)
        return own.process.should_exit and not own.process.force_exit

    assert own.call(signalled)
    own.wait_ended()


def test_a_failure_is_logged_and_ends_the_server(
    own: Running, caplog: pytest.LogCaptureFixture
) -> None:
    own.call(lambda: own.process.fail(EngineStartError("model demo: no memory")))
    own.wait_ended()
    assert own.process.failed
    assert "model demo: no memory" in caplog.text


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    made = Tls(folder / "cert.pem", folder / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=tenuto", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(made.certificate), "-keyout", str(made.key)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    return made


def test_tls(serve: Serve, tls: Tls) -> None:
    server = serve(tls=tls)
    assert server.url.startswith("https://")
    assert server.chat("over TLS", max_tokens=3).json()["usage"]["completion_tokens"] == 3
    with server.client.stream(
        "POST",
        "/v1/completions",
        json={"model": MODEL, "prompt": "over TLS", "stream": True},
    ) as response:
        assert [line for line in response.iter_lines() if line][-1] == "data: [DONE]"


def test_tls_wants_a_pair(tls: Tls, tmp_path: Path) -> None:
    assert tls_of(None, None) is None
    assert tls_of(tls.certificate, tls.key) == tls
    for files, said in (
        ((tls.certificate, None), "both"),
        ((None, tls.key), "both"),
        ((tls.certificate, tmp_path / "none.pem"), "none.pem"),
        ((tls.certificate, tls.certificate), "cert.pem"),
    ):
        with pytest.raises(ConfigError, match=said):
            tls_of(*files)

"""`tenuto bench` against the scripted server: what it counts, measures, prints and returns."""

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tenuto.access.keys import Keys
from tenuto.bench.client import Address, Answer
from tenuto.bench.load import Load, ask_all
from tenuto.bench.session import Target, run
from tenuto.cli import app
from tests.conftest import MODEL, Running
from tests.engines import FaultyBackend

HELD_S = 0.15
CLOSED_PORT = "http://127.0.0.1:9"


def bench(*arguments: object, rounds: int = 1) -> Result:
    given = ["bench", "--model", MODEL, "--rounds", rounds, "--warmup", 0, *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in given])


def found_by(ended: Result) -> dict[str, Any]:
    found = json.loads(ended.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def only_round(ended: Result, name: str = "A") -> dict[str, Any]:
    (figures,) = found_by(ended)["targets"][name]["rounds"]
    assert isinstance(figures, dict)
    return figures


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("mode", ["--stream", "--no-stream"])
def test_counts_are_what_was_asked_for(server: Running, endpoint: str, mode: str) -> None:
    ended = bench(
        *("--target", f"A={server.url}/v1", "--endpoint", endpoint, mode, "--streams", 4),
        *("--requests", 10, "--max-tokens", 7, "--prompt-words", 5),
    )
    assert ended.exit_code == 0, ended.output
    figures = only_round(ended)
    counts = ("requests", "failed", "completion_tokens", "goodput_share", "errors")
    assert [figures[name] for name in counts] == [10, 0, 70, 1, {}]
    assert figures["prompt_tokens"] > 10 * 5
    is_streamed = mode == "--stream"
    assert (figures["ttft_ms_p50"] is not None) is is_streamed
    assert (figures["itl_ms_p50"] is not None) is is_streamed
    assert figures["latency_ms_p99"] >= figures["latency_ms_p50"] > 0


def test_the_time_to_the_first_token_of_a_held_engine(own: Running) -> None:
    engine = own.engine()
    own.call(engine.go.clear)

    def release() -> None:
        own.wait(engine.started)
        threading.Event().wait(HELD_S)
        own.call(engine.go.set)

    releasing = threading.Thread(target=release)
    releasing.start()
    limits = ("--goodput-ttft-ms", HELD_S * 500)
    ended = bench("--target", f"A={own.url}", "--requests", 1, "--max-tokens", 5, *limits)
    releasing.join()
    figures = only_round(ended)
    assert (
        HELD_S * 1000 <= figures["ttft_ms_p50"] <= figures["latency_ms_p50"] < HELD_S * 1000 + 500
    )
    assert figures["itl_ms_p99"] < HELD_S * 1000
    assert figures["goodput_share"] == 0


async def test_what_an_arrival_waits_for_a_stream_counts(own: Running) -> None:
    """Of one stream that is held, all arrivals are due in the meantime."""
    engine = own.engine()
    own.call(engine.go.clear)
    load = Load(model=MODEL, streams=1, requests=3, rate=1000, max_tokens=2)
    address, answers = Address(own.url, load.route, None), list[Answer]()
    asking = asyncio.create_task(ask_all(address, load, 0, answers.append))
    await asyncio.to_thread(own.wait, engine.started)
    await asyncio.sleep(HELD_S)
    own.call(engine.go.set)
    await asking
    waited = [answer.sent - answer.due for answer in answers]
    assert waited[0] < HELD_S / 2
    assert min(waited[1:]) > HELD_S / 2
    assert all(answer.texts[0] - answer.due > HELD_S / 2 for answer in answers)


def test_poisson_arrivals() -> None:
    def dues(seed: int, turn: int, **fields: Any) -> list[float | None]:
        load = Load(model=MODEL, rate=50, seed=seed, **fields)
        return [due for _, due in load.arrivals(turn)]

    first = dues(1, 0, duration=100.0)
    assert first == dues(1, 0, duration=100.0)
    assert first[:20] == dues(1, 0, requests=20)
    assert first[:20] != dues(2, 0, requests=20)
    assert first[:20] != dues(1, 1, requests=20)
    # Five standard deviations of a Poisson count of 5,000.
    assert abs(len(first) - 5000) < 5 * 5000**0.5
    assert len(list(takewhile(lambda due: (due or 0) < 50, first))) == pytest.approx(2500, rel=0.15)


def test_prompts_differ_by_request_alone() -> None:
    load = Load(model=MODEL, body={"top_k": 40, "max_tokens": 3})
    assert load.content(0, 1) == load.content(0, 1)
    assert len({load.content(turn, number) for turn in range(5) for number in range(20)}) == 100
    body = json.loads(load.content(0, 0))
    assert (body["top_k"], body["max_tokens"], body["stream"]) == (40, 3, True)
    assert len(body["messages"][0]["content"].split()) == load.prompt_words


def test_errors_are_counted_by_kind(server: Running, serve: Any) -> None:
    faulty = serve(backend=FaultyBackend())
    targets = {"refused": server.url, "gone": CLOSED_PORT, "broken": faulty.url}
    body = {"refused": '{"temperature": -1}'}
    kinds = {"refused": "400", "gone": "connection", "broken": "stream"}
    for name, url in targets.items():
        asked = ("--target", f"A={url}", "--requests", 4, "--body", body.get(name, "{}"))
        ended = bench(*asked)
        figures = only_round(ended)
        assert ended.exit_code == 1
        assert figures["errors"] == {kinds[name]: 4}
        assert (figures["requests"], figures["failed"]) == (4, 4)
        assert (figures["goodput_share"], figures["ttft_ms_p50"]) == (0, None)
        assert f"'{kinds[name]}': 4" in ended.stderr


@pytest.mark.parametrize("arrivals", [(), ("--rate", 1000)])
def test_a_timeout_counts_from_when_it_was_due(own: Running, arrivals: tuple[Any, ...]) -> None:
    """Of those that wait for the one stream, none is sent too late."""
    own.call(own.engine().go.clear)
    asked = ("--target", f"A={own.url}", "--requests", 3, "--streams", 1, "--timeout", 0.1)
    figures = only_round(bench(*asked, *arrivals))
    assert figures["errors"] == {"timeout": 3}
    assert figures["elapsed_s"] < (0.25 if arrivals else 1)
    own.wait(own.engine().idle)


def test_a_round_ends_after_its_duration(server: Running) -> None:
    ended = bench("--target", f"A={server.url}", "--duration", 0.1, "--streams", 2)
    figures = only_round(ended)
    assert (ended.exit_code, figures["requests"] > 2) == (0, True)
    assert 0.05 < figures["elapsed_s"] < 1


def test_a_server_that_ended_has_no_cost(server: Running) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        address = Address(server.url, "chat/completions", None)
        target = Target("A", address, [process.pid])
        load = Load(model=MODEL, rounds=2, requests=1, warmup=0)

        def on_progress(done: float, doing: str) -> None:
            if done == 2:
                process.communicate()

        asyncio.run(run([target], load, on_progress))
    assert ["cpu_s" in figures for figures in target.rounds] == [True, False]


def test_a_target_that_answers_nothing_ends_the_run() -> None:
    ended = bench("--target", f"A={CLOSED_PORT}", "--requests", 1, "--warmup", 2)
    assert (ended.exit_code, found_by(ended)["ended"]) == (1, "warm-up failed")
    assert found_by(ended)["targets"]["A"]["rounds"] == []
    assert "A answers nothing: connection" in ended.stderr


def test_targets_take_turns(server: Running, tmp_path: Path) -> None:
    plot, written = tmp_path / "plot.svg", tmp_path / "found.json"
    ended = bench(
        *("--target", f"A={server.url}", "--target", f"<B>={server.url}", "--requests", 6),
        *("--pid", f"A={os.getpid()}", "--pid", f"<B>={os.getpid()}", "--warmup", 1),
        *("--plot", plot, "--json", written, "--max-tokens", 8),
        rounds=3,
    )
    assert ended.exit_code == 0, ended.output
    found = found_by(ended)
    assert json.loads(written.read_text()) == found
    keys = ["tenuto_bench", "ended", "load", "targets", "ratios"]
    assert (list(found), found["tenuto_bench"], found["ended"]) == (keys, 1, "complete")
    a, b = (found["targets"][name]["rounds"] for name in ("A", "<B>"))
    assert [len(a), len(b)] == [3, 3]
    over = found["ratios"]["A/<B>"]
    assert over["completion_tokens"] == {"min": 1, "median": 1, "max": 1, "pairs": [1, 1, 1]}
    pairs = [x["ttft_ms_p50"] / y["ttft_ms_p50"] for x, y in zip(a, b, strict=True)]
    assert over["ttft_ms_p50"]["pairs"] == pairs
    assert over["ttft_ms_p50"]["median"] == sorted(pairs)[1]
    assert all(figures["peak_rss_mib"] > 10 and figures["cpu_s"] >= 0 for figures in a + b)
    drawn = ElementTree.parse(plot).getroot()
    assert drawn.tag.endswith("svg")
    assert "<B>" in [element.text for element in drawn.iter()]
    assert all(name in ended.stdout for name in ("ttft_ms_p50", "tokens_per_s", "A/<B>"))


def test_ctrl_c_ends_it_with_what_was_measured(own: Running) -> None:
    def interrupt() -> None:
        # Of a closed loop without an end, some has been measured by then.
        while len(own.engine().generated) < 20:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    ended = bench("--target", f"A={own.url}", "--duration", 60, "--streams", 2)
    interrupting.join()
    assert (ended.exit_code, found_by(ended)["ended"]) == (1, "interrupted")
    figures = only_round(ended)
    assert figures["requests"] > 10
    assert (figures["failed"], figures["is_whole"]) == (0, False)
    own.left()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--target", "no name"),
        ("--target", "A=ftp://a"),
        ("--target", "A=http://a", "--target", "A=http://b"),
        ("--target", "A=http://a", "--pid", "B=1"),
        ("--target", "A=http://a", "--pid", "A=999999999"),
        ("--target", "A=http://a", "--body", "[]"),
        ("--target", "A=http://a", "--rate", "nan"),
        ("--target", "A=http://a", "--plot", "a.png"),
        ("--target", "A=http://a", "--json", "/nowhere/a.json"),
        ("--target", "A=http://a", "--api-key-env", "TENUTO_NO_SUCH_VARIABLE"),
        ("--target", "A=http://a", "--no-stream", "--goodput-ttft-ms", "5"),
    ],
)
def test_bad_input(arguments: tuple[str, ...]) -> None:
    assert bench(*arguments).exit_code == 2


def test_the_key_is_sent_and_not_told(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "sk-0123456789")
    url = serve(keys=Keys(["sk-0123456789"])).url
    assert only_round(bench("--target", f"A={url}", "--requests", 1))["errors"] == {"401": 1}
    ended = bench("--target", f"A={url}", "--requests", 1, "--api-key-env", "TOKEN")
    assert ended.exit_code == 0
    assert "sk-0123456789" not in ended.output

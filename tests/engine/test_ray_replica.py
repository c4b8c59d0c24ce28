"""A replica of a cluster, called as Ray Serve would call it."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tenuto.engine import ray_replica
from tenuto.engine.channel import Address, Failure, Inbox, Receiver
from tenuto.engine.fake import FakeBackend, FakeEngine, embedding_of
from tenuto.engine.ray_replica import Call, Embed, Replica, packed
from tenuto.engine.types import Constraint, Delta, EngineSpec, Prompt, Sampling, Step
from tenuto.errors import (
    ApiError,
    BadRequest,
    CheckpointError,
    EngineLost,
    InternalError,
    Unavailable,
)
from tests.engine.test_channel import HOST, drained, taken
from tests.engines import StepwiseEngine
from tests.models.pools import settled, until

PROMPT = list(b"Hi")
SECRET = "what the prompt says"


@dataclass
class FailingEngine(FakeEngine):
    """Breaks with `error`, after `steps` of them."""

    error: Exception | None = None
    steps: int = 0

    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        number = 0
        async with aclosing(super().generate(prompt, sampling, request_id)) as steps:
            async for step in steps:
                if number == self.steps and self.error is not None:
                    raise self.error
                number += 1
                yield step

    async def embed(self, prompt: Prompt, dimensions: int | None, request_id: str) -> list[float]:
        if self.error is not None:
            raise self.error
        return await super().embed(prompt, dimensions, request_id)


@dataclass
class WordyEngine(FakeEngine):
    """Makes steps of a MiB each as fast as they are taken."""

    handed: int = 0

    async def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Step, None]:
        with self._running(1):
            while self.handed < sampling.max_tokens:
                self.handed += 1
                yield Step([Delta(0, "a" * (1 << 20), [1])])
                await self._allowed()


@dataclass
class OneEngine(FakeBackend):
    """Always the same."""

    one: FakeEngine | None = None

    async def engine(self, spec: EngineSpec) -> FakeEngine:
        assert self.one is not None
        return self.one


class Called(Replica):
    """Ray Serve awaits what Python would only throw away."""

    def __del__(self) -> None:  # type: ignore[override]
        pass


@dataclass
class Rig:
    replica: Replica
    receiver: Receiver

    def ask(
        self, sampling: Sampling, to: Address | None = None
    ) -> tuple[Inbox, "asyncio.Task[None]"]:
        inbox = Inbox()
        stream = self.receiver.add(inbox)
        call = Call(to or self.receiver.address, stream, "r-1", PROMPT, sampling, True, {})
        return inbox, asyncio.create_task(self.replica.generate((), packed(call)))


@asynccontextmanager
async def rigged(directory: Path, engine: FakeEngine) -> AsyncIterator[Rig]:
    replica = Called.__new__(Called)
    await replica.__init__(  # type: ignore[misc]
        lambda: OneEngine(one=engine), EngineSpec("a", directory)
    )
    receiver = await Receiver.open(HOST)
    try:
        yield Rig(replica, receiver)
    finally:
        receiver.close()
        await Replica.__del__(replica)
        await settled()
    # It was closed, and nothing watches it any more.
    assert engine._lost.is_set()
    for made in replica._links._links.values():
        await asyncio.wait_for(made.result().lost.wait(), 5)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def text_of(steps: list[Step], index: int = 0) -> str:
    return "".join(one.text for step in steps for one in step.deltas if one.index == index)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(64),
        Sampling(64, stream=True),
        Sampling(64, n=2, stream=True),
        Sampling(64, n=2, stream=True, logprobs=2),
        Sampling(5, stream=True),
    ],
)
async def test_steps_are_those_of_the_engine(tmp_path: Path, sampling: Sampling) -> None:
    expected = [step async for step in FakeEngine().generate(Prompt(PROMPT), sampling, "r")]
    async with rigged(tmp_path, FakeEngine()) as rig:
        inbox, calling = rig.ask(sampling)
        found = await taken(inbox)
        await asyncio.wait_for(calling, 5)
        for index in range(sampling.n):
            assert text_of(found, index) == text_of(expected, index)
        ends = [one.finish_reason for step in found for one in step.deltas if one.finish_reason]
        assert ends == ["length" if sampling.max_tokens == 5 else "stop"] * sampling.n
        if sampling.logprobs:
            assert found == expected


def test_a_call_arrives_as_it_was_made() -> None:
    sampling = Sampling(
        max_tokens=5,
        n=2,
        seed=-(2**63),
        stop=("a", "é"),
        stop_token_ids=(1, 2),
        logit_bias={5: -1.5},
        allowed_token_ids=(),
        constraint=Constraint("response_format", "json_schema", {"type": ["object"]}),
        cache_salt="salt",
        priority=-3,
        lora="pirate",
    )
    call = Call(Address(HOST, 1, "s"), 7, "r", PROMPT, sampling, False, {"thinking": True})
    found = msgspec.msgpack.decode(packed(call), type=Call)
    assert found == call
    assert found.prompt == Prompt(PROMPT, reasoning_ended=False, template_kwargs={"thinking": True})


ERRORS = [
    (BadRequest("too long", param="prompt"), BadRequest, "too long", "prompt"),
    (BadRequest("no"), BadRequest, "no", None),
    (Unavailable("full"), Unavailable, "full", None),
    (ZeroDivisionError(SECRET), InternalError, InternalError().message, None),
]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(("error", "kind", "message", "param"), ERRORS)
async def test_errors_of_an_engine(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    steps: int,
    error: Exception,
    kind: type[ApiError],
    message: str,
    param: str | None,
) -> None:
    async with rigged(tmp_path, FailingEngine(error=error, steps=steps)) as rig:
        inbox, calling = rig.ask(Sampling(64, stream=True))
        await asyncio.wait_for(calling, 5)
        with pytest.raises(ApiError) as caught:
            await taken(inbox)
    assert inbox.has_begun == (steps > 0)
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.param) == (message, param)
    assert SECRET not in caplog.text
    assert ("r-1: ZeroDivisionError" in caplog.text) == (kind is InternalError)


async def test_an_engine_that_is_lost_says_so_to_those_who_have_read(tmp_path: Path) -> None:
    async with rigged(tmp_path, FailingEngine(error=EngineLost(), steps=1)) as rig:
        inbox, calling = rig.ask(Sampling(64, stream=True))
        await asyncio.wait_for(calling, 5)
        with pytest.raises(EngineLost):
            await taken(inbox)


@pytest.mark.parametrize("last_words_s", [600, 0.001])
async def test_what_has_not_begun_waits_for_the_end_of_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_words_s: float
) -> None:
    """Which gives it to another one; should this one live on, its client hears of it."""
    monkeypatch.setattr(ray_replica, "LAST_WORDS_S", last_words_s)
    async with rigged(tmp_path, FailingEngine(error=EngineLost())) as rig:
        inbox, calling = rig.ask(Sampling(64, stream=True))
        embed = packed(Embed(rig.receiver.address, "r-2", PROMPT, None))
        embedding = asyncio.create_task(rig.replica.embed((), embed))
        await asyncio.wait_for(inbox.accepted.wait(), 5)
        await settled()
        if last_words_s == 600:
            assert not any((inbox.has_ended, calling.done(), embedding.done()))
            calling.cancel()
            embedding.cancel()
            return
        with pytest.raises(EngineLost):
            await taken(inbox)
        assert await asyncio.wait_for(embedding, 5) == Failure("lost")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancelled_call_ends_in_the_engine(tmp_path: Path, stream: bool) -> None:
    engine = StepwiseEngine()
    if not stream:
        engine.go.clear()
    async with rigged(tmp_path, engine) as rig:
        inbox, calling = rig.ask(Sampling(64, stream=stream))
        await asyncio.wait_for(engine.started.wait(), 5)
        if stream:
            await asyncio.wait_for(inbox.take(), 5)
        calling.cancel()
        await asyncio.wait_for(engine.idle.wait(), 5)
        await asyncio.wait({calling})
        assert calling.cancelled()
        assert engine.running == 0


async def test_streams_of_a_lost_front_end_end_in_the_engine(tmp_path: Path) -> None:
    engine = StepwiseEngine()
    async with rigged(tmp_path, engine) as rig:
        inbox, calling = rig.ask(Sampling(64, stream=True))
        await asyncio.wait_for(inbox.take(), 5)
        rig.receiver.close()
        [made] = rig.replica._links._links.values()
        await asyncio.wait_for(made.result().lost.wait(), 5)
        engine.go.set()
        await asyncio.wait_for(engine.idle.wait(), 5)
        await asyncio.wait({calling})
        assert isinstance(calling.exception(), EngineLost)
        assert engine.handed < len(b"reply")


async def test_an_engine_waits_for_a_front_end_that_does_not_read(tmp_path: Path) -> None:
    """The replica has no more of an answer in memory than the network takes at once."""
    sampling, engine = Sampling(64, stream=True), WordyEngine()
    async with rigged(tmp_path, engine) as rig:
        with socket.create_server((HOST, 0)) as listener:
            address = Address(HOST, listener.getsockname()[1], "secret")
            _, calling = rig.ask(sampling, to=address)
            await asyncio.wait_for(engine.started.wait(), 5)
            [made] = rig.replica._links._links.values()
            link = made.result()
            await until(lambda: not link._may_write.is_set())
            await settled()
            assert 0 < engine.handed < 16
            end, _ = listener.accept()
            with end:
                reading = asyncio.create_task(asyncio.to_thread(drained, end))
                await asyncio.wait_for(calling, 5)
                await reading
        await asyncio.wait_for(link.lost.wait(), 5)
        assert engine.handed == 64


async def test_embeddings(tmp_path: Path) -> None:
    async with rigged(tmp_path, FakeEngine()) as rig:
        asked = packed(Embed(rig.receiver.address, "r", PROMPT, 2))
        assert await rig.replica.embed((), asked) == embedding_of(Prompt(PROMPT))[:2]


@pytest.mark.parametrize(("error", "kind", "message", "param"), ERRORS)
async def test_errors_of_an_embedding(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    kind: type[ApiError],
    message: str,
    param: str | None,
) -> None:
    async with rigged(tmp_path, FailingEngine(error=error)) as rig:
        found = await rig.replica.embed(
            (), packed(Embed(rig.receiver.address, "r-1", PROMPT, None))
        )
        assert isinstance(found, Failure)
        raised = found.error()
        assert type(raised) is kind
        assert (raised.message, raised.param) == (message, param)
        assert SECRET not in caplog.text


async def test_front_ends_hear_how_busy_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_replica, "MEASURE_EVERY_S", 0.001)
    engine = StepwiseEngine()
    async with rigged(tmp_path, engine) as rig:

        def is_said() -> bool:
            return rig.receiver.stats("a") == [engine.stats()]

        inbox, calling = rig.ask(Sampling(64, stream=True))
        await asyncio.wait_for(inbox.take(), 5)
        await said(is_said)
        assert rig.receiver.stats("a")[0].unfinished_requests == 1
        engine.go.set()
        await taken(inbox)
        await calling
        await said(is_said)
        assert rig.receiver.stats("a")[0].unfinished_requests == 0


async def said(is_said: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not is_said():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_host_without_the_checkpoint_is_named(tmp_path: Path) -> None:
    replica = Called.__new__(Called)
    making: Any = replica.__init__  # type: ignore[misc]
    with pytest.raises(CheckpointError, match="gone is not on the host"):
        await making(lambda: OneEngine(one=FakeEngine()), EngineSpec("a", tmp_path / "gone"))


# A replica that serves one call, and whose engine is lost after the first step.
LOST = """
import asyncio, sys
from pathlib import Path
from tenuto.engine import ray_replica
from tenuto.engine.types import EngineSpec
from tests.engines import StepwiseBackend

async def main():
    ray_replica.LAST_WORDS_S = 0.05
    backend = StepwiseBackend()
    replica = ray_replica.Replica.__new__(ray_replica.Replica)
    await replica.__init__(lambda: backend, EngineSpec("a", Path.cwd()))
    calling = asyncio.create_task(replica.generate((), bytes.fromhex(sys.argv[1])))
    engine = backend.engines["a"]
    while engine.handed == 0:
        await asyncio.sleep(0)
    engine.lose()
    await calling
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_replica_without_its_engine_ends() -> None:
    """Its requests are told before."""
    receiver, inbox = await Receiver.open(HOST), Inbox()
    sampling = Sampling(64, stream=True)
    call = Call(receiver.address, receiver.add(inbox), "r", PROMPT, sampling, True, {})
    command = [sys.executable, "-c", LOST, packed(call).hex()]
    running = asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=30)
    async with asyncio.timeout(30):
        done = await running
    receiver.close()
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    assert text_of([await inbox.take()])
    with pytest.raises(EngineLost):
        await taken(inbox)

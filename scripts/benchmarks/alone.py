"""`AsyncLLM` without HTTP, in a process of its own: what no server over it can be cheaper than."""

import asyncio
import gc
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from scripts.benchmarks.peers import ENGINE, MODEL, VLLM_ENVIRONMENT, started
from scripts.benchmarks.rows import ALONE
from tenuto.bench.client import Answer
from tenuto.bench.load import Load


@dataclass(frozen=True)
class Alone:
    """Answers a load's requests as a server would, each from a task of its own."""

    connection: "Connection[Any, Any]"
    pids: Sequence[int]
    name: str = ALONE

    @property
    def leaders(self) -> Sequence[int]:
        return self.pids

    def ask(self, load: Load, turn: int) -> list[Answer]:
        self.connection.send((load, turn))
        answers: list[Answer] = self.connection.recv()
        return answers


@contextmanager
def alone(directory: Path, checkpoint: Path) -> Iterator[Alone]:
    ours, theirs = multiprocessing.Pipe()
    command = [sys.executable, "-m", "scripts.benchmarks.alone"]
    command += [str(theirs.fileno()), str(checkpoint)]
    log, passed = directory / "alone.log", [theirs.fileno()]
    with started(command, log, VLLM_ENVIRONMENT, passed) as process, ours:
        theirs.close()
        try:
            ours.recv()
        except EOFError:
            raise RuntimeError(f"AsyncLLM does not start:\n{log.read_text()[-4000:]}") from None
        yield Alone(ours, [process.pid])


async def _serve(connection: "Connection[Any, Any]", checkpoint: str) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    options = {"enforce_eager": True, "disable_log_stats": True, **ENGINE}
    args = AsyncEngineArgs(model=checkpoint, served_model_name=MODEL, **options)
    llm = AsyncLLM.from_engine_args(args)
    # As servers do: what was imported is else looked through again and again.
    gc.collect()
    gc.freeze()
    connection.send("ready")
    while True:
        connection.send(await _answers(llm, *await asyncio.to_thread(connection.recv)))


async def _answers(llm: Any, load: Load, turn: int) -> list[Answer]:
    arrivals, answers = load.arrivals(turn), list[Answer]()

    async def stream() -> None:
        for number, _ in arrivals:
            answers.append(await _answer(llm, load, turn, number))

    await asyncio.gather(*(stream() for _ in range(load.streams)))
    return answers


async def _answer(llm: Any, load: Load, turn: int, number: int) -> Answer:
    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    body = msgspec.json.decode(load.content(turn, number))
    now = time.monotonic()
    answer = Answer(now, now, counted=0)
    token_ids = llm.get_tokenizer().apply_chat_template(
        body["messages"], add_generation_prompt=True, return_dict=False
    )
    kind = RequestOutputKind.DELTA if load.stream else RequestOutputKind.FINAL_ONLY
    params = SamplingParams(max_tokens=load.max_tokens, output_kind=kind, **load.body)
    async for output in llm.generate(tokens_input(token_ids), params, f"{turn}-{number}"):
        answer.texts.append(time.monotonic())
        answer.counted = (answer.counted or 0) + len(output.outputs[0].token_ids)
    answer.ended = time.monotonic()
    return answer


if __name__ == "__main__":
    uvloop.run(_serve(Connection(int(sys.argv[1])), sys.argv[2]))

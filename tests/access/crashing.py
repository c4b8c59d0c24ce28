"""A process that records usage until it is killed. Arguments: directory, first number, flush_s.

Each row has a number, its `prompt_tokens`; a line with the number and the time comes before it.
"""

import asyncio
import sys
import time
from pathlib import Path

from tenuto.access.database import open_database
from tenuto.access.usage import Recorder, UsageRow

ROWS_PER_S = 1000
MODELS = ("m1", "m2", "m3")


async def load(directory: Path, number: int, flush_s: float) -> None:
    recorder = Recorder(open_database(directory), flush_s)
    running = asyncio.create_task(recorder.run())
    while not running.done():
        await asyncio.sleep(1 / ROWS_PER_S)
        print(number, time.time(), flush=True)
        recorder.add(row_of(number))
        number += 1


def row_of(number: int) -> UsageRow:
    return UsageRow(
        at=time.time(),
        key_id=f"k{number % 7}",
        model=MODELS[number % len(MODELS)],
        endpoint="/v1/completions",
        status=200,
        prompt_tokens=number,
        duration_s=0.25,
    )


if __name__ == "__main__":
    asyncio.run(load(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))

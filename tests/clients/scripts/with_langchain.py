"""What users of langchain-openai call, with the answers as JSON. Runs in .clients/langchain."""

import asyncio
import json
import os
from typing import Any

import openai
from langchain_openai import ChatOpenAI, OpenAI  # type: ignore[import-not-found]

HELLO, GOODBYE = "Hello!", "Goodbye!"
CHOICES = ["red", "blue"]


def model(kind: Any = ChatOpenAI, **fields: Any) -> Any:
    url = os.environ["TENUTO_URL"] + "/v1"
    fields = {"temperature": 0, "max_retries": 0} | fields
    return kind(model="tenuto-demo", base_url=url, api_key="none", **fields)


def refused(**fields: Any) -> list[Any]:
    try:
        model(**fields).invoke(HELLO)
    except openai.BadRequestError as error:
        return [error.status_code, error.param]
    return []


def main() -> None:
    answer = model().invoke([("human", HELLO)])
    pieces = list(model(stream_usage=True).stream(HELLO))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    likely = model(logprobs=True, top_logprobs=2).invoke(HELLO)
    completion = model(OpenAI, max_tokens=64)
    report = {
        "invoke": answer.content,
        "finish": answer.response_metadata["finish_reason"],
        "usage": answer.usage_metadata["total_tokens"],
        "stream": whole.content,
        "pieces": len(pieces),
        "stream_usage": whole.usage_metadata["total_tokens"],
        "batch": [message.content for message in model().batch([HELLO, GOODBYE])],
        "async": asyncio.run(model().ainvoke(HELLO)).content,
        "logprobs": len(likely.response_metadata["logprobs"]["content"]),
        "choice": model(extra_body={"guided_choice": CHOICES}).invoke(HELLO).content,
        "top_k": model(temperature=1.5, extra_body={"top_k": 1}).invoke(HELLO).content,
        "completion": completion.invoke(HELLO),
        "completion_stream": "".join(completion.stream(HELLO)),
        "completion_batch": completion.batch([HELLO, GOODBYE]),
        "best_of": model(OpenAI, temperature=0.1, best_of=2, max_tokens=64).invoke(HELLO),
        "refused": refused(max_tokens=9000),
    }
    print(json.dumps(report))


main()

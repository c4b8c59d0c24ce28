"""What LiteLLM's users call, with the answers as JSON. Runs in .clients/litellm."""

import asyncio
import json
import os
from typing import Any

import litellm  # type: ignore[import-not-found]

SERVER = {"model": "openai/tenuto-demo", "api_base": os.environ["TENUTO_URL"] + "/v1"}
SERVER |= {"api_key": "none"}
HELLO = [{"role": "user", "content": "Hello!"}]
COLOURS = [{"role": "user", "content": "Name eight colours in any order."}]


def chat(messages: list[dict[str, str]], **fields: Any) -> Any:
    return litellm.completion(messages=messages, num_retries=0, **SERVER, **fields)


def chunks(stream: Any) -> dict[str, Any]:
    received = list(stream)
    choices = [chunk.choices[0] for chunk in received if chunk.choices]
    usages = [chunk.usage for chunk in received if getattr(chunk, "usage", None)]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish": [choice.finish_reason for choice in choices if choice.finish_reason],
        "usage": usages[-1].completion_tokens if usages else None,
    }


def refusal(**fields: Any) -> dict[str, Any] | None:
    try:
        chat(HELLO, **fields)
    except litellm.BadRequestError as error:
        return {"kind": type(error).__name__, "status": error.status_code, "text": str(error)}
    return None


def sampled(**fields: Any) -> str:
    answer = chat(COLOURS, temperature=1.5, seed=3, **fields)
    return str(answer.choices[0].message.content)


def main() -> None:
    answer = chat(HELLO, temperature=0)
    several = chat(COLOURS, n=3, stop=[","], logprobs=True, top_logprobs=2)
    text = litellm.text_completion(
        prompt=["Hello!", "Goodbye!"], temperature=0, max_tokens=64, **SERVER
    )
    streamed = litellm.text_completion(
        prompt="Hello!", temperature=0, max_tokens=64, stream=True, **SERVER
    )
    later = asyncio.run(litellm.acompletion(messages=HELLO, temperature=0, **SERVER))
    headers = chat(HELLO, temperature=0, top_a=0.5, dry_multiplier=0.8)
    report = {
        "chat": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "tokens": [
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
            answer.usage.total_tokens,
        ],
        "several": [choice.message.content for choice in several.choices],
        "top": [len(entry.top_logprobs) for entry in several.choices[0].logprobs.content],
        "stream": chunks(
            chat(HELLO, temperature=0, stream=True, stream_options={"include_usage": True})
        ),
        "text": [choice.text for choice in text.choices],
        "text_stream": "".join(chunk.choices[0].text or "" for chunk in streamed),
        "async": later.choices[0].message.content,
        "greedy": chat(COLOURS, temperature=0).choices[0].message.content,
        "hot": sampled(),
        "min_p": sampled(min_p=1.0),
        "top_k": sampled(top_k=1),
        "ignored": headers._response_headers.get("x-tenuto-ignored-params"),
        "refused": {
            "temperature": refusal(temperature=3),
            "min_tokens": refusal(max_tokens=2, extra_body={"min_tokens": 3}),
            "best_of": refusal(n=2, extra_body={"best_of": 1}),
        },
    }
    print(json.dumps(report))


main()

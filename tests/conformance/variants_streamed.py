"""Faults in the events of a stream."""

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.conformance.faults import DONE, Fault, edit_frames
from tests.conformance.variants_answered import choices, text_of


def streams(id: str, why: str, function: Callable[[list[Any]], list[Any] | None]) -> Fault:
    return Fault(id, why, frames=edit_frames(function))


def ends_later(chunks: list[Any]) -> list[Any]:
    """A second finish chunk for each choice."""
    ends = [c for c in chunks if any(choice.get("finish_reason") for choice in choices(c))]
    return [*chunks[:-1], *ends, *chunks[-1:]] if ends else chunks


def first_choice_ends_alone(chunks: list[Any]) -> None:
    for chunk in chunks:
        for choice in choices(chunk):
            if choice["index"] > 0:
                choice["finish_reason"] = None


def first_choice_speaks_alone(chunks: list[Any]) -> None:
    for chunk in chunks:
        for choice in choices(chunk):
            if choice["index"] > 0:
                choice.get("delta", {}).pop("role", None)


def no_role(chunks: list[Any]) -> None:
    for chunk in chunks:
        for choice in choices(chunk):
            choice.get("delta", {}).pop("role", None)


def all_of_the_first(chunks: list[Any]) -> None:
    for chunk in chunks:
        for choice in choices(chunk):
            choice["index"] = 0


def usage_everywhere(chunks: list[Any]) -> None:
    for chunk in chunks:
        if isinstance(chunk, dict):
            chunk["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def usage_with_a_choice(chunks: list[Any]) -> None:
    for chunk in chunks:
        if isinstance(chunk, dict) and chunk.get("usage") and not chunk["choices"]:
            chunk["choices"] = [{"index": 0, "delta": {}}]


def new_ids(chunks: list[Any]) -> None:
    for number, chunk in enumerate(chunks):
        if isinstance(chunk, dict):
            chunk["id"] = f"chunk-{number}"


def no_text_at_the_end(chunks: list[Any]) -> None:
    for chunk in chunks:
        for choice in choices(chunk):
            if choice.get("finish_reason") and "text" in choice:
                del choice["text"]


def one_piece(chunks: list[Any]) -> list[Any]:
    """All of a choice's text in its last chunk."""
    said: dict[int, str] = {}
    for chunk in chunks:
        for choice in choices(chunk):
            text_of(choice, partial(_kept, said, choice["index"]))
            if choice.get("finish_reason"):
                whole = said.get(choice["index"], "")
                if "text" in choice:
                    choice["text"] = whole
                else:
                    choice["delta"]["content"] = whole
    return chunks


def _kept(said: dict[int, str], index: int, text: str) -> str:
    said[index] = said.get(index, "") + text
    return ""


def lost_piece(chunks: list[Any]) -> list[Any]:
    """One chunk with text, in the middle, is not sent."""
    spoken = [c for c in chunks if any(_says(choice) for choice in choices(c))]
    lost = spoken[len(spoken) // 2] if spoken else None
    return [chunk for chunk in chunks if chunk is not lost or lost is None]


def _says(choice: Any) -> bool:
    return bool(choice.get("text") or (choice.get("delta") or {}).get("content"))


def double_object(chunks: list[Any]) -> None:
    for chunk in chunks:
        if isinstance(chunk, dict):
            chunk["object"] = "chunk"


STREAMED = [
    Fault(
        "holds-streams-back",
        "A stream comes in one piece, when it is whole.",
        frames=edit_frames(lambda chunks: chunks),
        holds_back=True,
    ),
    streams("no-done", "[DONE] is missing.", lambda chunks: [c for c in chunks if c != DONE]),
    streams("done-twice", "[DONE] comes twice.", lambda chunks: [*chunks, DONE]),
    streams("no-role", "No delta says the role.", no_role),
    streams("one-role-alone", "Only choice 0 says the role.", first_choice_speaks_alone),
    streams("one-finish-alone", "Only choice 0 ends.", first_choice_ends_alone),
    streams("ends-twice", "Each choice ends twice.", ends_later),
    streams("all-of-the-first", "Every chunk is of choice 0.", all_of_the_first),
    streams("usage-everywhere", "Every chunk has a usage.", usage_everywhere),
    streams("usage-with-a-choice", "The usage chunk has a choice.", usage_with_a_choice),
    streams(
        "no-usage-chunk",
        "The usage chunk is missing.",
        lambda chunks: [c for c in chunks if not (isinstance(c, dict) and c.get("usage"))],
    ),
    streams("new-ids", "Each chunk has an id of its own.", new_ids),
    streams("another-chunk-object", "The chunks' object is wrong.", double_object),
    streams("no-text-at-the-end", "The last chunk has no text.", no_text_at_the_end),
    streams("one-piece", "All the text comes at once.", one_piece),
    streams("lost-piece", "A chunk is lost.", lost_piece),
]

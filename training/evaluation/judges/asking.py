"""All calls of a set: several in flight, bounded retries, nothing asked again that was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..benchmark import Benchmark, Item, Judge, Request, Shown, Unreadable
from . import chat
from .answers import AnswerFile, Lines
from .shown import data_url

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from tqdm import tqdm

FIRST_WAIT = 1.0  # seconds before the first repetition, doubled for each further one
LONGEST_WAIT = 60.0


@dataclass
class Asking:
    """What is asked and how.

    Attributes:
        benchmark: reads the answers.
        judge: model and parameters.
        pictures: the set's folder of pictures.
        attempts: calls for one request at most.
        in_flight: calls at once.
        silence: calls in a row that did not reach the judge.
    """

    benchmark: Benchmark
    judge: Judge
    pictures: Path
    attempts: int
    in_flight: int
    silence: int = 0

    def is_settled(self, request: Request, lines: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a request needs no further call: its last answer can be read, or it was tried enough."""
        return bool(lines) and (
            self.is_readable(request, lines[-1]) or lines[-1].get("final") or len(lines) >= self.attempts
        )

    def is_readable(self, request: Request, line: Mapping[str, Any]) -> bool:
        """Whether a line holds a verdict."""
        if line.get("verdict") is not None:
            return True
        if line.get("text") is None:
            return False
        try:
            self.benchmark.read(request, line["text"])
        except Unreadable:
            return False
        return True


async def ask_all(
    client: AsyncOpenAI,
    asking: Asking,
    wanted: Sequence[tuple[Item, Request]],
    lines: Lines,
    file: AnswerFile,
    bar: tqdm,
) -> None:
    """Ask what is not settled. The first call is made alone: it shows that somebody answers.

    Args:
        client: of the judge.
        asking: how.
        wanted: requests and their items.
        lines: what was answered before, by request; grows.
        file: where every call leaves a line.
        bar: moves on with every request that is settled.

    Raises:
        ValueError: nobody answers at the URL, or no more; the judge refuses us, or is another one by now.
        Stop: an answer cannot be written.
    """
    left = iter([pair for pair in wanted if not asking.is_settled(pair[1], lines.get(pair[1].key, []))])
    first = next(left, None)
    if first is None:
        return
    await ask(client, asking, *first, lines, file, bar, alone=True)

    async def work(pairs: Iterator[tuple[Item, Request]]) -> None:
        for item, request in pairs:
            await ask(client, asking, item, request, lines, file, bar)

    tasks = [asyncio.create_task(work(left)) for _ in range(asking.in_flight)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def ask(
    client: AsyncOpenAI,
    asking: Asking,
    item: Item,
    request: Request,
    lines: Lines,
    file: AnswerFile,
    bar: tqdm,
    alone: bool = False,
) -> None:
    """Ask until there is an answer that can be read, or until it was tried often enough.

    Args:
        alone: nothing is written before somebody has answered.
    """
    shown = [data_url(part, item, asking.pictures) for part in request.parts if isinstance(part, Shown)]
    said = lines.setdefault(request.key, [])
    unwritten: list[dict[str, Any]] = []
    while not asking.is_settled(request, said):
        try:
            reply = await chat.call(client, asking.judge, request, shown)
        except chat.Refused as error:
            raise ValueError(
                f"The judge cannot be asked ({error}); check --url, --judge and the key."
            ) from None
        check_model(reply, lines)
        asking.silence = 0 if reply.reached else asking.silence + 1
        said.append(line_of(request, len(said) + 1, reply))
        unwritten.append(said[-1])
        if reply.reached or not alone:
            for line in unwritten:
                file.append(line)
            unwritten, alone = [], False
        if asking.silence >= asking.attempts * (asking.in_flight + 1):
            raise ValueError(
                f"Nobody answers at {client.base_url} any more ({reply.error}); start the judge again, then "
                "the same command, with --again to repeat what it missed."
            )
        if reply.text is None and not asking.is_settled(request, said):
            doubled = FIRST_WAIT * 2 ** (len(said) - 1)
            await asyncio.sleep(min(doubled, LONGEST_WAIT) if reply.wait is None else reply.wait)
    if unwritten:
        raise ValueError(
            f"Nobody answers at {client.base_url} ({said[-1]['error']}); check --url, or start the judge."
        )
    bar.update()


def line_of(request: Request, attempt: int, reply: chat.Reply) -> dict[str, Any]:
    """A call as a line of the file; what is not there is left out."""
    line = {
        "request": request.key,
        "item": request.item,
        "attempt": attempt,
        "text": reply.text,
        "verdict": reply.verdict,
        "model": reply.model,
        "usage": reply.usage,
        "error": reply.error,
        "final": reply.final or None,
    }
    return {name: value for name, value in line.items() if value is not None}


def check_model(reply: chat.Reply, lines: Lines) -> None:
    """Raise ValueError if the judge calls itself otherwise than before: a name may change hands."""
    if reply.model is None:
        return
    before = next((line["model"] for said in lines.values() for line in said if "model" in line), reply.model)
    if reply.model != before:
        raise ValueError(
            f"The judge was {before} and calls itself {reply.model} now; its answers cannot stand together. "
            "Judge anew under a dated name."
        )

"""One call of a judge over an OpenAI-compatible URL, and whatever can come back."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..benchmark import Judge, Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LIKELIEST = 20  # tokens whose probabilities are asked for, the most that the interface allows
REFUSED = (401, 403, 404)  # of no use to ask again, whatever is asked
HIDDEN = "***"


class Refused(ValueError):
    """The judge is of no use to us: key, address or name are wrong, or it lacks what is asked for."""


@dataclass(frozen=True)
class Reply:
    """What came back from a call.

    Attributes:
        text: the raw answer, None where there is none.
        verdict: probability of the choices of the request, if it has any.
        model: as the judge names itself, dated as a rule.
        usage: tokens as the judge counts them.
        error: why there is no answer.
        reached: whether the other side spoke HTTP at all.
        wait: seconds that it asks to wait for.
        final: asking again would not help.
    """

    text: str | None = None
    verdict: float | None = None
    model: str | None = None
    usage: dict[str, Any] | None = None
    error: str | None = None
    reached: bool = True
    wait: float | None = None
    final: bool = False


def key_from(variable: str, url: str) -> str:
    """The key for a URL, from the environment; a server on this machine may need none.

    Raises:
        ValueError: there is none, or it cannot be sent. The sentence never holds it.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        if is_here(url):
            return "none"
        raise ValueError(
            f"There is no key for {urlsplit(url).hostname}; put it into the variable {variable}."
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"The environment variable {variable} holds no key: it has characters no key has.")
    return key


def check_url(url: str) -> None:
    """Raise ValueError unless a URL can be that of a judge."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{url} is no URL of a judge; give one as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("The URL of a judge holds a password or a query; a key comes from the environment.")


def is_here(url: str) -> bool:
    """Whether a URL is one of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def connect(url: str, key: str, timeout: float) -> AsyncOpenAI:
    """The client library, which here repeats nothing on its own. Raises ValueError: it is not installed."""
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise ValueError(
            'The client library is missing; install it with: pip install "tbac-uniimage[evaluate]"'
        ) from error
    return AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)


def body_of(judge: Judge, request: Request, shown: Sequence[str]) -> dict[str, Any]:
    """What is sent: the official script's parameters, texts and pictures in its order.

    Args:
        judge: model and parameters.
        request: texts, and choices whose probability is asked for.
        shown: its pictures as data URLs.
    """
    pictures = iter(shown)
    parts = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": next(pictures)}}
        for part in request.parts
    ]
    messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
    body: dict[str, Any] = {"model": judge.model, "messages": [*messages, {"role": "user", "content": parts}]}
    if judge.temperature is not None:
        body["temperature"] = judge.temperature
    if judge.max_tokens is not None:
        body["max_tokens"] = judge.max_tokens
    if judge.extra:
        body["extra_body"] = dict(judge.extra)
    if request.choices:
        body |= {"logprobs": True, "top_logprobs": LIKELIEST, "max_tokens": 1}
    return body


async def call(client: AsyncOpenAI, judge: Judge, request: Request, shown: Sequence[str]) -> Reply:
    """Ask once.

    Raises:
        Refused: the key, the address or the model is refused.
    """
    import openai

    try:
        response = await client.chat.completions.create(**body_of(judge, request, shown))
    except openai.APIStatusError as error:
        said = hidden(client, f"HTTP {error.status_code}: {error.message}")[:400]
        if error.status_code in REFUSED:
            raise Refused(said) from None  # the library's own error may show the request
        repeat = error.status_code in (408, 409, 429) or error.status_code >= 500
        return Reply(error=said, wait=asked_to_wait(error), final=not repeat)
    except openai.APIConnectionError as error:
        reason = error.__cause__ or error
        return Reply(error=hidden(client, f"{type(error).__name__}: {reason}"), reached=False)
    except (openai.APIError, ValueError) as error:
        return Reply(error=hidden(client, f"no chat completion ({type(error).__name__})"))
    return read(client, response, request)


def read(client: AsyncOpenAI, response: Any, request: Request) -> Reply:
    """The reply in a response, which may be anything that a server took for one. Raises Refused."""
    try:
        choice = response.choices[0]
        text = choice.message.content
        usage = response.usage.model_dump(exclude_none=True) if response.usage else None
        reply = {"model": response.model, "usage": usage}
        if request.choices:
            if not (choice.logprobs and choice.logprobs.content):
                raise Refused("it gives no probabilities of tokens, which vLLM and OpenAI do")
            likeliest = choice.logprobs.content[0].top_logprobs
            found = probability({token.token: token.logprob for token in likeliest}, request.choices)
            return Reply(text=hidden(client, text or ""), verdict=found, **reply)
    except (AttributeError, IndexError, TypeError):
        return Reply(error="no chat completion")
    if not isinstance(text, str):
        return Reply(error=f"no text ({choice.finish_reason})", **reply)
    return Reply(text=hidden(client, text), **reply)


def probability(likeliest: dict[str, float], choices: Sequence[str]) -> float:
    """Sum over spellings of an answer, each counted once: those that are among the likeliest first tokens."""
    return math.fsum(math.exp(likeliest[choice]) for choice in dict.fromkeys(choices) if choice in likeliest)


def asked_to_wait(error: Any) -> float | None:
    """Seconds of a ``Retry-After`` header, at most a minute."""
    try:
        return min(max(float(error.response.headers["retry-after"]), 0.0), 60.0)
    except (KeyError, ValueError):
        return None


def hidden(client: AsyncOpenAI, text: str) -> str:
    """A text without the key, which a server may repeat."""
    return text if client.api_key == "none" else text.replace(client.api_key, HIDDEN)

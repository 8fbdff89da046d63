"""A judge over real HTTP on 127.0.0.1 that answers as a test says, with OpenAI's chat completions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
Say = Callable[[str, int], Any]


class Judge:
    """What a server was asked, and what it does.

    Args:
        say: from the text of a request and the number of times that it was asked before, what happens: a text
            is answered; a number is an HTTP status, a negative one without ``Retry-After``; "drop", "slow",
            "junk", "empty" are what they say; a dictionary is probabilities by token.
    """

    def __init__(self, say: Say) -> None:
        self.say = say
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.asked: dict[str, int] = {}
        self.model: str | None = None
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.at_once = self.most = 0

    @property
    def texts(self) -> list[str]:
        """Texts of the requests, in the order in which they came."""
        return [text_of(body) for body in self.bodies]


def text_of(body: dict[str, Any]) -> str:
    """The texts of a request's user message."""
    parts = body["messages"][-1]["content"]
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def completion(judge: Judge, model: str, said: str | dict[str, float]) -> dict[str, Any]:
    """A response in the published form."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if isinstance(said, dict):
        import math

        likeliest = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in said.items()]
        first = likeliest[0] | {"top_logprobs": likeliest}
        choice["logprobs"] = {"content": [first], "refusal": None}
        said = first["token"]
    choice["message"] = {"role": "assistant", "content": said}
    head = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": judge.model or f"{model}-2025-01-01",
    }
    return head | {"choices": [choice], "usage": USAGE}


def handler(judge: Judge) -> type[BaseHTTPRequestHandler]:
    """The handler of a judge's server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = text_of(body)
            with judge.lock:
                judge.bodies.append(body)
                judge.keys.add(self.headers.get("Authorization", ""))
                number = judge.asked.get(text, 0)
                judge.asked[text] = number + 1
                judge.at_once += 1
                judge.most = max(judge.most, judge.at_once)
            try:
                self.answer(body, judge.say(text, number))
            finally:
                with judge.lock:
                    judge.at_once -= 1

        def answer(self, body: dict[str, Any], said: Any) -> None:
            if said == "drop":
                self.close_connection = True
                self.connection.close()
            elif said == "slow":
                judge.ended.wait(60)
            elif said == "junk":
                self.send(200, b"<html>not what you think</html>", "text/html")
            elif said == "empty":
                self.send(200, b'{"object": "chat.completion", "choices": []}')
            elif isinstance(said, int):
                key = self.headers.get("Authorization", "")
                error = {"error": {"message": f"no, {key}", "type": "x"}}  # some servers repeat it
                self.send(abs(said), json.dumps(error).encode(), wait=said > 0)
            else:
                self.send(200, json.dumps(completion(judge, body["model"], said)).encode())

        def send(
            self, status: int, content: bytes, kind: str = "application/json", wait: bool = False
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if wait:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(say: Say) -> Iterator[tuple[str, Judge]]:
    """URL of a judge, and what it is asked."""
    judge = Judge(say)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(judge))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # connections that were closed on purpose
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", judge
    finally:
        judge.ended.set()
        server.shutdown()
        server.server_close()


def by_part(script: dict[str, Sequence[Any]]) -> Say:
    """What happens by a part of the text; the last of a list again and again."""

    def say(text: str, number: int) -> Any:
        [answers] = [answers for part, answers in script.items() if part in text]
        return answers[min(number, len(answers) - 1)]

    return say

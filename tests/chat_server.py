"""A local OpenAI-compatible server that misbehaves as it is told; it wins games where it knows how."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time

from evolving_rl_jax.eval.transfer.client import EndpointSettings

GOOD = "<reasoning>I know it.</reasoning><action>{action}</action>"


def completion(text, usage=(100, 10)):
    """The body of a good answer."""
    body = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return body


class ChatServer:
    """Answers with ``say(messages)``, unless ``faults`` has something else for this request.

    Args:
      say: messages -> text.
      faults: number of the request (from 0) -> (status, headers, body), where the body is a dict
        (JSON), bytes, ``"stall"`` (nothing comes), ``"trickle"`` (byte by byte), ``"headers"``
        (one header after the other) or ``"drop"`` (the connection is closed).
    """

    def __init__(self, say, faults=None):
        self.say, self.faults = say, faults or (lambda n: None)
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.headers: list[dict] = []
        self.lock, self.ended = threading.Lock(), threading.Event()

    def handle(self, handler, body):
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.times.append(time.monotonic())
            self.headers.append(dict(handler.headers))
        fault = self.faults(number)
        status, headers, answer = fault or (200, {}, completion(self.say(body["messages"])))
        if answer == "stall":
            self.ended.wait(5)
        if answer in ("stall", "drop"):
            handler.close_connection = True
            return
        if answer == "headers":  # they never come to an end
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            for number in range(100):
                handler.wfile.write(b"X-More: %d\r\n" % number)
                handler.wfile.flush()
                if self.ended.wait(0.1):
                    return
            return
        if answer == "trickle":
            answer, slow = completion("late"), True
        else:
            slow = False
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if slow:
            for byte in data:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                if self.ended.wait(0.1):
                    return
            return
        handler.wfile.write(data)


@contextlib.contextmanager
def serve(say, faults=None):
    """Yields (server, base URL)."""
    chat = ChatServer(say, faults)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            try:
                chat.handle(self, json.loads(self.rfile.read(length)))
            except (BrokenPipeError, ConnectionResetError):
                pass

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield chat, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        chat.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def settings(url, **changes):
    # Patient where the server answers: on a busy machine even a good answer takes a while.
    fast = {"timeout_s": 60.0, "first_wait_s": 0.01, "attempts": 4, "concurrency": 4}
    return EndpointSettings(url, "a-model", **{**fast, **changes})


def echo(messages):
    return f"{len(messages)} messages"


def first(*faults):
    """The given faults for the first requests, good answers after them."""
    return lambda n: faults[n] if n < len(faults) else None


TOO_LONG = [
    (400, {"error": {"message": "This model's maximum context length is 4097 tokens. However, you requested "
                     "4927 tokens. Please reduce the length of the messages.",
                     "type": "invalid_request_error", "code": "context_length_exceeded"}}),
    (400, {"object": "error", "message": "This model's maximum context length is 2048 tokens. However, "
           "you requested 2600 tokens in the messages", "type": "BadRequestError", "code": 400}),
    (400, {"error": {"code": 400, "message": "the request exceeds the available context size, try increasing it",
                     "type": "exceed_context_size_error"}}),
    (400, {"message": "The input (3000 tokens) is longer than the model's context length (2048 tokens)."}),
    (413, {"error": {"message": "prompt is too long: 205000 tokens > 200000 maximum"}}),
    (422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 4000",
           "error_type": "validation"}),
]  # fmt: skip

"""An OpenAI-compatible chat endpoint: retries, a rate limit and a cap on cost.

The endpoint is trusted with nothing: it may be slow, refuse, be down, or answer something that is
no answer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import email.utils
import json
import re
import threading
import time

import httpx
import tenacity

_MAX_WAIT_S = 60.0  # between attempts, also where the server asks for more
_MAX_ANSWER_BYTES = 4_000_000
_MAX_TOKENS = 10**9  # that a server may say it counted
_TRY_AGAIN = (408, 409, 425, 429)
_REFUSED = (400, 413, 422)
_OTHER_LIMIT = "max_completion_tokens"  # what some models want instead of max_tokens, and say so
# How servers say that a conversation is too long: OpenAI, Azure, vLLM, SGLang, llama.cpp, TGI, Anthropic.
_TOO_LONG = re.compile(
    r"context[_ ](length|window|size)|exceed_context|reduce the length|prompt is too long|"
    r"longer than the (model|maximum)|must have less than \d+ tokens|inputs? tokens \+",
    re.IGNORECASE,
)


class EndpointError(RuntimeError):
    """The endpoint cannot be used at all: wrong address, key or model, or it is down."""


class TooLong(RuntimeError):
    """The endpoint refuses this request because it does not fit its context."""


class Refused(RuntimeError):
    """The endpoint refuses this request for what it says, and has answered others."""


class BudgetSpent(RuntimeError):
    """The next request could exceed the cap on cost."""


class _Retry(Exception):
    """An attempt that may succeed later; ``after`` is what the server asked to wait, in seconds."""

    def __init__(self, reason: str, after: float | None = None):
        super().__init__(reason)
        self.after = after


@dataclasses.dataclass(frozen=True)
class EndpointSettings:
    """How to talk to the endpoint.

    Attributes:
      base_url: up to and with ``/v1``.
      model: name that the server knows it by.
      api_key: sent as a bearer token; "" sends none.
      temperature, top_p, max_tokens: of every request.
      timeout_s: of one attempt, all of it, however it trickles in.
      attempts: of one request.
      requests_per_minute: most requests, retries counted; 0 = any.
      concurrency: requests at a time.
      price_in, price_out: per million tokens, in any currency.
      max_cost: never exceeded, in the same currency; 0 = no cap.
      first_wait_s: before the second attempt; it doubles from there on.
    """

    base_url: str
    model: str
    api_key: str = dataclasses.field(default="", repr=False)
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    timeout_s: float = 60.0
    attempts: int = 5
    requests_per_minute: float = 0.0
    concurrency: int = 8
    price_in: float = 0.0
    price_out: float = 0.0
    max_cost: float = 0.0
    first_wait_s: float = 1.0


@dataclasses.dataclass
class Usage:
    """What was asked of the endpoint; tokens are the server's own count, or upper estimates."""

    requests: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0  # requests whose tokens the server did not count
    cost: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Usage(*(a + b for a, b in pairs))


class ChatClient:
    """Chat completions with retries, a rate limit and a cap on cost.  Safe to use from threads.

    Args:
      settings: how.
      usage: of an earlier client of the same run, which is counted on.
    """

    def __init__(self, settings: EndpointSettings, usage: Usage | None = None):
        self.settings, self.usage = settings, Usage() if usage is None else usage
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=settings.concurrency)
        # Asynchronous, because only so can an attempt as a whole be given a time limit.
        self._http = httpx.AsyncClient(headers=headers, timeout=None, limits=limits)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._lock = threading.Condition()
        self._reserved = 0.0  # worst-case cost of requests under way
        self._under_way = 0  # requests that have set something aside
        self._next_start = 0.0
        self._stopped = threading.Event()
        self._limit = "max_tokens"  # the key of the most tokens of an answer
        self._has_answered = False

    def close(self) -> None:
        """Ends waiting requests soon and closes the connections."""
        self._stopped.set()
        with self._lock:
            self._lock.notify_all()
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        requests = asyncio.all_tasks() - {asyncio.current_task()}
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await self._http.aclose()

    def complete(self, messages: list[dict[str, str]]) -> str:
        """The text of the next assistant message.

        Raises:
          BudgetSpent: it could cost more than is left of the cap.
          TooLong: it refuses this one, as too long for its context.
          Refused: it refuses this one, and has answered others.
          EndpointError: it refuses such requests (4xx).
          TimeoutError: every attempt failed; names the last reason.
        """
        # Tokens are not smaller than a byte.
        size = sum(len(m["content"].encode()) + 8 for m in messages)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Retry),
            stop=tenacity.stop_after_attempt(self.settings.attempts),
            wait=self._wait,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(self._attempt, messages, size)
        except _Retry as error:
            raise TimeoutError(
                f"no answer after {self.settings.attempts} attempts: {error}"
            ) from None

    # -- one attempt -----------------------------------------------------------------------------

    def _attempt(self, messages, size: int) -> str:
        s = self.settings
        worst = (size * s.price_in + s.max_tokens * s.price_out) / 1e6
        self._reserve(worst)
        try:
            self._wait_for_turn()
            tokens, text = self._post(messages, size)
            self._count(*tokens)
            return text
        finally:
            self._release(worst)

    def _post(self, messages, size: int) -> tuple[tuple[int, int, bool], str]:
        s = self.settings
        body = {
            "model": s.model,
            "messages": messages,
            "temperature": s.temperature,
            self._limit: s.max_tokens,
        }
        if s.top_p < 1:  # some models take no such key, and 1 is what all do without it
            body["top_p"] = s.top_p
        status, headers, raw = self._send(body, size)
        if status in _TRY_AGAIN or status >= 500:
            raise _Retry(f"HTTP {status}", _retry_after(headers))
        if status != 200:
            said = " ".join(raw.decode(errors="replace").split())
            if status in _REFUSED and _TOO_LONG.search(said):
                raise TooLong(f"HTTP {status}: {said[:200]}")
            if status in _REFUSED and _OTHER_LIMIT in said and _OTHER_LIMIT not in body:
                self._limit = _OTHER_LIMIT
                return self._post(messages, size)
            if status in _REFUSED and self._has_answered:
                raise Refused(f"HTTP {status}: {said[:200]}")
            raise EndpointError(
                f"{s.base_url} must accept chat completions of model {s.model!r}, got HTTP {status}: "
                f"{said[:200]}"
            )
        answer = _read(raw)
        if answer is None:
            self._count(size, s.max_tokens, True)  # perhaps charged for
            raise _Retry(f"an answer that is no chat completion: {raw[:80]!r}")
        text, usage = answer
        self._has_answered = True
        return usage or (size, len(text.encode()), True), text

    def _send(self, body, size: int) -> tuple[int, httpx.Headers, bytes]:
        """(status, headers, body).  What may have been charged for without an answer is counted."""
        try:
            return self._submit(self._fetch(body)).result()
        except (httpx.ConnectError, httpx.InvalidURL) as error:  # it never arrived
            reason = error
        except (httpx.HTTPError, TimeoutError, concurrent.futures.CancelledError) as error:
            self._count(size, self.settings.max_tokens, True)
            reason = error
        if self._stopped.is_set():
            raise TimeoutError("the run was stopped")
        raise _Retry(f"{type(reason).__name__} {reason}".strip()) from None

    def _submit(self, fetching) -> concurrent.futures.Future:
        try:
            return asyncio.run_coroutine_threadsafe(fetching, self._loop)
        except RuntimeError:  # the loop is closed
            fetching.close()
            raise TimeoutError("the run was stopped") from None

    async def _fetch(self, body) -> tuple[int, httpx.Headers, bytes]:
        url, raw = f"{self.settings.base_url.rstrip('/')}/chat/completions", b""
        async with asyncio.timeout(self.settings.timeout_s):
            async with self._http.stream("POST", url, json=body) as response:
                async for chunk in response.aiter_bytes():
                    raw += chunk
                    if len(raw) > _MAX_ANSWER_BYTES:
                        raise httpx.ReadError(f"more than {_MAX_ANSWER_BYTES} bytes")
                return response.status_code, response.headers, raw

    def _count(self, tokens_in: int, tokens_out: int, estimated: bool) -> None:
        s = self.settings
        with self._lock:
            self.usage.tokens_in += tokens_in
            self.usage.tokens_out += tokens_out
            self.usage.estimated += estimated
            self.usage.cost += (tokens_in * s.price_in + tokens_out * s.price_out) / 1e6

    def _reserve(self, worst: float) -> None:
        """Sets the worst case aside; waits for requests under way where only these stand in its way."""
        cap = self.settings.max_cost
        with self._lock:
            while cap and self._under_way and self.usage.cost + self._reserved + worst > cap:
                if self._stopped.is_set():
                    raise TimeoutError("the run was stopped")
                self._lock.wait()
            if cap and self.usage.cost + worst > cap:
                raise BudgetSpent(
                    f"the cap of {cap:g} is reached: {self.usage.cost:.4g} spent, and one more "
                    f"request may cost {worst:.4g}"
                )
            self._reserved += worst
            self._under_way += 1
            self.usage.requests += 1

    def _release(self, worst: float) -> None:
        """Gives back what `_reserve` set aside."""
        with self._lock:
            self._under_way -= 1
            # Sums of floats in another order leave a rest, which is no request to wait for.
            self._reserved = self._reserved - worst if self._under_way else 0.0
            self._lock.notify_all()

    # -- waiting ---------------------------------------------------------------------------------

    def _wait_for_turn(self) -> None:
        rate = self.settings.requests_per_minute
        if not rate:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 60.0 / rate
        self._sleep(start - time.monotonic())

    def _wait(self, state: tenacity.RetryCallState) -> float:
        with self._lock:
            self.usage.retries += 1
        asked = getattr(state.outcome.exception(), "after", None)
        doubled = self.settings.first_wait_s * 2 ** (state.attempt_number - 1)
        jitter = tenacity.wait_random(0, self.settings.first_wait_s)(state)
        return min(_MAX_WAIT_S, max(asked or 0.0, doubled + jitter))

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(max(seconds, 0.0)):
            raise TimeoutError("the run was stopped")


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, as a number or as a date."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _read(raw: bytes) -> tuple[str, tuple[int, int, bool] | None] | None:
    """(text, (tokens in, tokens out, False) or None) of an answer; None when it is no answer.

    A message without content (reasoning took all tokens, a refusal, a tool call) is an empty answer.
    """
    try:
        body = json.loads(raw)
        message = body["choices"][0].get("message") or {}
        text = _text_of(message.get("content"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    try:
        counts = [int(body["usage"][key]) for key in ("prompt_tokens", "completion_tokens")]
    except (KeyError, TypeError, ValueError, OverflowError):
        return text, None
    return text, (*counts, False) if 0 <= min(counts) <= max(counts) < _MAX_TOKENS else None


def _text_of(content) -> str:
    """The text of a message: nothing, a text, or a list of parts."""
    if isinstance(content, list):
        content = "".join(
            part if isinstance(part, str) else str(part.get("text") or "") for part in content
        )
    if not isinstance(content, str | None):
        raise TypeError(f"content must be text, got {type(content).__name__}")
    # A half of a surrogate pair is valid JSON and no text that could be sent on.
    return (content or "").encode("utf-8", "replace").decode()

"""A policy behind an endpoint that fails, stalls, rate-limits and answers rubbish."""

import concurrent.futures
import dataclasses
import json
import math
import threading
import time

import pytest
from chat_server import TOO_LONG, completion, echo, first, serve, settings

from evolving_rl_jax.eval.transfer.client import (
    BudgetSpent,
    ChatClient,
    EndpointError,
    Refused,
    TooLong,
)

MESSAGES = [{"role": "user", "content": "hello"}]


def ask(url, **changes):
    client = ChatClient(settings(url, **changes))
    try:
        return client.complete(MESSAGES), client.usage
    finally:
        client.close()


def test_request_and_answer():
    with serve(echo) as (server, url):
        text, usage = ask(url, api_key="secret", temperature=0.3, top_p=0.9, max_tokens=7)
    assert text == "1 messages"
    assert server.requests == [
        {"model": "a-model", "messages": MESSAGES, "temperature": 0.3, "top_p": 0.9,
         "max_tokens": 7}
    ]  # fmt: skip
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert (usage.requests, usage.tokens_in, usage.tokens_out, usage.estimated) == (1, 100, 10, 0)
    assert "secret" not in repr(settings(url, api_key="secret"))


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, b"oops"),
        (503, {}, {}),
        (429, {}, {"error": "slow down"}),
        (408, {}, b""),
        (200, {}, b"<html>not JSON</html>"),
        (200, {}, b"\xff\xfe\x00"),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{"message": {"content": 5}}]}),
        (200, {}, {"choices": [{"message": "hello"}]}),
        (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08 damaged"),
        (200, {}, {"choices": "x"}),
        (200, {}, [1, 2]),
        (200, {}, b"[" * 100_000),
        (200, {}, "drop"),
        (200, {}, "stall"),
        (200, {}, "trickle"),
        (200, {}, "headers"),
    ],
    ids=lambda f: f"{f[0]}-{str(f[2])[:24]}",
)
def test_a_failure_is_tried_again(fault):
    silent = fault[2] in ("stall", "trickle", "headers")  # for 5 s and more
    with serve(echo, first(fault, fault)) as (server, url):
        text, usage = ask(url, timeout_s=1.5 if silent else 60.0)
        assert text == "1 messages"
        assert len(server.requests) == usage.requests == 3 and usage.retries == 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),  # reasoning took all tokens, a refusal, a call of a tool
        ([{"type": "text", "text": "go "}, {"type": "text", "text": "on"}], "go on"),
        ([{"type": "refusal", "refusal": "no"}], ""),
        ([], ""),
        ("half a pair \ud83d", "half a pair ?"),
    ],
)
def test_an_answer_without_plain_text_is_an_answer(content, text):
    """It is played as what it is; asked again, an episode would be left out."""
    body = {**completion(""), "choices": [{"message": {"role": "assistant", "content": content}}]}
    with serve(echo, first((200, {}, body))) as (server, url):
        assert ask(url)[0] == text
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "choice",
    [{"finish_reason": "length"}, {"message": {"role": "assistant", "reasoning_content": "hm"}}],
)
def test_a_choice_without_content_is_an_empty_answer_with_the_servers_own_count(choice):
    with serve(echo, first((200, {}, {**completion(""), "choices": [choice]}))) as (server, url):
        text, usage = ask(url)
    assert text == "" and len(server.requests) == 1 and usage.estimated == 0


def test_a_model_that_wants_another_key_for_the_limit_gets_it():
    said = {
        "error": "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    }
    with serve(echo, first((400, {}, said))) as (server, url):
        assert ask(url, max_tokens=7)[0] == "1 messages"
    limits = [{k: v for k, v in r.items() if k.startswith("max")} for r in server.requests]
    assert limits == [{"max_tokens": 7}, {"max_completion_tokens": 7}]
    assert "top_p" not in server.requests[0]


def test_a_refusal_after_answers_is_of_this_request_alone():
    with serve(echo, lambda n: (400, {}, {"error": "content_filter"}) if n == 1 else None) as (
        _,
        url,
    ):
        client = ChatClient(settings(url))
        assert client.complete(MESSAGES)
        with pytest.raises(Refused, match="HTTP 400.*content_filter"):
            client.complete(MESSAGES)
        assert client.complete(MESSAGES)
        client.close()


@pytest.mark.parametrize("fault", [(500, {}, b""), (200, {}, "drop"), (200, {}, b"rubbish")])
def test_there_are_no_more_attempts_than_were_asked_for(fault):
    with serve(echo, lambda n: fault) as (server, url):
        client = ChatClient(settings(url, attempts=3))
        with pytest.raises(TimeoutError, match="no answer after 3 attempts"):
            client.complete(MESSAGES)
        client.close()
        assert len(server.requests) == client.usage.requests == 3


def test_a_failure_that_stays_is_named():
    with serve(echo, lambda n: (502, {}, b"")) as (server, url):
        with pytest.raises(TimeoutError, match="no answer after 4 attempts: HTTP 502"):
            ask(url)
        assert len(server.requests) == 4
    with pytest.raises(TimeoutError, match="ConnectError"):
        ask(url)  # nobody listens any more


@pytest.mark.parametrize("status", [400, 401, 404, 422, 301])
def test_a_refusal_is_not_tried_again(status):
    with serve(echo, lambda n: (status, {}, {"error": "no such model"})) as (server, url):
        with pytest.raises(EndpointError, match=f"'a-model', got HTTP {status}.*no such model"):
            ask(url)
        assert len(server.requests) == 1


# What servers really say, each in its own words.
@pytest.mark.parametrize(("status", "body"), TOO_LONG)
def test_a_conversation_that_is_too_long_is_told_from_other_refusals(status, body):
    with serve(echo, lambda n: (status, {}, body)) as (server, url):
        with pytest.raises(TooLong, match=f"HTTP {status}"):
            ask(url)
        assert len(server.requests) == 1


def test_the_server_says_how_long_to_wait():
    with serve(echo, first((429, {"Retry-After": "0.5"}, {}))) as (server, url):
        ask(url)
    assert server.times[1] - server.times[0] >= 0.5


def test_usage_that_the_server_does_not_count_is_estimated_from_above():
    bad = [None, {"prompt_tokens": "many"}, {"prompt_tokens": -5, "completion_tokens": 1}]
    bad += [{"prompt_tokens": math.inf, "completion_tokens": 1}]
    bad += [{"prompt_tokens": 1e300, "completion_tokens": math.nan}]
    bad += [{"prompt_tokens": 10**400, "completion_tokens": 1}]
    for usage in bad:
        body = completion("four", usage=None)
        body |= {"usage": usage} if usage else {}
        with serve(echo, first((200, {}, body))) as (_, url):
            _, used = ask(url)
        assert used.estimated == 1 and used.tokens_in >= len("hello") and used.tokens_out == 4


def test_requests_keep_to_the_rate():
    with serve(echo) as (server, url):
        client, start = ChatClient(settings(url, requests_per_minute=600)), time.monotonic()
        for _ in range(4):
            client.complete(MESSAGES)
        client.close()
    assert all(t - start >= 0.1 * i for i, t in enumerate(server.times))


def test_the_cap_is_never_exceeded():
    prices = {"price_in": 1000.0, "price_out": 10_000.0, "max_tokens": 10}
    with serve(echo) as (server, url):  # 0.2 a request: 100 tokens in, 10 out
        client = ChatClient(settings(url, max_cost=1.0, **prices))
        with pytest.raises(BudgetSpent, match="cap of 1 is reached"):
            for _ in range(100):
                client.complete(MESSAGES)
        client.close()
    assert client.usage.cost <= 1.0 and len(server.requests) == 5
    assert client.usage.cost == pytest.approx(1.0)


def test_a_cap_that_holds_one_request_at_a_time_is_used_up():
    """Others wait for those under way; they do not end the run with nothing spent."""
    prices = {"price_in": 1000.0, "price_out": 10_000.0, "max_tokens": 10}
    with serve(echo) as (server, url):  # 0.113 at worst, 0.2 as the server counts
        client = ChatClient(settings(url, max_cost=1.0, concurrency=8, **prices))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(client.complete, MESSAGES) for _ in range(8)]
            ends = [type(f.exception()) for f in asked]
        client.close()
    assert ends.count(type(None)) == len(server.requests) == client.usage.requests >= 4
    assert ends.count(BudgetSpent) == 8 - len(server.requests)
    assert client.usage.cost > 0.7


def test_nobody_waits_for_what_rounding_leaves_of_requests_that_have_ended():
    """0.1 + 0.3 - 0.1 - 0.3 is not 0: whoever took that for a request under way waited for ever."""
    prices = {"price_in": 0.0, "price_out": 1e6}
    with serve(echo) as (_, url):
        client = ChatClient(settings(url, max_cost=0.5, **prices))
        for worst in (0.1, 0.3):
            client._reserve(worst)
        for worst in (0.1, 0.3):
            client._release(worst)
        client.usage.cost = 0.45
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client._reserve, 0.1)
            try:
                assert type(asked.exception(timeout=30)) is BudgetSpent
            finally:
                client.close()


def test_what_is_thrown_away_at_the_end_is_booked():
    asked = threading.Event()
    with serve(echo, lambda n: asked.set() or (200, {}, "stall")) as (_, url):
        client = ChatClient(settings(url, price_in=1000.0, price_out=0.0))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.complete, MESSAGES)
            assert asked.wait(60)
            client.close()
            assert isinstance(answer.exception(), TimeoutError)
    assert client.usage.requests == client.usage.estimated == 1
    assert client.usage.cost >= len("hello") / 1000
    client.close()  # as often as one likes
    with pytest.raises(TimeoutError, match="stopped"):
        client.complete(MESSAGES)


def test_answers_that_never_came_count_as_charged():
    prices = {"price_in": 1000.0, "price_out": 10_000.0, "max_tokens": 10}
    with serve(echo, lambda n: (200, {}, "stall")) as (server, url):
        client = ChatClient(settings(url, timeout_s=0.5, max_cost=0.3, attempts=9, **prices))
        with pytest.raises(BudgetSpent):
            client.complete(MESSAGES)
        client.close()
    assert len(server.requests) == 2 and client.usage.cost <= 0.3


def test_settings_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings("http://x").max_cost = 5
    assert json.dumps(dataclasses.asdict(settings("http://x")))

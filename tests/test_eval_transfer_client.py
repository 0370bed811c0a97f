"""A policy behind an endpoint that fails, stalls, rate-limits and answers rubbish."""

import concurrent.futures
import dataclasses
import json
import math
import threading
import time

import pytest
from chat_server import GOOD, completion, serve
from doubles import FakePool, make_task

from evolving_rl_jax.eval.transfer.chat import ChatDriver
from evolving_rl_jax.eval.transfer.client import (
    BudgetSpent,
    ChatClient,
    EndpointError,
    EndpointSettings,
    TooLong,
)
from evolving_rl_jax.types import ENV_ERROR, OK, TIMEOUT, TRUNCATED

MESSAGES = [{"role": "user", "content": "hello"}]


def settings(url, **changes):
    # Patient where the server answers: on a busy machine even a good answer takes a while.
    fast = {"timeout_s": 60.0, "first_wait_s": 0.01, "attempts": 4, "concurrency": 4}
    return EndpointSettings(url, "a-model", **{**fast, **changes})


def ask(url, **changes):
    client = ChatClient(settings(url, **changes))
    try:
        return client.complete(MESSAGES), client.usage
    finally:
        client.close()


def echo(messages):
    return f"{len(messages)} messages"


def first(*faults):
    """The given faults for the first requests, good answers after them."""
    return lambda n: faults[n] if n < len(faults) else None


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


# -- episodes --------------------------------------------------------------------------------------


def winner(messages):
    return GOOD.format(action="win" if len(messages) > 3 else "look")


def play(url, tasks, pool=None, **changes):
    pool = pool or FakePool()
    driver = ChatDriver(ChatClient(settings(url, **changes)), pool, max_steps=4)
    episodes = {}
    for i, (task, skill) in enumerate(tasks):
        driver.play(i, task, skill, lambda e, _h, i=i: episodes.setdefault(i, e))
    error = None
    try:
        driver.run()
    except (EndpointError, BudgetSpent) as found:
        error = found
    return episodes, error, pool


def test_episodes_are_played_side_by_side():
    tasks = [(make_task(f"t{i}"), f"skill {i}" if i % 2 else "") for i in range(12)]
    lock, together = threading.Lock(), threading.Barrier(4, timeout=60)
    asked, asking = [], []  # requests asked at the same time, as each came; now

    def say(messages):
        with lock:
            asking.append(messages)
            asked.append(len(asking))
        if len(asked) <= 4:
            together.wait()  # the first answers wait for each other
        with lock:
            asking.remove(messages)
        return winner(messages)

    with serve(say) as (server, url):
        episodes, error, pool = play(url, tasks)
    assert error is None and len(episodes) == 12 and not pool.running
    assert all(e.won and e.status == OK and len(e.turns) == 2 for e in episodes.values())
    assert pool.actions[3] == ["look", "win"]
    assert max(asked) == 4
    systems = {r["messages"][0]["content"] for r in server.requests}
    assert sum("skill 3" in s for s in systems) == 1 and len(systems) == 7
    longest = max(server.requests, key=lambda r: len(r["messages"]))["messages"]
    assert [m["role"] for m in longest] == ["system", "user", "assistant", "user"]
    assert "Task: find t" in longest[1]["content"] and "- win" in longest[1]["content"]


def test_what_the_model_says_is_played_however_odd():
    with serve(lambda messages: "I refuse \u0000 {") as (_, url):
        episodes, error, pool = play(url, [(make_task("t"), "")])
    assert error is None and not episodes[0].won and episodes[0].status == TRUNCATED
    assert len(episodes[0].turns) == 4 and not any(t.valid for t in episodes[0].turns)


def test_a_thought_is_not_an_action():
    thought = "<think>Perhaps <action>lose</action>?</think>"
    with serve(lambda m: thought + winner(m)) as (server, url):
        episodes, error, pool = play(url, [(make_task("t"), "")])
    assert error is None and episodes[0].won and pool.actions[0] == ["look", "win"]
    assert episodes[0].turns[0].output.startswith("<think>") and episodes[0].turns[0].valid
    assert "<think>" not in server.requests[-1]["messages"][2]["content"]


def test_a_model_that_only_thinks_loses_its_turns():
    """Its empty answers are played: they are its own, and the episode counts."""
    body = {**completion(""), "choices": [{"message": {"content": None, "reasoning": "Hm."}}]}
    with serve(winner, lambda n: (200, {}, body)) as (_, url):
        episodes, error, _ = play(url, [(make_task("t"), "")])
    assert error is None and episodes[0].status == TRUNCATED and episodes[0].scored
    assert [t.output for t in episodes[0].turns] == [""] * 4


def test_one_lost_episode_does_not_touch_the_others():
    def say(messages):
        return winner(messages)

    with serve(say) as (server, url):
        server.faults = lambda n: (
            (500, {}, b"") if "find t1\n" in server.requests[n]["messages"][1]["content"] else None
        )
        episodes, error, _ = play(url, [(make_task(f"t{i}"), "") for i in range(4)])
    assert error is None and episodes[1].status == TIMEOUT
    assert "no answer after 4 attempts: HTTP 500" in episodes[1].error
    assert all(episodes[i].won for i in (0, 2, 3))


def test_an_episode_that_outgrows_the_context_is_truncated_and_the_rest_goes_on():
    """As on our own engine: it counts, and it was not won."""
    status, body = TOO_LONG[0]
    with serve(winner) as (server, url):
        server.faults = lambda n: (
            (status, {}, body)
            if len(m := server.requests[n]["messages"]) > 2 and "find t1\n" in m[1]["content"]
            else None
        )
        episodes, error, pool = play(url, [(make_task(f"t{i}"), "") for i in range(4)])
    assert error is None and not pool.running
    assert episodes[1].status == TRUNCATED and not episodes[1].won and episodes[1].scored
    assert len(episodes[1].turns) == 1 and "maximum context length" in episodes[1].error
    assert all(episodes[i].won for i in (0, 2, 3))


def test_a_context_that_holds_no_first_prompt_ends_the_run():
    """Else everything would count as lost without one answer."""
    status, body = TOO_LONG[1]
    with serve(winner, lambda n: (status, {}, body)) as (_, url):
        episodes, error, _ = play(url, [(make_task(f"t{i}"), "") for i in range(20)])
    assert isinstance(error, EndpointError) and "5 episodes in a row without" in str(error)
    assert {e.status for e in episodes.values()} == {TRUNCATED}


def test_an_environment_that_fails_is_not_the_models_loss():
    with serve(winner) as (_, url):
        episodes, _, _ = play(url, [(make_task(f"t{i}"), "") for i in range(3)], FakePool({1: 1}))
    assert [episodes[i].status for i in range(3)] == [OK, ENV_ERROR, OK]


def test_an_endpoint_that_is_down_ends_the_run():
    with serve(winner, lambda n: (503, {}, b"")) as (server, url):
        tasks = [(make_task(f"t{i}"), "") for i in range(50)]
        episodes, error, pool = play(url, tasks, concurrency=2, attempts=2)
    assert isinstance(error, EndpointError) and "5 episodes in a row without" in str(error)
    assert len(episodes) == 5 and not pool.running and len(server.requests) < 20


def test_the_cap_ends_the_run_and_keeps_what_was_played():
    prices = {"price_in": 1000.0, "price_out": 0.0, "max_cost": 5.0, "concurrency": 1}
    with serve(winner) as (_, url):
        tasks = [(make_task(f"t{i}"), "") for i in range(99)]
        episodes, error, _ = play(url, tasks, **prices)
    assert isinstance(error, BudgetSpent) and 0 < len(episodes) < 99
    assert all(e.won for e in episodes.values())


def test_settings_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings("http://x").max_cost = 5
    assert json.dumps(dataclasses.asdict(settings("http://x")))


# -- other benchmarks than households --------------------------------------------------------------


def web_play(url, **changes):
    pool = FakePool()
    driver = ChatDriver(ChatClient(settings(url)), pool, max_steps=4, **changes)
    episodes = []
    driver.play(
        0,
        make_task("t", env="mind2web", text="Book a room"),
        "the skill",
        lambda e, _h: episodes.append(e),
    )
    driver.run()
    return episodes[0], pool


def clicks(messages):
    """Clicks through three pages, then says the magic word of the double."""
    turn = sum(m["role"] == "assistant" for m in messages)
    done = "seen 3" in messages[-1]["content"] or turn >= 2
    return GOOD.format(action="win" if done else '{"op": "CLICK", "ref": "E1"}')


def test_web_tasks_are_played_in_their_own_words():
    with serve(clicks) as (server, url):
        episode, pool = web_play(url)
    first = server.requests[0]["messages"]
    assert (
        "carries out a task on web sites" in first[0]["content"]
        and "the skill" in first[0]["content"]
    )
    assert not any("household" in m["content"] for r in server.requests for m in r["messages"])
    assert (
        pool.actions[0][0] == '{"op": "CLICK", "ref": "E1"}'
    )  # as it was said, and not in lower case
    assert episode.won and episode.turns[0].valid and not episode.turns[-1].valid


def test_a_prompt_shows_as_many_turns_as_the_run_says():
    """Pages are long: with a recent context the oldest turns are left out, as on our own engine."""
    sizes = {}
    for recent in (None, 1, 0):
        with serve(lambda m: GOOD.format(action="look")) as (server, url):
            web_play(url, recent_turns=recent)
        sizes[recent] = [len(r["messages"]) for r in server.requests]
        roles = [m["role"] for m in server.requests[-1]["messages"]]
        assert roles[:2] == ["system", "user"] and roles[-1] == "user"
    assert sizes == {None: [2, 4, 6, 8], 1: [2, 4, 4, 4], 0: [2, 2, 2, 2]}

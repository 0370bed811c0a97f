"""Episodes of a policy behind an endpoint: side by side, whatever it answers, in each benchmark's words."""

import threading

import pytest
from chat_server import GOOD, TOO_LONG, completion, serve, settings
from doubles import FakePool, make_task

from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.eval.transfer.chat import ChatDriver, _Play
from evolving_rl_jax.eval.transfer.client import (
    BudgetSpent,
    ChatClient,
    EndpointError,
)
from evolving_rl_jax.types import ENV_ERROR, OK, TIMEOUT, TRUNCATED


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


@pytest.mark.parametrize("shown", ["all", "first", "changed", "none"])
def test_an_endpoint_is_shown_what_the_engine_shows(shown):
    """Message by message what the chat prompts of a policy of one's own hold."""
    seen = [("a room", ("go", "look")), ("a shelf", ("look", "take")), ("a cup", ("look",))]
    play = _Play(make_task("t", text="find a cup"), "", None, seen=seen, said=["one", "two"])
    messages = ChatDriver(None, None, 5, show_actions=shown)._messages(play)
    texts = benchmark("alfworld").texts.chat
    assert messages[0]["content"] == texts.system("", show_actions=shown)
    listed = [[a for a in ("go", "look", "take") if f"- {a}" in m["content"]] for m in messages[1:]]
    assert listed[0] == ([] if shown == "none" else ["go", "look"])
    later = {"all": [["look", "take"], ["look"]], "changed": [["go", "take"], ["take"]]}
    assert [listed[2], listed[4]] == later.get(shown, [[], []])


def test_a_prompt_that_is_refused_leaves_its_episode_out_and_an_empty_answer_is_written_as_one():
    def say(messages):
        return "" if len(messages) == 2 else winner(messages)

    def faults(n):
        return (400, {}, {"error": "content_filter"}) if n == 2 else None

    with serve(say, faults) as (server, url):
        episodes, error, _ = play(url, [(make_task(f"t{i}"), "") for i in range(3)], concurrency=1)
    assert error is None
    assert [episodes[i].status for i in range(3)] == [OK, TIMEOUT, OK]
    assert "content_filter" in episodes[1].error
    said = [m["content"] for r in server.requests for m in r["messages"]]
    assert all(said) and "(no answer)" in said

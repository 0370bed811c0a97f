"""MiniWoB++ in a real Chromium: what is shown and done, faults, and that nothing is left running."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from miniwob_pages import browsed, descendants, drivers, gone, play, task

pytest.importorskip("ml_collections")

from evolving_rl_jax import envs
from evolving_rl_jax.envs.base import EnvError
from evolving_rl_jax.envs.conformance import checks
from evolving_rl_jax.envs.miniwob import chromium
from evolving_rl_jax.envs.miniwob.browser import PageError
from evolving_rl_jax.envs.miniwob.env import Options, make
from evolving_rl_jax.envs.miniwob.solvers import SCRIPTS, View
from evolving_rl_jax.envs.pool.play import play_all
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.envs.web.observation import split_observation

pytestmark = browsed


@pytest.fixture(scope="module")
def env():
    made = make(Options(answer_s=300.0))
    yield made
    made.browser.close()


def act(env, op, ref, value=""):
    return env.step(json.dumps({"op": op, "ref": f"e{ref}", "value": value}))


def page(reply):
    return split_observation(reply.text)[2]


@pytest.mark.parametrize("family", ["click-checkboxes", "enter-text", "click-tab-2"])
def test_scripts_win_through_the_action_language(env, family):
    for seed in range(3):
        answers, won = play(env, family, seed)
        assert won and answers[-1] == "The task is completed."


def test_a_page_is_shown_as_other_web_pages_are(env):
    reply = env.reset(task("login-user", 3))
    _, earlier, lines = split_observation(reply.text)
    assert earlier == [] and lines[1].startswith('textbox "Username" [ref=e2]')
    reply = act(env, "TYPE", 2, "Ann Lee")
    assert split_observation(reply.text)[1] == ['TYPE textbox "Username": Ann Lee']
    assert page(reply)[1].endswith('= "Ann Lee"')
    reply = act(env, "TYPE", 2, "b")
    assert page(reply)[1].endswith('= "b"'), "what is typed replaces what was there"


def test_lists_boxes_and_keys(env):
    reply = env.reset(task("choose-list", 0))
    names = page(reply)[0].partition(" of ")[2].split(" | ")
    reply = act(env, "SELECT", 1, names[2].upper())
    assert f'= "{names[2]}"' in page(reply)[0]
    reply = env.reset(task("click-checkboxes", 1))
    assert "checked" in page(act(env, "CLICK", 2))[1]
    assert "checked" not in page(act(env, "CLICK", 2))[1]
    reply = env.reset(task("use-slider", 0))
    shown = int(page(reply)[2].split('"')[1])
    assert int(page(act(env, "KEY", 2, "ArrowLeft"))[2].split('"')[1]) == shown - 1


def test_what_cannot_be_done_costs_a_step_and_says_why(env):
    env.reset(task("click-checkboxes", 1))
    for action, why in (
        ("click it", "no JSON object"),
        ('{"op": "FLY", "ref": "e1"}', "op must be one of CLICK, TYPE, SELECT, KEY"),
        ('{"op": "CLICK", "ref": "e99"}', "there is no e99 on the page"),
        ('{"op": "KEY", "ref": "e2"}', "KEY needs a value"),
        ('{"op": "KEY", "ref": "e2", "value": "Hyper"}', "no such key"),
        ('{"op": "TYPE", "ref": "e2", "value": "x"}', "no text can be typed there"),
        ('{"op": "SELECT", "ref": "e2", "value": "x"}', "nothing can be selected there"),
    ):
        reply = env.step(action)
        assert not reply.done and reply.reward == 0
        assert why in split_observation(reply.text)[1][-1]
    assert len(split_observation(reply.text)[1]) == 7


def test_a_wrong_action_ends_without_reward(env):
    env.reset(task("click-test-2", 0))
    reply = act(env, "CLICK", 2)
    assert reply.done and not reply.won and reply.reward == 0
    with pytest.raises(EnvError, match="after the end"):
        act(env, "CLICK", 2)


def test_nothing_of_an_episode_is_in_the_next(env):
    first = env.reset(task("focus-text-2", 1)).text
    act(env, "KEY", 3, "q")
    assert env.reset(task("focus-text-2", 1)).text == first


def test_the_clock_of_the_page_stands_still(env):
    """Neither how long an agent thinks nor the day on which it plays is in what a page does."""
    env.reset(task("terminal", 0))
    said = env.browser.call("reset", env._frame, 0)
    assert "Jan 15 2020" in said["html"]


def test_unknown_and_unplayed_families_are_named(env):
    for family, words in (
        ("fly-kite", "miniwob has no family 'fly-kite'"),
        ("drag-box", "drag-box is not played: needs the path of a pointer"),
    ):
        with pytest.raises(EnvError, match=words):
            env.reset(task(family))
    assert env.reset(task("click-test")).text


PAGE = """<html><head><script src="{core}"></script><script>
var genProblem = function() {{ {problem} }};
window.onload = function() {{ core.startEpisode(); }};
</script></head><body><div id="wrap"><div id="query">Click it.</div>
<div id="area"><button onclick="{click}">Go</button></div></div></body></html>"""


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """Makes pages of the package's form: (name, problem, click)."""
    core = (chromium.html_folder().parent / "core" / "core.js").as_uri()
    monkeypatch.setattr(chromium, "html_folder", lambda: tmp_path)
    from evolving_rl_jax.envs.miniwob import env as miniwob_env

    monkeypatch.setattr(miniwob_env, "refuse", lambda family: None)

    def write(name, problem="", click=""):
        (tmp_path / f"{name}.html").write_text(PAGE.format(core=core, problem=problem, click=click))

    return write


def test_a_page_that_raises_is_named_and_the_browser_goes_on(env, pages):
    pages("raises", problem="null.x")
    pages("fine", click="core.endEpisode(1)")
    life = env.browser.life
    with pytest.raises(PageError, match="the page raises of miniwob raised: .*null"):
        env.reset(task("raises"))
    env.reset(task("fine"))
    assert act(env, "CLICK", 1).won and env.browser.life == life


@pytest.mark.parametrize("click", ["alert(1)", "for (;;) {}"], ids=["alert", "endless"])
def test_a_hung_browser_is_replaced_and_only_its_episode_fails(pages, click):
    pages("hangs", click=click)
    pages("fine", click="core.endEpisode(1)")
    first, second = (make(Options(answer_s=300.0)) for _ in range(2))
    assert first.browser is second.browser
    shown = second.reset(task("fine")).text
    first.reset(task("hangs"))
    first.browser._running.config.timeout = 2.0  # of this one call
    with pytest.raises(EnvError, match="the browser failed at the page hangs and was ended"):
        act(first, "CLICK", 1)
    assert act(second, "CLICK", 1).won, "played again in the new browser"
    assert second.reset(task("fine")).text == shown
    first.browser.close()


def test_a_browser_that_grows_is_replaced_between_episodes(monkeypatch):
    from evolving_rl_jax.envs.miniwob import browser

    monkeypatch.setattr(browser, "_LOOK_EVERY", 2)
    env = make(Options(answer_s=300.0, browser_mb=1.0))
    for _ in range(2):
        assert play(env, "click-test-2", 0)[1]
    assert env.browser.life == 2
    env.browser.close()


def test_nothing_is_fetched(env):
    """Neither a name nor an address is reached from a page, those of this machine neither."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env.reset(task("click-test"))
        code = (
            "const [url, done] = arguments;"
            "fetch(url).then(() => done('reached'), e => done(String(e)))"
        )
        for host in ("localhost", "127.0.0.1"):
            url = f"http://{host}:{server.server_port}/"
            said = env.browser._running._driver.execute_async_script(code, url)
            assert "Failed to fetch" in said
        server.shutdown()
    assert not asked


def test_a_killed_browser_masks_the_episode_that_it_served():
    env, other = (make(Options(answer_s=300.0)) for _ in range(2))
    shown = other.reset(task("click-option", 1)).text
    env.reset(task("click-option", 2))
    os.killpg(env.browser.pids()[0], signal.SIGKILL)
    with pytest.raises(EnvError, match="was ended"):
        act(env, "CLICK", 1)
    reply = act(other, "CLICK", 2)
    assert page(reply) == [*shown.split("Page:\n")[1].split("\n")[:1], *page(reply)[1:]]
    env.browser.close()


def test_nothing_is_left_after_exit_and_after_a_killed_owner():
    code = (
        "import sys, time; sys.path[:0] = {path!r}\n"
        "from miniwob_pages import task\n"
        "from evolving_rl_jax.envs.miniwob.env import Options, make\n"
        "env = make(Options(answer_s=300.0)); env.reset(task('click-test')); print('up', flush=True)\n"
        "sys.stdin.read(1)"
    )
    for killed in (False, True):
        child = subprocess.Popen(
            [sys.executable, "-c", code.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout.readline() == b"up\n"
        started = descendants(child.pid)
        assert len(started) > 3 and not gone(started, 0.0)
        if killed:
            child.kill()
        child.communicate()
        assert gone(started)


def test_one_browser_a_worker_ends_with_it():
    with EnvPool("miniwob", {}, num_workers=1, deadline_s=300.0) as pool:
        for i in range(3):
            pool.reset(i, task("click-option", i))
        pool.flush()
        answered = 0
        while answered < 3:
            answered += len(pool.poll(1.0))
        (worker,) = pool.worker_pids()
        started = descendants(worker)
        assert len(drivers(worker)) == 1
        os.kill(worker, signal.SIGKILL)
        assert gone(started)


@pytest.mark.slow
def test_twenty_kills_leave_nothing_and_count_nothing_wrongly():
    """Every episode that a script plays is won, or is masked; killed are browsers and workers in turn."""
    kills, ends, everything = [], {}, {}
    tasks = [task("click-option", i) for i in range(90)]
    scripts = {}
    with EnvPool("miniwob", {}, num_workers=2, deadline_s=300.0) as pool:

        def harm():
            worker = pool.worker_pids()[len(kills) // 2 % 2]
            found = drivers(worker)
            everything.update(descendants(worker))
            if len(kills) % 2:
                os.kill(worker, signal.SIGKILL)
            elif found:
                os.killpg(found[0], signal.SIGKILL)
            else:
                return  # it was just killed
            kills.append(worker)

        def turn(i, reply):
            if len(kills) < 20 and (len(ends) + i) % 3 == 0:
                harm()
            if reply.status != "ok" or getattr(reply, "done", False):
                ends[i] = reply
                return None
            if i not in scripts:
                sentence = reply.text.partition("\n")[0].removeprefix("Task: ")
                scripts[i] = SCRIPTS["click-option"](sentence, View(reply.text))
                return next(scripts[i]).to_json()
            return scripts[i].send(View(reply.text)).to_json()

        for first in range(0, len(tasks), 6):  # a few at a time: each has its own frame
            offset = first

            def of(i, reply, offset=offset):
                return turn(offset + i, reply)

            assert not play_all(pool, tasks[first : first + 6], of, seconds=3000.0)
            if len(kills) >= 20 and first > 60:
                break
        for worker in pool.worker_pids():
            everything.update(descendants(worker))
    assert len(kills) == 20
    scored = [r for r in ends.values() if r.status == "ok"]
    masked = [r for r in ends.values() if r.status != "ok"]
    assert scored and all(r.won for r in scored)
    assert len(masked) <= 20 and all(r.status == "env_error" for r in masked)
    assert gone(everything)
    print(f"20 kills: {len(scored)} episodes won, {len(masked)} masked")


@pytest.mark.slow
def test_it_keeps_the_contract():
    tasks = [task("click-option", 1), task("enter-text", 2), task("click-tab-2", 3)]
    assert [f for f in checks("miniwob", tasks, steps=3) if not f.ok] == []


def test_the_benchmark_says_that_browser_and_driver_fit():
    from evolving_rl_jax.config import default_config

    said = envs.benchmark("miniwob").prove(default_config().env)
    assert said.startswith("Chromium ") and said.endswith(" fit")

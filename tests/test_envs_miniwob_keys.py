"""MiniWoB++'s keyboard, focus and lists as a person has them, and pages beside each other."""

import contextlib
import json

import pytest
from miniwob_pages import browsed, task

pytest.importorskip("ml_collections")

from evolving_rl_jax.envs.base import EnvError
from evolving_rl_jax.envs.miniwob import benchmark
from evolving_rl_jax.envs.miniwob.browser import Browser, PageError
from evolving_rl_jax.envs.miniwob.env import Options, make
from evolving_rl_jax.envs.web.observation import split_observation

pytestmark = browsed
AUTOCOMPLETE = "use-autocomplete"


@pytest.fixture(scope="module")
def env():
    made = make(Options(answer_s=301.0, snapshot_tokens=4000))
    yield made
    made.browser.close()


@pytest.fixture
def beside(env):
    """Another episode in the same browser."""
    return make(Options(answer_s=301.0, snapshot_tokens=4000))


def act(env, op, ref, value=""):
    return env.step(json.dumps({"op": op, "ref": f"e{ref}", "value": value}))


def page(reply):
    return split_observation(reply.text)[2]


def earlier(reply):
    return split_observation(reply.text)[1][-1]


def ref(reply, words):
    (found,) = [i for i, line in enumerate(page(reply), 1) if line.startswith(words)]
    return found


def completed(env, family, seed, between=lambda: None):
    """What is seen while the menu of a field is used by keys."""
    reply = env.reset(task(family, seed))
    seen = [reply.text]
    for op, value in (("TYPE", reply.text.split('"')[1]), ("KEY", "ArrowDown"), ("KEY", "Enter")):
        between()
        reply = act(env, op, 2, value)
        seen.append(reply.text)
    between()
    reply = act(env, "CLICK", ref(reply, 'button "Submit"'))
    return [*seen, reply.text]


@pytest.mark.parametrize("family", [AUTOCOMPLETE, "use-autocomplete-nodelay"])
def test_an_episode_is_the_same_alone_and_beside_others(env, beside, family):
    alone = [completed(env, family, seed) for seed in range(2)]
    beside.reset(task("enter-text", 1))
    words = iter("abcdefghijklmnop")

    def another():
        act(beside, "TYPE", 1, next(words))
        act(beside, "CLICK", 1)

    assert [completed(env, family, seed, another) for seed in range(2)] == alone
    beside.close()


def test_a_page_keeps_its_focus_while_another_one_acts(env, beside):
    env.reset(task("enter-text", 1))
    act(env, "CLICK", 1)
    run = env.browser._running._devtools
    frame = f"pages.frame({json.dumps(env._frame.key)})"
    script = f"""(() => {{
      const page = {frame}; page.heard = [];
      for (const kind of ['focus', 'blur'])
        page.addEventListener(kind, e => page.heard.push(kind), true);
      return page.document.activeElement.tagName; }})()"""
    assert run("Runtime.evaluate", expression=script)["result"]["value"] == "INPUT"
    beside.reset(task("enter-text", 2))
    act(beside, "TYPE", 1, "a")
    act(env, "KEY", 1, "b")
    heard = f"[{frame}.heard.join(), {frame}.document.hasFocus()].join(' ')"
    assert run("Runtime.evaluate", expression=heard)["result"]["value"] == " true"
    act(env, "CLICK", 2)  # its own turn: the field is left
    assert run("Runtime.evaluate", expression=heard)["result"]["value"].startswith("blur")
    beside.close()


def test_a_list_of_several_shows_what_is_chosen_and_lets_go_of_it(env):
    reply = env.reset(task("click-scroll-list", 4))
    place = ref(reply, "listbox") if any("listbox" in x for x in page(reply)) else 1
    names = page(reply)[place - 1].partition(" of ")[2].split(" | ")[:2]
    act(env, "SELECT", place, names[0])
    both = act(env, "SELECT", place, names[1])
    assert f'= "{names[0]}, {names[1]}"' in page(both)[place - 1]
    assert f'= "{names[1]}"' in page(act(env, "SELECT", place, names[0]))[place - 1]


def test_enter_and_space_press_what_has_the_focus(env):
    env.reset(task("click-test", 0))
    assert act(env, "KEY", 1, "Enter").won
    env.reset(task("click-test", 0))
    assert act(env, "KEY", 1, " ").won
    reply = env.reset(task("click-checkboxes", 1))
    assert "checked" in page(act(env, "KEY", 2, "Space"))[1]
    assert earlier(act(env, "KEY", 2, "Space")) == f"KEY {page(reply)[1].split(' [')[0]}: Space"


def test_signs_are_no_arrows(env):
    """40 is "(" as a character and an arrow as a key: menus of completions would take it for one."""
    reply = env.reset(task("book-flight", 0))
    field = ref(reply, 'textbox "From:"') if any("From:" in x for x in page(reply)) else 1
    reply = act(env, "TYPE", field, "Salem, OR (&.'")
    assert page(reply)[field - 1].endswith('= "Salem, OR (&.\'"')


def test_a_field_that_takes_no_keys_keeps_what_it_holds(env):
    reply = env.reset(task("use-spinner", 0))
    field = next(i for i, line in enumerate(page(reply), 1) if '= "0"' in line)
    reply = act(env, "TYPE", field, "7")
    assert page(reply)[field - 1].endswith('= "0"')
    assert earlier(reply).endswith("(not done: the field takes no keys)")


def test_a_color_is_typed(env):
    reply = env.reset(task("use-colorwheel", 0))
    colors = {"red": "ff0000", "blue": "0000ff", "yellow": "ffff00", "green": "008000"}
    seed = next(
        s for s in range(60) if env.reset(task("use-colorwheel", s)).text.split()[2] in colors
    )
    reply = env.reset(task("use-colorwheel", seed))
    field = next(i for i, line in enumerate(page(reply), 1) if line.startswith("textbox"))
    reply = act(env, "TYPE", field, colors[reply.text.split()[2]])
    assert act(env, "CLICK", ref(reply, 'button "Submit"')).won


def test_a_page_that_went_elsewhere_serves_no_other_episode(env):
    env.reset(task("click-test", 0))
    key = env._frame.key
    away = f"pages.frame({json.dumps(key)}).location = 'about:blank'"
    env.browser._running._devtools("Runtime.evaluate", expression=away)
    with contextlib.suppress(PageError):
        for _ in range(50):
            act(env, "KEY", 1, "a")
        pytest.fail("the page is still there")
    env.reset(task("click-test", 0))
    assert env._frame.key != key and act(env, "CLICK", 1).won


def test_a_browser_that_died_between_episodes_fails_none():
    browser = Browser(300.0, 1e6)
    frame = browser.take("click-test")
    browser.give(frame)
    browser._running._process.kill()
    browser._running._process.wait()
    frame = browser.take("click-test")
    assert frame.life == 2
    browser.close()
    with pytest.raises(EnvError, match="is gone"):
        browser.call("reset", frame, 0)


def test_what_a_page_hides_makes_other_tasks(tmp_path):
    from evolving_rl_jax.envs.miniwob import index

    one = index.Planned("train", "guess-number", 2), index.Planned("train", "click-test", 2)
    index.write(tmp_path, lambda family, seed: f"Task: {family}\n", one * 2, lambda n: None)
    assert sorted(t.task_type for t in index.load_tasks(tmp_path)) == [
        "click-test", "guess-number", "guess-number",
    ]  # fmt: skip


def test_pages_that_are_played_by_what_is_not_shown_are_not_demonstrated():
    tasks = benchmark.BENCHMARK
    assert (
        tasks.teaches(task("click-test"))
        and tasks.lesson_group(task("click-test", 3)) == "click-test/3"
    )
    assert not tasks.teaches(task("find-greatest")) and not tasks.teaches(task("multi-layouts"))

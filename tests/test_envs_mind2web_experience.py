"""Whose experience helps a web task, and answers that hold more than one would think."""

import dataclasses
import json

import pytest
from doubles import compact_prompts, make_task
from web_data import FORM, action, official

from evolving_rl_jax.envs.mind2web.actions import WebAction, parse_action
from evolving_rl_jax.envs.mind2web.env import (
    gold_line,
    observation_text,
    observed_site,
    split_observation,
)
from evolving_rl_jax.envs.mind2web.records import from_official
from evolving_rl_jax.envs.mind2web.texts import TEXTS, parse_web_compact, shorten_page
from evolving_rl_jax.eval.transfer.chat import ChatDriver, _Play
from evolving_rl_jax.rollout.attempts import Attempt, read_attempts
from evolving_rl_jax.rollout.contexts import make_context
from evolving_rl_jax.rollout.prompts import make_prompts
from evolving_rl_jax.skills.records import SkillRecord, belonging
from evolving_rl_jax.skills.retrieval import Retriever, SkillRetriever

# (id, site, subdomain, domain, sentence)
SENTENCES = [
    ("t1", "tablely", "Restaurant", "Travel", "Book a table for two in Boston on March 18"),
    ("t2", "tablely", "Restaurant", "Travel", "Show the wine list of the nearest bistro"),
    ("t3", "dinepick", "Restaurant", "Travel", "Order a vegan lunch for pickup"),
    ("t4", "wheelz", "Car rental", "Travel", "Rent a used truck in Boston from March 18 to 20"),
    ("t5", "lotcars", "Cars", "Shopping", "Find a used truck near Boston made after March 2018"),
    ("t6", "lotcars", "Cars", "Shopping", "Compare two red sedans by price"),
]


def task(name, site, subdomain, domain, text):
    return make_task(
        name,
        env="mind2web",
        text=text,
        group=site,
        task_type=domain,
        meta={"kin": [subdomain, domain]},
    )


TASKS = [task(*row) for row in SENTENCES]
QUERY = task(
    "q", "tablely", "Restaurant", "Travel", "Rent a used truck in Boston from March 18 for 4"
)


def test_same_site_first_then_subdomain_then_domain_then_text():
    by_text = [t.id for t in Retriever(TASKS).retrieve(QUERY, 6)]
    assert by_text[0] in ("t4", "t5")
    found = [t.id for t in Retriever(TASKS, prefer="group").retrieve(QUERY, 6)]
    assert set(found[:2]) == {"t1", "t2"} and found[2:4] == ["t3", "t4"]
    assert set(found[4:]) == {"t5", "t6"}


def test_a_site_of_several_subdomains_still_comes_first():
    other = task("t0", "tablely", "Cars", "Shopping", "Buy a gift card")
    found = Retriever([*TASKS, other], prefer="group").retrieve(QUERY, 7)
    assert [t.id for t in found[2:4]] == ["t0", "t3"]


def records():
    skill = {"name": "a", "description": "b"}
    return [
        SkillRecord(
            f"s{t.id}", 0, t.id, t.content_hash, source_text=t.text, skill=skill, meta=belonging(t)
        )
        for t in TASKS
    ]


def test_skills_of_the_same_site_come_first_too():
    found = {}
    for prefer in ("text", "group", "other"):
        retriever = SkillRetriever(prefer=prefer)
        retriever.add(records())
        found[prefer] = [r.source_task_id for r, _ in retriever.retrieve(QUERY, 6)]
    assert found["text"][0] in ("t4", "t5")
    assert set(found["group"][:2]) == {"t1", "t2"}  # t2 shares no word of weight with the query
    assert found["other"] and not {"t1", "t2"} & set(found["other"])


def test_a_record_says_where_its_source_belongs():
    assert belonging(TASKS[0]) == {"group": "tablely", "kin": ["Restaurant", "Travel"]}
    assert belonging(dataclasses.replace(make_task("x"), group="", meta={})) == {}


def test_prompts_name_the_site_in_both_styles():
    text = observation_text("find a room", (), 'button "Go" [ref=e1]', "tablely")
    assert "Site: tablely" in TEXTS.chat.opening(QUERY, text)
    assert TEXTS.compact.opening(text) == ["tablely", "Go"]


def test_a_chat_endpoint_gets_the_web_rules_and_only_the_page_of_the_turn():
    pages = [observation_text("find", ("x",) * i, f'button "P{i}" [ref=e1]', "s") for i in range(3)]
    play = _Play(QUERY, "", None, seen=[(p, ()) for p in pages], said=["a", "b"])
    messages = ChatDriver(None, None, 5, recent_turns=0)._messages(play)
    assert [m["role"] for m in messages] == ["system", "user"]
    assert "web sites" in messages[0]["content"] and '"ref"' in messages[0]["content"]
    assert "P2" in messages[1]["content"] and "P0" not in messages[1]["content"]


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("next > 12> click", WebAction("CLICK", 12)),
        ("a 3> b 12> type x > y", WebAction("TYPE", 12, "x > y")),
        ("price 5 > 3 7> select 10> more", WebAction("SELECT", 7, "10> more")),
        ("footer 7> click", WebAction("CLICK", 7)),
    ],
)
def test_a_compact_answer_is_split_at_the_last_number_before_an_operation(text, action):
    assert parse_web_compact(text) == (action.to_json(), True)


@pytest.mark.parametrize(
    "text", ["next > click", "12> fly", "12 click", "a 1> click\nb", "> click", ""]
)
def test_compact_answers_that_are_none(text):
    assert parse_web_compact(text) == (text.strip(), False)


def test_a_value_of_two_lines_is_one_line_of_the_history():
    step = action(FORM, "TYPE", "Oslo\n2. CLICK\u2028Norway")
    gold = from_official(official("x", actions=[step], action_reprs=["a"])).steps[0]
    line = 'TYPE textbox "City": Oslo 2. CLICK Norway'
    assert gold_line(gold) == line
    text = observation_text("find\na room", (gold_line(gold),), "page", "a site")
    assert split_observation(text) == ("find a room", [line], ["page"])
    assert observed_site(text) == "a site" and observed_site("won") == ""


def test_a_line_break_in_a_value_is_no_broken_json():
    assert parse_action('{"op": "TYPE", "ref": "e2", "value": "a\nb\tc"}') == WebAction("TYPE", 2, "a\nb\tc")  # fmt: skip
    assert json.loads(WebAction("TYPE", 2, "a\nb").to_json())["value"] == "a\nb"


def long_page(i):
    lines = [f'link "Menu {n}" [ref=e{n}]' for n in range(1, 200)]
    lines[150] = 'button "Add" (red) [ref=e151]'
    lines[20] = 'button "Add" (blue) [ref=e21]'
    return observation_text("find a mug", ("x",) * i, "\n".join(lines), "shop")


def test_a_past_page_is_shortened_to_what_was_acted_on_and_its_rivals():
    short = shorten_page(long_page(0), '{"op": "CLICK", "ref": "e151"}', 8)
    task, earlier, lines = split_observation(short)
    assert (task, earlier) == ("find a mug", []) and observed_site(short) == "shop"
    assert lines[0] == 'button "Add" (blue) [ref=e21]' and 'button "Add" (red) [ref=e151]' in lines
    assert len(lines) == 9 and lines[-1] == "(191 lines left out)"
    assert shorten_page(short, "", 20) == short and shorten_page("won", "", 1) == "won"
    assert len(split_observation(shorten_page(long_page(0), "nothing", 8))[2]) == 9


def test_an_extraction_may_show_of_every_page_what_was_acted_on_and_its_rivals_alone():
    prompts = make_prompts("compact", compact_prompts().tokenizer, TEXTS)
    context = make_context("recent", 0, prompts, QUERY, "", 2)
    for i in range(2):
        context.observe(long_page(i), ())
        ids = prompts.tokenizer.encode(f"add {i}> click")
        context.act(ids, [0.0] * len(ids), [0.0] * len(ids))
        context.acted('{"op": "CLICK", "ref": "e151"}')
    ids, *_ = read_attempts(prompts, [Attempt(context, True, "won")], 10**6)
    text = prompts.tokenizer.decode(ids)
    rivals = "Add blue Add red"
    assert text.count(rivals) == 2 and "Menu" not in text and "left out" not in text
    assert context.extracted == {"turns": 2, "turns_shortened": 2, "turns_dropped": 0}
    samples = [prompts.tokenizer.decode(s.tokens) for s in context.samples()]
    assert all("Menu 199" in text for text in samples)  # who acts reads all of it


@pytest.mark.parametrize(
    ("room", "shortened", "dropped"), [(10**6, 0, 0), (9000, 6, 0), (4800, 6, 0), (100, 0, 6)]
)
def test_an_extraction_shortens_old_pages_before_it_drops_them(room, shortened, dropped):
    prompts = make_prompts("compact", compact_prompts().tokenizer, TEXTS)
    context = make_context("recent", 0, prompts, QUERY, "")
    for i in range(7):
        context.observe(long_page(i), ())
        ids = prompts.tokenizer.encode("add 151> click")
        context.act(ids, [0.0] * len(ids), [0.0] * len(ids))
        context.acted('{"op": "CLICK", "ref": "e151"}')
    ids, request, *_ = read_attempts(prompts, [Attempt(context, True, "won")], room)
    assert context.extracted == {
        "turns": 7,
        "turns_shortened": shortened,
        "turns_dropped": dropped,
    }
    assert len(ids) + len(request) <= room or room == 100

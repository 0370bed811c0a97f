"""Web prompts, facts and demonstrations, on generated sites."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from chat_models import make_tokenizer_folder
from doubles import ByteTokenizer, digest
from web_data import SMALL

from evolving_rl_jax.envs.mind2web import facts as web_facts
from evolving_rl_jax.envs.mind2web.actions import Gold, WebAction, action_f1, parse_action
from evolving_rl_jax.envs.mind2web.corpus import collect_texts
from evolving_rl_jax.envs.mind2web.endings import completed
from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.sites import generate_sites
from evolving_rl_jax.envs.mind2web.store import load_web_tasks
from evolving_rl_jax.envs.mind2web.teacher import WebExpert, make_extraction, make_skill
from evolving_rl_jax.envs.mind2web.texts import (
    TEXTS,
    compact_text,
    parse_web,
    parse_web_compact,
)
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.envs.web.compact import compact_page
from evolving_rl_jax.envs.web.observation import observation_text
from evolving_rl_jax.models.tokenizer import NUMBERED_PIECES, load_tokenizer, train_tokenizer
from evolving_rl_jax.rollout.demonstrations import Demonstrator
from evolving_rl_jax.rollout.prompts import COMPACT_SPECIAL_TOKENS, make_prompts
from evolving_rl_jax.skills.schema import Skill, parse_skill
from evolving_rl_jax.types import Turn

pytest.importorskip("tensorflow_datasets")

ROLLOUT = SimpleNamespace(
    context="recent",
    recent_turns=0,
    max_steps=4,
    max_length=256,
    max_skill_tokens=40,
    num_source_episodes=1,
    extraction_lines=0,
)

OBSERVATION = (
    'Task: at birch bay find mug\nEarlier actions:\n1. TYPE textbox "Find": mug\nPage:\n'
    'button "Search" (footer) [ref=e1]\ncombobox "Size" [ref=e12] of S | M'
)
ENDING = (
    'TYPE textbox "Find" (footer): mug: nothing happened. The task has ended.\n'
    'These actions went on:\n1. CLICK link "Help"\n2. SELECT combobox "City": oslo'
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    generate_sites(folder / "raw", seed=5, spec=SMALL)
    build_index([folder / "raw"], folder / "out", budgets=())
    return load_web_tasks(folder / "out")


@pytest.fixture(scope="module")
def tokenizer(tasks, tmp_path_factory):
    texts = collect_texts([t for t in tasks if t.split == "warmstart"])
    return train_tokenizer(
        texts,
        vocab_size=800,
        out_dir=tmp_path_factory.mktemp("tokenizer"),
        special_tokens=COMPACT_SPECIAL_TOKENS,
        pieces=NUMBERED_PIECES,
    )


def test_compact_lines():
    assert compact_text('button "Search" (Footer) [ref=e7]') == "Search Footer 7"
    assert compact_text('textbox "City" [ref=e3] = "Oslo"') == "textbox City 3 = Oslo"
    assert compact_text('link "button" [ref=e1]') == "button 1"
    assert compact_text('SELECT combobox "City": TYPE A') == "select combobox City : TYPE A"


def test_what_is_typed_in_the_compact_form_keeps_its_case():
    # Officially values are compared with case: "boston, ma" for "Boston, MA" has an F1 of a third.
    gold = WebAction("TYPE", 12, "Boston, MA")
    answer = TEXTS.compact.answer("Where to", gold.to_json())
    assert answer == "Where to 12> type Boston, MA"
    action, valid = TEXTS.compact.parse(answer)
    assert valid and parse_action(action) == gold
    annotated = Gold((), gold.op, gold.value)
    assert action_f1(annotated, gold.op, parse_action(action).value) == 1.0


def test_compact_prompts(tokenizer, tasks):
    prompts = make_prompts("compact", tokenizer, TEXTS)
    text = tokenizer.decode(prompts.solver_prompt(tasks[0], "Press Search footer", OBSERVATION))
    assert text == (
        f"<task> {tasks[0].text}<skill> Press Search footer<obs> type textbox Find : mug<obs> "
        "Search footer combobox Size of S M<act>"
    )
    following = tokenizer.decode(prompts.next_turn(OBSERVATION))
    assert following == "<obs> Search footer combobox Size of S M<act>"
    asked = tokenizer.decode(prompts.extractor_prompt(False, ENDING))
    assert asked == (
        "<obs> ok Help ok City : oslo<obs> type textbox Find footer : mug: nothing "
        "happened<extract> failure<skill>"
    )
    won = prompts.extractor_prompt(True, completed(['CLICK link "Help"', "(no action)"]))
    assert tokenizer.decode(won) == "<obs> ok Help ok no action<extract> success<skill>"
    ids = prompts.action_ids("Size", WebAction("SELECT", 12, "M").to_json(), OBSERVATION)
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids[:-1]).strip() == "combobox Size> select M"
    action, valid = prompts.parse_action(tokenizer.decode(ids[:-1]), OBSERVATION)
    assert valid and parse_action(action) == WebAction("SELECT", 12, "M")
    skill = Skill("a", "Press Search footer.", decision_rules=("Then SAVE left.",))
    assert prompts.render_skill(skill) == "Press Search footer. Then SAVE left."


def test_prompts_of_a_step_do_not_depend_on_how_it_was_reached(tokenizer, tasks):
    prompts = make_prompts("compact", tokenizer, TEXTS)
    assert prompts.solver_prompt(tasks[0], "", OBSERVATION) == prompts.solver_prompt(
        tasks[0], "", OBSERVATION
    )
    with pytest.raises(
        ValueError, match="rollout.style must be one of compact, chat, chat_short, got 'x'"
    ):
        make_prompts("x", tokenizer, TEXTS)


@pytest.mark.parametrize(
    ("text", "action", "valid"),
    [
        ("search footer 7> click", WebAction("CLICK", 7), True),
        ("City 12> TYPE new york\n", WebAction("TYPE", 12, "new york"), True),
        ("city> type x", None, False),
        ("city 3> Select New York", WebAction("SELECT", 3, "New York"), True),
        ("city 2> press x", None, False),
        ("city 2", None, False),
        ("2> click", WebAction("CLICK", 2), True),
        ("code2> click", None, False),
        ("size 10 2> click", WebAction("CLICK", 2), True),
    ],
)
def test_compact_actions(text, action, valid):
    found, ok = parse_web_compact(text)
    assert (parse_action(found), ok) == (action, valid)


NAMES = (
    "Task: t\nEarlier actions:\nnone\nPage:\n"
    'button "Add" [ref=e1]\nlink "add" [ref=e2]\n'  # one name but for case
    'text "Find" [ref=e3]\ntextbox "Find" [ref=e4] = "mug"\n'
    'button "Add 1" [ref=e5]\n'  # called as the first one is with its number
    'button "x > click" [ref=e6]\nbutton [ref=e7]\n'
    'text "a name of many words, eight or so" [ref=e8]'
)


def test_names_of_compact_pages():
    assert compact_page(NAMES) == [
        "Add 1",
        "add 2",
        "text Find",
        "textbox Find = mug",
        "Add 1 5",
        "x > click",
        "button",
        "text a name of many words, eight or so 8",
    ]


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("textbox find> type Red Mug", WebAction("TYPE", 4, "Red Mug")),
        ("Textbox  Find > TYPE mug", WebAction("TYPE", 4, "mug")),
        ("textbox find 4> type mug", WebAction("TYPE", 4, "mug")),  # its number is as good
        ("add 1> click", WebAction("CLICK", 1)),
        ("add 1 5> click", WebAction("CLICK", 5)),
        ("x > click> click", WebAction("CLICK", 6)),
        ("button> click", WebAction("CLICK", 7)),
        ("text a name 8> click", WebAction("CLICK", 8)),
        ("add> click", None),  # two of that name
        ("find> click", None),  # none of that name
        ("text a name of many words, eight or so> click", None),
        ("textbox find> press x", None),
        ("textbox find", None),
        ("textbox find> click\nadd 1> click", None),
    ],
)
def test_elements_are_named_in_answers(text, action):
    found, valid = parse_web_compact(text, observation=NAMES)
    assert (parse_action(found), valid) == (action, action is not None)


@pytest.mark.parametrize("seed", range(20))
def test_what_a_teacher_writes_is_what_is_read(seed):
    rng = np.random.default_rng(seed)
    roles, words = (
        ["button", "link", "textbox", "text"],
        ["a", "A", "b", "1", "2", "a 1", "> click"],
    )
    names = [f'{rng.choice(roles)} "{rng.choice(words)}"' for _ in range(12)]
    page = "\n".join(f"{name} [ref=e{i}]" for i, name in enumerate(names, 1))
    seen = observation_text("t", (), page)
    for ref in range(1, 13):
        for action in (WebAction("CLICK", ref), WebAction("TYPE", ref, "x > select y")):
            text = TEXTS.compact.answer("it", action.to_json(), seen)
            found, valid = TEXTS.compact.parse(text, seen)
            assert valid and parse_action(found) == action, (text, page)


def test_tagged_actions_keep_their_case():
    text = '<reasoning>x</reasoning><ACTION> {"op": "TYPE", "ref": "e2", "value": "Oslo"} </ACTION>'
    assert parse_web(text) == ('{"op": "TYPE", "ref": "e2", "value": "Oslo"}', True)
    assert parse_web('<action>{"op": "CLICK", "ref": "e2"}</action>')[1] is False  # no reasoning
    assert parse_web("<reasoning></reasoning><action>click</action>") == ("click", False)
    assert parse_web("nothing") == ("nothing", False)


def test_facts_are_written_and_read():
    facts = {"checkout": "footer", "find": "left", "arrival": "slash", "sort": "none"}
    text = web_facts.facts_text(facts)
    assert text == "press checkout footer, use find left, write arrival slash, set sort none"
    assert web_facts.claims(text) == facts
    skill, _ = parse_skill(web_facts.skill_json("birch bay", facts))
    assert skill.name == "birch bay" and web_facts.claims(skill.description) == facts


def share_of_habits(task, skill_text):
    """Share of the habits of the task's site that a skill names rightly."""
    said, right = web_facts.claims(skill_text), web_facts.habits(task)
    return sum(said.get(slot) == place for slot, place in right.items()) / len(right)


def walk(task, pool, beliefs):
    """Turns and outcome of an expert without noise."""
    expert = WebExpert(task, np.random.default_rng(0), beliefs, 0.0)
    pool.reset(0, task)
    ((_, reply),) = pool.poll(None)
    turns = []
    while not getattr(reply, "done", False):
        action = expert.act(reply.text)
        turns.append(Turn(reply.text, "", action, True))
        pool.step(0, action)
        ((_, reply),) = pool.poll(None)
    return turns, reply.won


def test_what_attempts_reveal(tasks):
    pool = EnvPool("mind2web", num_workers=0)
    for task in tasks:
        right, wrong = web_facts.habits(task), web_facts.habits(task, wrong=True)
        third = {slot: choices[2] for slot, choices in task.meta["habits"].items()}
        first, second = (s["slot"] for s in task.meta["solution"] if s["slot"])
        late, later = ({**right, second: other[second]} for other in (wrong, third))
        for beliefs, known, open_ in (
            ([right], {first, second}, {}),
            ([wrong], {}, {first: {wrong[first]}}),
            ([wrong, wrong], {}, {first: {wrong[first]}}),
            ([wrong, third], {first}, {}),  # what is left is right
            ([late], {first}, {second: {wrong[second]}}),
            ([third, late], {first}, {second: {wrong[second]}}),
            ([late, later], {first, second}, {}),
        ):
            played = [walk(task, pool, b) for b in beliefs]
            assert [won for _, won in played] == [b == right for b in beliefs]
            found = web_facts.revealed(
                task, *((turns, web_facts.until_error(turns, won)) for turns, won in played)
            )
            assert found == ({s: right[s] for s in known}, open_)
        oracle = web_facts.given_skill(task, misleading=False)
        assert share_of_habits(task, oracle) == 1.0
        assert share_of_habits(task, web_facts.given_skill(task, misleading=True)) == 0.0
        assert share_of_habits(task, web_facts.fact_sentence(first, right[first])) == 0.5


def test_a_wrong_element_of_another_kind_reveals_nothing(tasks):
    task = tasks[0]
    pool = EnvPool("mind2web", num_workers=0)
    turns, _ = walk(task, pool, web_facts.habits(task))
    elements = web_facts.page_elements(turns[0].observation)
    ref = next(n for n, e in elements.items() if e[0] == "link")
    early = Turn(turns[0].observation, "", WebAction("CLICK", ref).to_json(), True)
    assert web_facts.revealed(task, ([early], [False])) == ({}, {})
    assert not web_facts.revealed(task, (turns[:-1], [True] * len(turns)))[1]  # cut off: all right


def test_demonstrations_are_of_mixed_quality(tasks, tokenizer):
    settings = SimpleNamespace(follow_skill=0.8, action_noise=0.02, good_extraction=0.4)
    prompts = make_prompts("compact", tokenizer, TEXTS)
    chosen = [t for t in tasks if t.split == "warmstart"] * 20
    runs = []
    for workers in (0, 1):
        with EnvPool("mind2web", num_workers=workers) as pool:
            runs.append(
                Demonstrator(pool, prompts, ROLLOUT, settings, 1).play(chosen, concurrent=50)
            )
    assert len(runs[0]) == len(chosen)
    for one, other in zip(*runs, strict=True):  # the same, whoever answers first
        assert [s.tokens.tolist() for s in one.samples] == [
            s.tokens.tolist() for s in other.samples
        ]
    won = np.mean([d.won for d in runs[0]])
    assert 0.25 < won < 0.6  # neither guessing alone nor knowing
    for d in runs[0]:
        for i, sample in enumerate(d.samples):
            trained = tokenizer.decode(sample.tokens[sample.loss_mask == 1])
            text = tokenizer.decode(sample.tokens)
            assert text.endswith(trained) and trained.endswith("<eos>")
            if "<extract>" in text:
                assert i == len(d.samples) - 1 and "<skill>" not in text.split("<obs>")[0]
                assert parse_skill(trained.removesuffix("<eos>"))[0] is not None
            else:
                assert sample.step == i and re.search(r"\w> (click|type \w|select \w)", trained)
    longest = max(len(s.tokens) for d in runs[0] for s in d.samples)
    assert longest <= 200


def test_what_is_taught_does_not_change(tasks):
    """Warm starts stay the same to the last digit; a new value here changes every run from scratch."""
    settings = SimpleNamespace(follow_skill=0.8, action_noise=0.02, good_extraction=0.4)
    prompts = make_prompts("compact", ByteTokenizer(), TEXTS)
    rollout = SimpleNamespace(**{**vars(ROLLOUT), "max_length": 10_000})
    chosen = [t for t in tasks if t.split == "warmstart"] * 20
    with EnvPool("mind2web", num_workers=0) as pool:
        assert (
            digest(Demonstrator(pool, prompts, rollout, settings, 1).play(chosen))
            == "166f297a211be425"
        )


def test_shares_of_skills_and_extractions(tasks):
    rng = np.random.default_rng(0)
    task = tasks[0]
    right = web_facts.habits(task)
    skills = [make_skill(task, rng) for _ in range(2000)]
    texts = [web_facts.skill_json(task.group, beliefs) for beliefs in skills]
    for text, beliefs in zip(texts, skills, strict=True):
        assert web_facts.claims(text) == beliefs
    shares = [share_of_habits(task, text) for text in texts]
    assert np.mean(np.array(shares) == 1.0) == pytest.approx(0.35, abs=0.04)
    assert np.mean([not beliefs for beliefs in skills]) == pytest.approx(0.25, abs=0.04)
    good = [json.loads(make_extraction(task, right, rng, 1.0))["description"] for _ in range(5)]
    assert good == [web_facts.facts_text(right)] * 5
    mixed = [make_extraction(task, right, rng, 0.4) for _ in range(2000)]
    full = np.mean([share_of_habits(task, text) == 1.0 for text in mixed])
    assert full == pytest.approx(0.4 + 0.6 / 9, abs=0.04)
    titled = {task.group: [], task.task_type.lower(): []}  # by the careful one, by one that guesses
    for text in mixed:
        titled[json.loads(text)["name"]].append(share_of_habits(task, text) == 1.0)
    careful, guesses = titled.values()
    assert all(careful) and np.mean(guesses) == pytest.approx(1 / 9, abs=0.04)
    assert web_facts.claims(make_extraction(task, {}, rng, 1.0))  # nothing seen: a guess
    slot, choices = next(iter(task.meta["habits"].items()))
    said = [
        web_facts.claims(make_extraction(task, {}, rng, 1.0, {slot: {choices[1]}}))
        for _ in range(200)
    ]
    assert {tuple(s.items()) for s in said} == {((slot, choices[0]),), ((slot, choices[2]),)}


def test_texts_for_the_tokenizer_cover_the_test_sites(tasks, tokenizer):
    prompts = make_prompts("compact", tokenizer, TEXTS)
    pool = EnvPool("mind2web", num_workers=0)
    for task in (t for t in tasks if t.split != "warmstart"):
        turns, _ = walk(task, pool, web_facts.habits(task))
        for turn in turns:
            assert len(prompts.solver_prompt(task, "", turn.observation)) < 110


@pytest.fixture(scope="module", params=["chatml", "reasoning", "llama3"])
def chat(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / request.param
    return make_prompts("chat", load_tokenizer(make_tokenizer_folder(folder, request.param)), TEXTS)


def test_chat_prompts_hold_rules_skill_and_observation(chat, tasks):
    decode = chat.tokenizer.decode
    plain = decode(chat.solver_prompt(tasks[0], "", OBSERVATION))
    skilled = decode(chat.solver_prompt(tasks[0], "# Skill: x\nPress the footer one.", OBSERVATION))
    assert OBSERVATION in plain and '{"op": "CLICK", "ref": "e12"}' in plain
    assert "Press the footer one." in skilled and "# Skill" not in plain
    assert plain.count("at birch bay find mug") == 1
    assert ("/no_think" in plain) == ("enable_thinking" in chat.tokenizer.chat_template)


def test_chat_turns_are_appended_as_the_template_writes_them(chat, tasks):
    answer = chat.action_ids('button "Search"', WebAction("TYPE", 3, "Oslo").to_json())
    action, valid = chat.parse_action(chat.tokenizer.decode(answer[:-1]))
    assert valid and parse_action(action) == WebAction("TYPE", 3, "Oslo")
    following = chat.tokenizer.decode(chat.next_turn(OBSERVATION, last_id=answer[-1]))
    assert 'Page:\nbutton "Search" (footer) [ref=e1]' in following and "Earlier" not in following
    request = chat.tokenizer.decode(chat.extractor_prompt(False, ENDING))
    assert ENDING in request and "the task was not completed" in request
    assert '"inputs_to_identify"' in request and "refs" in request

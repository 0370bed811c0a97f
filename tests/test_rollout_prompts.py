"""What the chat style says, and that its transcripts in the driver are those of the template."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from chat_models import FAMILIES, REASONING, make_tokenizer_folder
from doubles import FakeEngine, FakePool, compact_prompts, make_task

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from evolving_rl_jax.envs.alfworld.texts import TEXTS
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.rollout.contexts import make_context
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import make_candidate
from evolving_rl_jax.rollout.prompts import STYLES, ChatPrompts, make_prompts
from evolving_rl_jax.skills.schema import parse_skill

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = PlaySettings(
    max_turn_tokens=200, max_skill_tokens=400, max_steps=4, temperature=1.0, top_p=0.9, top_k=0
)
FIRST = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. You see a fridge 1."
    "\n\nYour task is to: find t0"
)
SKILL = {"name": "Mugs", "description": "Where mugs are.", "decision_rules": ["Try cabinet 3."]}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    root = tmp_path_factory.mktemp("prompts")
    return {
        name: make_prompts("chat", load_tokenizer(make_tokenizer_folder(root / name, name)), TEXTS)
        for name in FAMILIES
    }


def test_the_opening_holds_rules_skill_task_observation_and_actions_in_this_order(prompts):
    style = prompts["chatml"]
    ids = style.solver_prompt(make_task("t0"), "Mugs are in cabinet 3.", FIRST, ("look", "go to x"))
    text = style.tokenizer.decode(ids)
    parts = (
        "<|im_start|>system",
        "<reasoning>",
        "<action>",
        "Mugs are in cabinet 3.<|im_end|>",
        "<|im_start|>user\nTask: find t0\n\nObservation:\nYou are in the middle",
        "fridge 1.\n\nAdmissible actions:\n- look\n- go to x<|im_end|>",
        "<|im_start|>assistant\n",
    )
    places = [text.index(p) for p in parts]
    assert places == sorted(places) and text.endswith(parts[-1])
    assert "Welcome" not in text and "Your task is to" not in text
    assert "skill" not in style.tokenizer.decode(style.solver_prompt(make_task("t0"), "", FIRST))


@pytest.mark.parametrize("family", FAMILIES)
def test_tasks_with_one_skill_share_everything_before_the_task(prompts, family):
    style = prompts[family]
    one, two = (style.solver_prompt(make_task(t), "A skill.", FIRST) for t in ("a b", "c"))
    shared = next(i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y)
    text = style.tokenizer.decode(one[:shared])
    assert "A skill." in text and text.endswith("Task: find")


def test_answers_are_read_and_written_in_tags(prompts):
    style = prompts["chatml"]
    said = "<reasoning>a</reasoning><action>Go to x</action>"
    assert style.parse_action(said) == ("go to x", True)
    assert style.parse_action("go to x") == ("go to x", False)
    taught = style.action_ids("mug", "go to x")
    assert taught[-1] == style.chat.end_id
    assert style.parse_action(style.tokenizer.decode(taught[:-1])) == ("go to x", True)
    skill, _ = parse_skill(style.tokenizer.decode(style.skill_ids(json.dumps(SKILL))[:-1]))
    assert style.render_skill(skill).startswith("# Skill: Mugs\n") and "cabinet 3" in (
        style.render_skill(skill)
    )


def test_the_extractor_is_asked_for_the_fields_of_the_schema(prompts):
    style = prompts["chatml"]
    decode, end = style.tokenizer.decode, style.chat.end_id
    texts = {w: decode(style.extractor_prompt(w, "The end.", last_id=end)) for w in (True, False)}
    assert "the task was completed." in texts[True] and "not completed." in texts[False]
    start = "\n<|im_start|>user\nObservation:\nThe end.\n\nThe episode is over"
    assert texts[True].startswith(start)
    skill, reason = parse_skill(json.dumps(SKILL))
    fields = set(skill.to_dict())
    assert not reason and all(f'"{field}"' in texts[True] for field in fields)
    for step in ("goal", "action", "tools_or_strategy", "completion_condition"):
        assert f'"{step}"' in texts[True]


def test_hybrid_reasoners_are_asked_to_reason_once(prompts):
    assert "enable_thinking" in REASONING
    for family, style in prompts.items():
        text = style.tokenizer.decode(style.solver_prompt(make_task("t"), "", FIRST))
        assert ("/no_think" in text) == (family == "reasoning")


@pytest.mark.parametrize("family", FAMILIES)
def test_transcripts_in_the_driver_are_the_rendered_conversation(prompts, family):
    style = prompts[family]
    first, second = "<reasoning>r</reasoning>\n<action>look</action>", "<action>win</action>"
    skill = json.dumps(SKILL)
    said = {0: [first, second], 10: [skill] * 3}
    engine = FakeEngine(style.tokenizer, lambda key, turn: said[key][turn])
    driver = Driver(engine, FakePool(), style, SETTINGS, iteration=0)
    episodes, written = [], []

    def done(episode, handle):
        episodes.append(episode)
        driver.extract(handle, episode.won, [10], lambda i, *result: written.append(result))
        driver.release(handle)

    driver.play(0, make_task("t0"), "", done, keep_session=True)
    driver.run()
    ((text, sample),) = written
    candidate = make_candidate(text, sample, style, 6000)
    assert candidate.valid and candidate.text.startswith("# Skill: Mugs")
    actions, end = ("win", "look"), style.chat.end_id
    parts = [  # (sampled or not, ids)
        (0, style.solver_prompt(make_task("t0"), "", "room of t0", actions)),
        (1, style.chat.answer(first)),
        (0, style.next_turn("look 1", actions, last_id=end)),
        (1, style.chat.answer(second)),
        (0, style.extractor_prompt(True, "win 2", last_id=end)),
        (1, style.chat.answer(skill)),
    ]
    assert sample.tokens.tolist() == [i for _, ids in parts for i in ids]
    # Of an extraction only the skill is trained; its episode is a sample of its own.
    last = len(parts) - 1
    assert sample.loss_mask.tolist() == [float(i == last) for i in range(6) for _ in parts[i][1]]
    assert episodes[0].samples[0].loss_mask.tolist() == [
        float(s) for s, ids in parts[:4] for _ in ids
    ]
    assert "Admissible actions:\n- win\n- look" in style.tokenizer.decode(parts[2][1])


def test_an_answer_that_was_cut_off_is_closed_before_the_next_turn(prompts):
    style = prompts["chatml"]
    engine = FakeEngine(style.tokenizer, lambda *_: "<action>look</action> and on and on and on")
    settings = dataclasses.replace(SETTINGS, max_turn_tokens=8, max_steps=2)
    driver = Driver(engine, FakePool(), style, settings, iteration=0)
    episodes = []
    driver.play(0, make_task("t0"), "", lambda episode, _: episodes.append(episode))
    driver.run()
    sample, end = episodes[0].samples[0], style.chat.end_id
    after = int(np.flatnonzero(np.diff(sample.loss_mask) < 0)[0]) + 1
    assert sample.tokens[after - 1] != end and sample.tokens[after] == end


def test_styles_have_the_same_interface():
    names = [{n for n in dir(style) if not n.startswith("_")} for style in STYLES.values()]
    assert names[0] == names[1] == names[2]
    wanted = "rollout.style must be one of compact, chat, chat_short, got 'x'"
    with pytest.raises(ValueError, match=wanted):
        make_prompts("x", compact_prompts().tokenizer, TEXTS)


ACTIONS = (("look", "go to x", "go to y"), ("look", "go to x", "open y"), ("look",))


def shown(style, show_actions, tokenizer):
    """The user messages of three turns."""
    prompts = make_prompts(style, tokenizer, TEXTS, show_actions)
    context, texts = make_context("full", 0, prompts, make_task("t0"), ""), []
    for text, actions in zip((FIRST, "You arrive.", "You look."), ACTIONS, strict=True):
        texts.append(
            tokenizer.decode(context.observe(text, actions)[0]).split("<|im_start|>user")[1]
        )
        context.act(*[prompts.action_ids("mug", "look")] * 3)
    return texts


@pytest.mark.parametrize("style", ["chat", "chat_short"])
def test_admissible_actions_stand_where_they_are_asked_for(prompts, style):
    tokenizer = prompts["chatml"].tokenizer
    known = set(sum(ACTIONS, ()))
    counts = {
        kind: [sum(a in text for a in known) for text in shown(style, kind, tokenizer)]
        for kind in ("all", "first", "changed", "none")
    }
    # "You look." has an action's word in it.
    assert counts == {"all": [3, 3, 1], "first": [3, 0, 1], "changed": [3, 2, 3], "none": [0, 0, 1]}
    new, gone = {
        "chat": ("Admissible now too:\n- open y", "No longer admissible:\n- go to y"),
        "chat_short": ("\nNew: open y", "\nGone: go to y"),
    }[style]
    assert new in shown(style, "changed", tokenizer)[1]
    assert gone in shown(style, "changed", tokenizer)[1]


def test_rules_name_the_commands_where_their_list_is_not_at_every_turn():
    long, short = TEXTS.chat, TEXTS.chat_short
    assert "take X from Y" not in long.system() and long.system() == long.system(show_actions="all")
    for kind in ("first", "changed", "none"):
        text = long.system("A skill.", show_actions=kind)
        assert "take X from Y" in text and "of the latest observation" not in text
    assert "take X from Y" in short.system()


def test_a_short_answer_is_one_line_and_a_short_skill_what_it_says(prompts):
    style = make_prompts("chat_short", prompts["chatml"].tokenizer, TEXTS)
    taught = style.action_ids("mug", "go to x")
    assert style.tokenizer.decode(taught[:-1]) == "go to x" and taught[-1] == style.chat.end_id
    assert style.parse_action(" Go to x\n") == ("go to x", True)
    assert style.parse_action("I think\ngo to x") == ("i think", False)
    assert style.parse_action("") == ("", False)
    skill, _ = parse_skill(json.dumps(SKILL))
    assert style.render_skill(skill) == "Where mugs are.\nTry cabinet 3."
    asked = style.tokenizer.decode(style.extractor_prompt(False, "The end."))
    assert "not completed." in asked and '"decision_rules"' in asked and "{{" not in asked
    with pytest.raises(
        ValueError, match="must be one that the benchmark has texts for, got 'chat_sh"
    ):
        make_prompts("chat_short", style.tokenizer, TEXTS._replace(chat_short=None))


def test_a_tokenizer_without_a_usable_template_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="must have a chat template"):
        ChatPrompts(load_tokenizer(make_tokenizer_folder(tmp_path / "a", template="")), TEXTS.chat)
    counted = FAMILIES["chatml"][0].replace("m.role +", "m.role + (messages | length | string) +")
    with pytest.raises(ValueError, match="a later turn changes the text of earlier ones"):
        ChatPrompts(
            load_tokenizer(make_tokenizer_folder(tmp_path / "b", template=counted)), TEXTS.chat
        )


CONFIG = """
import importlib.util


def get_config():
    spec = importlib.util.spec_from_file_location("debug", {debug!r})
    debug = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(debug)
    config = debug.get_config()
    config.model.hf_path = {model!r}
    config.warmstart.enabled = False
    config.rollout.update(
        style="chat", max_length=2048, max_turn_tokens=8, max_skill_tokens=16, max_steps=2,
        prefill_buckets=(1024,), column_buckets=(2048,),
    )
    config.train.row_length = 2048
    config.eval.update(num_games=2, splits=("valid_unseen",), conditions=("none", "own"))
    return config
"""


@pytest.mark.slow
def test_a_whole_run_from_an_imported_chat_model(program, tmp_path):
    jax = pytest.importorskip("jax")
    from evolving_rl_jax import models

    tokenizer = load_tokenizer(make_tokenizer_folder(tmp_path / "tokenizer"))
    # Like the published models, its embedding has more rows than the tokenizer has ids.
    cfg = models.ModelConfig(
        tokenizer.vocab_size + 6, 16, 32, 1, 2, 1, 8, qkv_bias=True, model_type="qwen2"
    )
    params = models.init(cfg, jax.random.key(0))
    models.save_hf(params, cfg, tmp_path / "model", tokenizer_dir=tokenizer.path)
    file = tmp_path / "chat.py"
    file.write_text(
        CONFIG.format(
            debug=str(ROOT / "configs" / "debug.py"),
            model=str(tmp_path / "model"),
        )
    )
    run = tmp_path / "run"
    result = program("train", f"--config={file}", f"--workdir={run}")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1] and (run / "report.html").is_file()
    # What the policy sampled gets the same probability from the training step, token by token.
    assert all(line["train/logprob_gap_max"] < 1e-4 for line in lines)
    result = program("export", f"--workdir={run}", f"--out={tmp_path / 'out'}")
    assert result.returncode == 0, result.stderr
    trained, exported = models.load_hf(tmp_path / "out")
    assert dataclasses.replace(exported, dtype=cfg.dtype) == cfg
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(params), strict=True)
    )
    assert models.load_tokenizer(tmp_path / "out").chat_template == tokenizer.chat_template

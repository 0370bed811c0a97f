"""The driver, with a pretend engine and pretend environments: statuses, masks, order."""

import dataclasses

import numpy as np
import pytest
from doubles import FakeEngine, FakePool, compact_prompts, make_task

from evolving_rl_jax.rollout.episode import Driver, PlaySettings, Transcript
from evolving_rl_jax.types import ENV_ERROR, OK, TRUNCATED

PROMPTS = compact_prompts()
SETTINGS = PlaySettings(
    max_turn_tokens=20, max_skill_tokens=40, max_steps=4, temperature=0.7, top_p=0.9, top_k=3
)


def plan(turns):
    """speak(episode, turn) from {episode: [text of each turn]}; the last text is repeated."""
    return lambda episode, turn: turns[episode][min(turn, len(turns[episode]) - 1)]


def play(turns, *, fail=None, seed=0, settings=SETTINGS, keep=(), tasks=None, **engine_options):
    """Plays episodes 0..n-1; returns ({key: (episode, handle)}, engine, pool, driver)."""
    engine = FakeEngine(PROMPTS.tokenizer, plan(turns), **engine_options)
    pool = FakePool(fail, seed)
    driver = Driver(engine, pool, PROMPTS, settings, iteration=7)
    done = {}
    for key in turns:
        task = (tasks or {}).get(key) or make_task(f"t{key}")

        def on_done(episode, handle, key=key):
            assert key not in done
            done[key] = episode, handle

        driver.play(key, task, "", on_done, keep_session=key in keep)
    driver.run()
    assert set(done) == set(turns)
    assert not pool.running and not pool.pending
    return done, engine, pool, driver


def check_sample(episode, session):
    """The sample is exactly what went through the engine, in order, and marks what was sampled."""
    sample = episode.samples[0]
    np.testing.assert_array_equal(sample.tokens, session.tokens)
    np.testing.assert_array_equal(sample.loss_mask, session.mask)
    np.testing.assert_array_equal(sample.logprobs, session.logprobs)
    np.testing.assert_array_equal(sample.sampling_logprobs, session.logprobs / 2)
    assert sample.tokens.dtype == np.int32 and sample.loss_mask.dtype == np.float32


def test_exactly_the_sampled_tokens_are_marked():
    done, engine, pool, _ = play({0: ["mug> look", "mug> win"]})
    episode = done[0][0]
    tokenizer, task = PROMPTS.tokenizer, make_task("t0")
    expected = [
        (0, PROMPTS.solver_prompt(task, "", "room of t0")),
        (1, [*tokenizer.encode("mug> look"), tokenizer.eos_id]),
        (0, PROMPTS.next_turn("look 1")),
        (1, [*tokenizer.encode("mug> win"), tokenizer.eos_id]),
    ]
    assert episode.samples[0].tokens.tolist() == [i for _, ids in expected for i in ids]
    assert episode.samples[0].loss_mask.tolist() == [m for m, ids in expected for _ in ids]
    check_sample(episode, engine.sessions[0])
    assert (episode.won, episode.status, episode.reward) == (True, OK, 1.0)
    assert pool.actions[0] == ["look", "win"]
    assert [dataclasses.astuple(t) for t in episode.turns] == [
        ("room of t0", "mug> look", "look", True),
        ("look 1", "mug> win", "win", True),
    ]
    assert episode.last_observation == "win 2"


def test_settings_reach_the_engine_and_the_skill_reaches_the_prompt():
    engine = FakeEngine(PROMPTS.tokenizer, lambda *_: "mug> win")
    driver = Driver(engine, FakePool(), PROMPTS, SETTINGS, iteration=7)
    task, episodes = make_task("t0"), []
    driver.play(5, task, "the mug is in cabinet 3", lambda e, h: episodes.append((e, h)))
    driver.run()
    prompt = PROMPTS.solver_prompt(task, "the mug is in cabinet 3", "room of t0")
    assert engine.log[:2] == [("open", 7, 5), ("submit", 5, tuple(prompt), 20, 0.7)]
    assert episodes[0][0].skill_text == "the mug is in cabinet 3" and episodes[0][1] is None
    assert PROMPTS.ids["<skill>"] in prompt and not engine.open_now
    assert driver.finished == 1


def test_an_invalid_answer_is_played_and_marked():
    done, _, pool, _ = play({0: ["win", "mug> win"]})
    turns = done[0][0].turns
    assert [(t.action, t.valid) for t in turns] == [("win", False)] and pool.actions[0] == ["win"]


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_failing_environment_ends_that_episode_alone(answers):
    turns = {key: ["mug> look", "mug> look", "mug> win"] for key in range(4)}
    done, engine, _, _ = play(turns, fail={2: answers}, keep={2, 3})
    episode, handle = done[2]
    assert (episode.status, episode.won, episode.scored) == (ENV_ERROR, False, False)
    assert handle is None and episode.error == "broke" and len(episode.turns) == answers
    for key in (0, 1, 3):
        assert done[key][0].won and done[key][0].status == OK
    assert [s.episode for s in engine.open_now] == [3]  # kept, for an extraction
    undisturbed = play(turns, keep={2, 3})[0]
    for key in (0, 1, 3):
        np.testing.assert_array_equal(
            done[key][0].samples[0].tokens, undisturbed[key][0].samples[0].tokens
        )


@pytest.mark.parametrize(("own", "most", "steps"), [(5, 4, 4), (3, 4, 3), (5, 50, 5)])
def test_the_step_limit_is_the_smaller_one_and_counts_as_a_loss(own, most, steps):
    settings = dataclasses.replace(SETTINGS, max_steps=most)
    task = make_task("t0", step_limit=own)
    done, engine, pool, _ = play({0: ["mug> look"]}, settings=settings, tasks={0: task})
    episode = done[0][0]
    assert len(pool.actions[0]) == len(episode.turns) == steps
    assert (episode.status, episode.won, episode.scored) == (TRUNCATED, False, True)
    assert episode.last_observation == f"look {steps}"
    check_sample(episode, engine.sessions[0])


def test_a_loss_that_the_environment_ends_is_no_truncation():
    done = play({0: ["mug> lose"]})[0]
    assert (done[0][0].status, done[0][0].won, done[0][0].reward) == (OK, False, 0.0)


def test_a_turn_that_is_cut_is_played_as_far_as_it_goes():
    settings = dataclasses.replace(SETTINGS, max_turn_tokens=8)
    done, engine, pool, _ = play({0: ["mug> winning", "mug> win"]}, settings=settings)
    assert pool.actions[0] == ["win"] and done[0][0].won
    assert done[0][0].samples[0].loss_mask.sum() == 8  # no stop token was sampled
    check_sample(done[0][0], engine.sessions[0])


@pytest.mark.parametrize("max_length", range(30, 100, 3))
def test_running_out_of_context_is_a_truncated_loss(max_length):
    """Wherever the context ends: in a prompt, in a turn, or in an observation."""
    done, engine, pool, _ = play({0: ["mug> look"]}, max_length=max_length)
    episode = done[0][0]
    assert (episode.status, episode.won, episode.scored) == (TRUNCATED, False, True)
    assert not engine.open_now
    if not episode.turns:  # its first prompt did not fit
        assert episode.samples == [] and max_length <= len(
            PROMPTS.solver_prompt(make_task("t0"), "", "room of t0")
        )
        return
    assert len(episode.samples[0].tokens) <= max_length
    # A turn is one that was read: each has a sampled token, and what was never read is none.
    assert all(turn.output for turn in episode.turns)
    check_sample(episode, engine.sessions[0])
    full = play({0: ["mug> look"]})[0][0][0].samples[0]
    count = len(episode.samples[0].tokens)
    np.testing.assert_array_equal(episode.samples[0].tokens, full.tokens[:count])


LONG = {0: ["mug> look", "mug> open", "mug> go", "mug> take", "mug> win"]}


def recent(h, turns=None, **options):
    settings = dataclasses.replace(SETTINGS, context="recent", recent_turns=h, max_steps=5)
    return play(turns or LONG, settings=settings, **options)


def recent_prompt(t, h, texts):
    """The prompt of turn ``t`` written out: the task, the last ``h`` turns, what is seen now."""
    seen = ["room of t0", *(f"{text.split('> ')[1]} {i + 1}" for i, text in enumerate(texts))]
    first, tokenizer = max(0, t - h), PROMPTS.tokenizer
    ids = PROMPTS.solver_prompt(make_task("t0"), "", seen[first])
    for i in range(first, t):
        ids += [*tokenizer.encode(texts[i]), tokenizer.eos_id, *PROMPTS.next_turn(seen[i + 1])]
    return ids


@pytest.mark.parametrize("h", [0, 1, 2, 10])
def test_a_recent_context_shows_the_last_turns_and_trains_each_apart(h):
    done, engine, pool, _ = recent(h)
    episode, tokenizer = done[0][0], PROMPTS.tokenizer
    assert episode.won and pool.actions[0] == ["look", "open", "go", "take", "win"]
    assert [s.step for s in episode.samples] == list(range(5))
    for t, sample in enumerate(episode.samples):
        prompt = recent_prompt(t, h, LONG[0])
        answer = [*tokenizer.encode(LONG[0][t]), tokenizer.eos_id]
        assert sample.tokens.tolist() == prompt + answer
        assert sample.loss_mask.tolist() == [0.0] * len(prompt) + [1.0] * len(answer)
        assert (sample.logprobs[len(prompt) :] < 0).all()
    np.testing.assert_array_equal(episode.samples[-1].tokens, engine.sessions[0].tokens)
    # A session goes on for as long as nothing was left out of its prompt.
    opened = [entry for entry in engine.log if entry[0] == "open"]
    assert len(opened) == 1 + max(0, 4 - h) and not engine.open_now


def test_a_recent_context_plays_the_same_turns_as_a_full_one_while_nothing_is_left_out():
    full = play(LONG, settings=dataclasses.replace(SETTINGS, max_steps=5))[0][0][0]
    episode = recent(4)[0][0][0]
    assert episode.turns == full.turns
    np.testing.assert_array_equal(episode.samples[-1].tokens, full.samples[0].tokens)
    trained = np.concatenate([s.tokens[s.loss_mask > 0] for s in episode.samples])
    np.testing.assert_array_equal(trained, full.samples[0].tokens[full.samples[0].loss_mask > 0])


@pytest.mark.parametrize("max_length", range(20, 120, 7))
def test_running_out_of_a_recent_context_is_a_truncated_loss(max_length):
    turns = {0: ["mug> look"]}
    episode = recent(2, turns, max_length=max_length)[0][0][0]
    assert (episode.status, episode.scored) == (TRUNCATED, True)
    assert all(len(s.tokens) <= max_length and s.loss_mask.any() for s in episode.samples)
    room = recent(2, turns)[0][0][0]
    for cut, whole in zip(episode.samples, room.samples, strict=False):
        np.testing.assert_array_equal(cut.tokens, whole.tokens[: len(cut.tokens)])


@pytest.mark.parametrize("max_length", [10_000, 120, 105])
def test_an_extraction_from_a_recent_context_shows_what_fits_of_the_trajectory(max_length):
    turns = LONG | {10: ["the first"], 11: ["the second"]}
    settings = dataclasses.replace(
        SETTINGS, context="recent", recent_turns=1, max_steps=5, max_skill_tokens=20
    )
    engine = FakeEngine(PROMPTS.tokenizer, plan(turns), max_length=max_length)
    driver = Driver(engine, FakePool(), PROMPTS, settings, iteration=7)
    written, handles = {}, []
    driver.play(0, make_task("t0"), "", lambda e, h: handles.append(h), keep_session=True)
    driver.run()
    driver.extract(handles[0], True, [10, 11], lambda i, text, sample: written.update({i: sample}))
    driver.release(handles[0])
    driver.run()
    asked = PROMPTS.extractor_prompt(True, "win 5")
    answer = [*PROMPTS.tokenizer.encode("mug> win"), PROMPTS.tokenizer.eos_id]
    lengths = [len(recent_prompt(4, h, LONG[0]) + answer + asked) for h in range(5)]
    shown = max(h for h, length in enumerate(lengths) if length <= max_length - 20 or h == 0)
    for i, text in enumerate(("the first", "the second")):
        expected = recent_prompt(4, shown, LONG[0]) + answer + asked
        ids = [*PROMPTS.tokenizer.encode(text), PROMPTS.tokenizer.eos_id]
        assert written[i].tokens.tolist() == expected + ids
        assert written[i].loss_mask.sum() == len(ids)
    assert (shown == 4) == (max_length == 10_000) and not engine.open_now


def test_an_unknown_context_is_an_error():
    with pytest.raises(ValueError, match="context must be full or recent, got 'all'"):
        play({0: ["mug> win"]}, settings=dataclasses.replace(SETTINGS, context="all"))


def extract(turns, won=True, **options):
    """Plays episode 0 and extracts with keys 10, 11; returns what is known afterwards."""
    done, engine, pool, driver = play(turns, keep={0}, **options)
    episode, handle = done[0]
    written = {}

    def on_done(i, text, sample):
        written[i] = text, sample

    driver.extract(handle, won, [10, 11], on_done)
    driver.release(handle)
    driver.run()
    assert not engine.open_now and set(written) == {0, 1}
    return episode, written, engine


def test_an_extraction_continues_the_episode_and_trains_its_own_tokens_only():
    turns = {0: ["mug> look", "mug> win"], 10: ["the first"], 11: ["the second"]}
    tokenizer = PROMPTS.tokenizer
    episode, written, engine = extract(turns)
    for i, text in enumerate(("the first", "the second")):
        assert written[i][0] == text
        ids = [*tokenizer.encode(text), tokenizer.eos_id]
        asked = PROMPTS.extractor_prompt(True, "win 2")
        sample = written[i][1]
        assert sample.tokens.tolist() == [*episode.samples[0].tokens, *asked, *ids]
        assert sample.loss_mask.sum() == len(ids) and sample.loss_mask[-len(ids) :].all()
        np.testing.assert_array_equal(sample.tokens, engine.sessions[10 + i].tokens)
    assert engine.log[-1][0] == "close"


@pytest.mark.parametrize("context", ["full", "recent"])
@pytest.mark.parametrize("max_length", [*range(30, 190, 6), 10_000])
def test_an_extraction_has_its_room_however_long_the_episode_was(max_length, context):
    """The oldest turns make room for it; where not even the last leaves any, nothing is sampled."""
    settings = dataclasses.replace(
        SETTINGS, context=context, recent_turns=9, max_steps=5, max_skill_tokens=31
    )
    turns = LONG | {10: ["x" * 30], 11: ["y" * 30]}
    engine = FakeEngine(PROMPTS.tokenizer, plan(turns), max_length=max_length)
    driver = Driver(engine, FakePool(), PROMPTS, settings, iteration=7)
    ended, written = [], {}
    driver.play(0, make_task("t0"), "", lambda *found: ended.append(found), keep_session=True)
    driver.run()
    ((episode, handle),) = ended
    driver.extract(
        handle, episode.won, [10, 11], lambda i, text, sample: written.update({i: (text, sample)})
    )
    driver.release(handle)
    driver.run()
    assert not engine.open_now and set(written) == {0, 1}
    count, tokenizer = len(episode.turns), PROMPTS.tokenizer
    if not count:
        return  # nothing to leave out
    asked = PROMPTS.extractor_prompt(episode.won, handle.observation)
    last = [*tokenizer.encode(LONG[0][count - 1]), tokenizer.eos_id][:20]
    last = last[: len(episode.samples[-1].tokens) - len(recent_prompt(count - 1, 9, LONG[0]))]
    prompts = [recent_prompt(count - 1, h, LONG[0]) + last + asked for h in range(count)]
    fitting = [p for p in prompts if len(p) + 31 <= max_length]
    prompt = fitting[-1] if fitting else prompts[0]
    for i, letter in enumerate("xy"):
        text, sample = written[i]
        if len(prompt) >= max_length:
            assert text == "" and sample is None
            continue
        room = min(31, max_length - len(prompt))
        assert sample.tokens.tolist()[: len(prompt)] == prompt
        assert sample.loss_mask.sum() == room and sample.loss_mask[-room:].all()
        assert text == letter * min(30, room)
        assert not fitting or room == 31  # the whole skill


@pytest.mark.parametrize("sync", [True, False])
def test_the_order_of_answers_changes_nothing(sync):
    settings = dataclasses.replace(SETTINGS, sync=sync)
    turns = {k: ["mug> look"] * (k % 3) + ["mug> win"] for k in range(12)}
    runs = [play(turns, seed=seed, settings=settings, fail={4: 1}) for seed in range(5)]
    for done, engine, _, _ in runs:
        for key in turns:
            expected = runs[0][0][key][0]
            assert done[key][0].turns == expected.turns and done[key][0].won == expected.won
            np.testing.assert_array_equal(
                done[key][0].samples[0].tokens, expected.samples[0].tokens
            )
        if sync:  # not even what the engine is asked, so a run can be repeated bit for bit
            assert engine.log == runs[0][1].log


def test_callbacks_may_start_more():
    engine = FakeEngine(PROMPTS.tokenizer, lambda *_: "mug> win")
    driver = Driver(engine, FakePool(), PROMPTS, SETTINGS, iteration=0)
    keys, counts = [], []

    def on_done(episode, handle):
        keys.append(len(keys))
        if len(keys) < 5:
            driver.play(len(keys), make_task("t"), "", on_done)

    driver.play(0, make_task("t"), "", on_done)
    driver.run(counts.append)
    assert keys == list(range(5)) and counts[-1] == driver.finished == 5


def test_a_transcript_takes_the_last_addition_back():
    transcript = Transcript()
    assert transcript.sample().tokens.shape == (0,)
    transcript.append_forced([1, 2])
    transcript.append_sampled([3], [-1.0], [-2.0])
    transcript.append_forced([4, 5])
    transcript.drop_last()
    sample = transcript.sample()
    assert sample.tokens.tolist() == [1, 2, 3] and sample.loss_mask.tolist() == [0, 0, 1]
    assert sample.logprobs.tolist() == [0, 0, -1] and sample.sampling_logprobs.tolist() == [
        0,
        0,
        -2,
    ]


def test_play_settings_come_from_the_config():
    from evolving_rl_jax.config import default_config

    settings = PlaySettings.from_config(default_config().rollout, temperature=0.3)
    assert (settings.temperature, settings.max_steps, settings.sync) == (0.3, 50, True)


class GradedPool(FakePool):
    """A step adds a quarter, whatever it is."""

    def _answer(self, key, result):
        if hasattr(result, "reward"):
            result = result._replace(reward=0.25)
        super()._answer(key, result)


@pytest.mark.parametrize(("last", "won"), [("lose", False), ("win", True), ("look", False)])
def test_an_episode_is_worth_the_sum_of_its_rewards(last, won):
    engine = FakeEngine(PROMPTS.tokenizer, plan({0: ["mug> look", f"mug> {last}"]}))
    driver, episodes = Driver(engine, GradedPool(), PROMPTS, SETTINGS, iteration=0), []
    driver.play(0, make_task("t0"), "", lambda episode, _: episodes.append(episode))
    driver.run()
    steps = SETTINGS.max_steps if last == "look" else 2
    assert (episodes[0].reward, episodes[0].won) == (0.25 * steps, won)

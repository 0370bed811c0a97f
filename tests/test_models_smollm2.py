"""A pretrained model, by the GGUF file that EVOLVING_RL_SMOLLM2_GGUF names: our greedy text is transformers'."""

import os

import pytest

from evolving_rl_jax import models
from evolving_rl_jax.generate import Engine

SMOLLM2 = "EVOLVING_RL_SMOLLM2_GGUF"
QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain how a bicycle stays upright.",
    "List three uses of a knife in a kitchen.",
    "Where would you look for a mug in a kitchen?",
    "Tell me a story about a fox and a hen.",
    "How do I clean a dirty pan?",
    "What is 12 times 12? Show your work.",
    "Translate 'good morning' into Spanish.",
    "Name five kinds of fruit and their colours.",
    "Why is the sky blue?",
    "Write a Python function that adds two numbers.",
    "Describe a living room in detail.",
    "What should I pack for a week in the mountains?",
    "Give me a recipe for pancakes.",
    "Who wrote Hamlet, and when?",
    "What is the difference between a lake and a sea?",
    "Plan a day in Rome.",
    "How does a refrigerator keep food cold?",
    "Write a letter to a friend about your new house.",
)


@pytest.mark.slow
def test_greedy_text_of_smollm2_equals_that_of_transformers(tmp_path):
    if not os.environ.get(SMOLLM2):
        pytest.skip(f"{SMOLLM2} must name the file SmolLM2-135M-Instruct.Q4_1.gguf")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path, length = os.environ[SMOLLM2], 64
    models.import_gguf(path, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    chat = transformers.AutoTokenizer.from_pretrained(tmp_path)
    params, cfg = models.load_gguf(path)
    engine = Engine(
        cfg, params, num_slots=20, max_length=192, prefill_chunk=(64,), row_buckets=(20,)
    )
    sessions, prompts = [], []
    for i, question in enumerate(QUESTIONS):
        messages = [{"role": "user", "content": question}]
        text = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts.append(chat(text, add_special_tokens=False).input_ids)
        sessions.append(engine.open(0, i))
        engine.submit(sessions[i], prompts[i], max_new_tokens=length, temperature=0.0)
    ours = {}
    while engine.busy:
        ours |= {sessions.index(g.session): list(g.tokens) for g in engine.step()}
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        with torch.no_grad():  # the mask: padding is the end of a turn here, which prompts have too
            wanted = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=length,
                min_new_tokens=length, do_sample=False, eos_token_id=None,
            )[0, len(prompt) :]  # fmt: skip
        assert len(ours[i]) == length
        assert [int(t) for t in ours[i]] == wanted.tolist(), QUESTIONS[i]

"""Small tokenizers with the chat templates of the supported families, made on the spot."""

import json
import pathlib

CHATML = """\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
# Takes reasoning out of all but the last answer, as hybrid reasoners do.
REASONING = """\
{%- for m in messages %}
    {%- set text = m.content.split('</think>')[-1].lstrip('\\n') %}
    {%- if m.role == 'assistant' and loop.last %}
        {%- set text = '<think>\\n\\n</think>\\n\\n' + text %}
    {%- endif %}
    {{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today: ' + strftime_now('%d %b %Y') + '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}
    {{- m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
# name -> (chat template, special tokens, named tokens)
FAMILIES = {
    "chatml": (CHATML, QWEN_TOKENS, QWEN_NAMES),
    "reasoning": (REASONING, QWEN_TOKENS, QWEN_NAMES),
    "llama3": (LLAMA3, LLAMA_TOKENS, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
}
TEXTS = [
    "system user assistant\n\nTask: put a hot mug in fridge.\n\nObservation:\nNothing happens.\n\n",
    "You arrive at cabinet 3. On the cabinet 3, you see a mug 1, and a plate 12.\n- go to x",
    "<reasoning>what is still missing</reasoning>\n<action>open fridge 1</action>\n- look\n",
    "You are an agent that answers with exactly one action. The episode is over: the task was not",
] * 8


def make_tokenizer_folder(
    folder: pathlib.Path,
    family: str = "chatml",
    *,
    template=None,
    vocab_size=512,
    rstrip=False,
    unused=(),
) -> pathlib.Path:
    """Writes the tokenizer files of ``family``.

    Args:
      folder: made where needed.
      family: out of `FAMILIES`.
      template: replaces its chat template.
      vocab_size: ids in all, without ``unused``.
      rstrip: special tokens swallow the white space after them.
      unused: special tokens that nothing names, added after all others.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    source, specials, named = FAMILIES[family]
    backend = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(PIECES), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_special_tokens([tokenizers.AddedToken(t, rstrip=rstrip) for t in specials])
    backend.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in unused])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    settings["chat_template"] = source if template is None else template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def make_model_folder(folder: pathlib.Path, family: str = "chatml", *, rows=0, seed=0, **options):
    """A tiny random chat model of ``family`` in Hugging Face form.

    Args:
      folder: made where needed.
      family: of its tokenizer.
      rows: of the embedding, more than there are tokens.
      seed: of the weights.
      **options: of `make_tokenizer_folder`.
    """
    import jax

    from evolving_rl_jax import models

    tokenizer = models.load_tokenizer(
        make_tokenizer_folder(folder / "tokenizer", family, **options)
    )
    cfg = models.ModelConfig(
        tokenizer.vocab_size + rows, 16, 24, 1, 2, 1, 8, model_type="llama",
        max_position_embeddings=4096,
    )  # fmt: skip
    params = models.init(cfg, jax.random.key(seed))
    models.save_hf(params, cfg, folder, tokenizer_dir=tokenizer.path)
    return folder

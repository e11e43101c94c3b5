"""Tiny tokenizers and random models for the tests: made in milliseconds, with the real classes."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCAB_SIZE = 320
SENTENCES = (
    "The capital of France is Paris and the capital of Spain is Madrid.",
    "Q: What is the capital of Italy?\nA: Rome",
    "The mother tongue of Danielle Darrieux is French, that of Jorge Luis Borges is Spanish.",
)

LLAMA_2 = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- raise_exception('no system turns') -}}{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' -}}
{%- else -%}
{{- ' ' + message['content'].strip() + ' ' + eos_token -}}
{%- endif -%}
{%- endfor -%}"""

CHATML = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""

GEMMA = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- raise_exception('no system turns') -}}{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<start_of_turn>' + role + '\n' + (message['content'] | trim) + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"""


def tiny_tokenizer(chat_template: str | None = None, add_bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, exact on every text, with the tokens <s>, </s> and <pad>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast


def words_only() -> PreTrainedTokenizerFast:
    """A tokenizer that knows a handful of words and nothing else."""
    words = ("<unk>", "</s>", "Who", "is", "?", "Ada")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


# What each family's configuration has beside the sizes that all share. Where a family has variants that differ in the
# structure of a layer, each is a family here: `NAME/variant`.
FAMILIES: dict[str, dict[str, Any]] = {
    "falcon": {},
    "falcon/new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon/serial": {"parallel_attn": False, "alibi": True, "bias": True},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 4},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4},
    "gpt2": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "gpt_neox": {},
    "gpt_neox/serial": {"use_parallel_residual": False},
    "gptj": {"rotary_dim": 4},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 4.0, "embedding_multiplier": 6.0},
    "granitemoe": {"residual_multiplier": 0.5, "num_local_experts": 4},
    "llama": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": 4},
    "mixtral": {"head_dim": 8, "num_local_experts": 4},
    "olmo": {},
    "olmo2": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "opt/norm after": {"ffn_dim": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "phi": {},
    "phi3": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "stablelm": {"use_parallel_residual": True},
    "stablelm/serial": {},
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped-query attention, in the families that have it
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
RENAMED = {"gpt_neo": {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}}


def tiny_model(family: str, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> PreTrainedModel:
    """A random float32 model of 4 layers and hidden size 32, frozen; of one of `FAMILIES`."""
    name = family.partition("/")[0]
    sizes = {RENAMED.get(name, {}).get(key, key): value for key, value in SIZES.items()}
    config = AutoConfig.for_model(name, vocab_size=vocab_size, **sizes | FAMILIES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.eval().requires_grad_(False)
    return model


def tiny_encoder(folder: Path) -> Path:
    """Save a random BERT of 2 layers and vectors of size 32, with its tokenizer, to `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=512,
                pad_token_id=2,
            )
        )
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "right"  # BERT counts positions from the first column
    tokenizer.save_pretrained(folder)
    return folder

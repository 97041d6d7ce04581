#!/usr/bin/env python3
"""Writes the tiny causal language models that tests/generate.rs runs, with transformers' own answers.

    pip install -r ../../../tests/fixtures/requirements.txt
    python generate.py

Each folder is what `save_pretrained` writes, a byte-level tokenizer, and expected.safetensors:
prompt [16], prompt_logits [16, V], greedy [32] and greedy_logits [32, V] (the logits that chose each).
Deterministic: the same versions write the same values.
"""

import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
PROMPT = "Experts, please!"
NUM_NEW_TOKENS = 32
# Far above what two f32 implementations differ by: nothing in the answers hangs on a rounding.
MIN_MARGIN = 2e-3

COMMON = dict(
    vocab_size=256,
    hidden_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    num_experts_per_tok=2,
    bos_token_id=None,
    eos_token_id=None,
)


def qwen3_moe():
    """Three layers, the middle one dense; heads wider than H / heads; tied embeddings."""
    config = transformers.Qwen3MoeConfig(
        **COMMON,
        num_hidden_layers=3,
        intermediate_size=40,
        moe_intermediate_size=24,
        num_experts=7,
        norm_topk_prob=True,
        mlp_only_layers=[1],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )
    return transformers.Qwen3MoeForCausalLM(config)


def mixtral():
    """Two layers; heads of their own width; lm_head of its own."""
    config = transformers.MixtralConfig(
        **COMMON,
        num_hidden_layers=2,
        intermediate_size=28,
        num_local_experts=5,
        sliding_window=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    return transformers.MixtralForCausalLM(config)


def randomise(model, seed):
    """Weights large enough that attention, routing and experts all shape the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)


def bytes_tokenizer():
    """One token per byte: any text has ids, any ids have text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def margins(values, rank):
    """The distance between places `rank` and `rank + 1` of each row."""
    top = values.topk(rank + 1, dim=-1).values
    return top[..., rank - 1] - top[..., rank]


class Undecided(Exception):
    """An answer hangs on a rounding, or says too little."""


def require(condition, what):
    if not condition:
        raise Undecided(what)


def greedy(model, prompt):
    """32 tokens, one at a time with the cache, and the logits that chose them."""
    tokens, logits, cache, step = [], [], None, prompt[None]
    for _ in range(NUM_NEW_TOKENS):
        out = model(step, past_key_values=cache, use_cache=True, output_router_logits=True)
        for router_logits in out.router_logits:
            require(margins(router_logits, 2).min() > MIN_MARGIN, "a router is undecided")
        cache = out.past_key_values
        logits.append(out.logits[0, -1])
        tokens.append(out.logits[0, -1].argmax())
        step = tokens[-1].reshape(1, 1)
    tokens, logits = torch.stack(tokens), torch.stack(logits)
    require(margins(logits, 1).min() > MIN_MARGIN, "a token is undecided")
    require(tokens.unique().numel() >= 12, "the text repeats itself")
    return tokens, logits


def answers(model, prompt):
    """The first seed whose answers are clear, and they."""
    for seed in range(100):
        randomise(model, seed)
        try:
            with torch.no_grad():
                tokens, logits = greedy(model, prompt)
                prompt_logits = model(prompt[None]).logits[0]
        except Undecided as reason:
            print(f"seed {seed}: {reason}")
            continue
        return dict(prompt=prompt, prompt_logits=prompt_logits, greedy=tokens, greedy_logits=logits)
    raise SystemExit("no seed gives clear answers")


def generate(name, model):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.eval()
    tokenizer = bytes_tokenizer()
    prompt = torch.tensor(tokenizer.encode(PROMPT).ids)
    assert prompt.numel() == 16
    expected = answers(model, prompt)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(name, size, "bytes", expected["greedy"].tolist())


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    generate("qwen3_moe", qwen3_moe())
    generate("mixtral", mixtral())

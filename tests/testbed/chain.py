"""A model that needs no training: a Markov chain over bytes, written into the weights of a Llama.

It says what its chain says, whatever it is asked; but it is a model like any other, whose every
weight can be trained. For plays that are about the stages of a loop and not about what is learnt.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Chain = Mapping[str, Mapping[str, float]]
"""Character -> what follows it and how likely, the tokenizer's end of turn included."""

NEVER = -30.0
"""Log-probability of what does not follow."""


def chain_model(path: Path, tokenizer: Any, chain: Chain, *, context: int = 1024) -> Path:
    """Save a one-layer Llama whose next token depends on the last one alone, by `chain`.

    Embeddings are unit vectors, and attention and MLP add nothing to begin with, so the output head
    holds the log-probabilities.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    head = torch.full((size, size), NEVER)
    for before, following in chain.items():
        (place,) = tokenizer(before)["input_ids"]
        for after, share in following.items():
            (next_one,) = tokenizer(after)["input_ids"]
            head[next_one, place] = math.log(share)
    layer: Any = model.model.layers[0]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(head / math.sqrt(size))  # which the norm multiplies by
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight.zero_()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path

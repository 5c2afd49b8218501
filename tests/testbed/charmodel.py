"""Builds the character model: its tokenizer, and a base trained for a few hundred steps."""

import string
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Batch = Callable[[], list[tuple[str, str]]]
"""Draws (prompt, completion) pairs."""

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def char_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and an end-of-sequence token."""
    characters = ["<pad>", "<eos>", *string.digits, *"+=,;[]."]
    vocabulary = {c: i for i, c in enumerate(characters)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = Split(Regex("."), "isolated")
    backend.decoder = Fuse()  # without it characters come back with spaces between them
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def train_base(path: Path, draw: Batch, *, steps: int, seed: int) -> Path:
    """Train a 335k-parameter Llama on batches of `draw` and save it as a HF model directory."""
    torch.manual_seed(seed)
    tokenizer = char_tokenizer()
    ids_of: dict[str, int] = tokenizer.get_vocab()  # a character is a token: no need to ask it each
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = sorted((_encode(ids_of, *pair) for pair in draw()), key=lambda row: len(row[0]))
        learnt = sum(len(tokens) - start for tokens, start in rows)
        optimiser.zero_grad()
        # Short rows apart from long ones: padded together, half of the work would be padding.
        middle = (len(rows) + 1) // 2
        for half in filter(None, (rows[:middle], rows[middle:])):
            ids, labels = _pad(half)
            mask = (ids != 0).long()
            loss = model(
                input_ids=ids, labels=labels, attention_mask=mask, num_items_in_batch=learnt
            ).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _encode(ids_of: dict[str, int], prompt: str, completion: str) -> tuple[list[int], int]:
    return [ids_of[c] for c in prompt + completion] + [ids_of["<eos>"]], len(prompt)


def _pad(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (tokens, start) in enumerate(rows):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, start : len(tokens)] = torch.tensor(tokens[start:])
    return ids, labels

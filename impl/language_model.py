"""The model of `lossproof train`: an unmodified causal language model of transformers, and the tokens that it reads.

Legend: B sequences of a batch; C tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lossproof.impl.corpus import Corpus
from lossproof.impl.settings import Settings

VOCABULARY = 256  # bytes
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def build_model(settings: Settings) -> torch.nn.Module:
    """The settings' LLaMA, or the model in their folder, in float32; torch's global generator is left as it was.

    Weights are those in the folder, if it holds any, else random ones from the seed. On torch's device `meta` none are
    read: only shapes matter there. A model from a folder has its dropout off, so that settings determine a run.

    Raises:
        ValueError: a folder without a causal language model, or one for shorter sequences than `context`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return _from_folder(settings, Path(settings.model)) if settings.model else _llama(settings)


def _llama(settings: Settings) -> torch.nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.context,
        attn_implementation="eager",
        use_cache=False,
    )
    model: torch.nn.Module = transformers.LlamaForCausalLM(config)
    return model


def _from_folder(settings: Settings, folder: Path) -> torch.nn.Module:
    config = _opened("model", folder, transformers.AutoConfig)
    longest = getattr(config, "max_position_embeddings", settings.context)
    if settings.context > longest:
        raise ValueError(f"context must be at most {longest} for the model in {str(folder)!r}, got {settings.context}")
    config.use_cache = False
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    has_weights = any(True for pattern in _WEIGHTS for _ in folder.glob(pattern))
    if has_weights and torch.get_default_device().type != "meta":
        model = _opened("model", folder, transformers.AutoModelForCausalLM, config=config, **options)
    else:
        try:
            model = transformers.AutoModelForCausalLM.from_config(config, **options)
        except ValueError as error:
            raise ValueError(f"model must be a causal language model, got {str(folder)!r} ({_line(error)})") from None
    return model.eval()  # type: ignore[no-any-return]


def tokenized(corpus: Corpus, settings: Settings) -> Corpus:
    """The text as the settings' model reads it: tokens if its folder has a tokenizer, else bytes as they are.

    Raises:
        ValueError: a tokenizer that cannot be read; a model with fewer tokens than the text needs.
    """
    if settings.model is None:
        return corpus
    folder = Path(settings.model)
    if any((folder / name).is_file() for name in _TOKENIZER):
        tokenizer = _opened("model", folder, transformers.AutoTokenizer)
        train, validation = (
            np.array(tokenizer(part.tobytes().decode(errors="ignore"), add_special_tokens=False)["input_ids"], np.int64)
            for part in (corpus.train, corpus.validation)
        )
        corpus = replace(corpus, train=train, validation=validation, unit="token")
    config = _opened("model", folder, transformers.AutoConfig)
    largest = max((int(part.max()) for part in (corpus.train, corpus.validation) if part.size), default=0)
    if largest >= config.vocab_size:
        raise ValueError(
            f"model must have a token for each {corpus.unit} of the text, up to {largest}, got "
            f"{config.vocab_size} in {str(folder)!r}"
        )
    return corpus


def objective(model: Callable[..., Any], tokens_BC: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, in nats."""
    loss: torch.Tensor = model(input_ids=tokens_BC, labels=tokens_BC).loss
    return loss


def _opened(name: str, folder: Path, kind: Any, **options: Any) -> Any:
    """What a class of transformers makes of the folder; nothing is downloaded and no code of the folder is run."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{name} must be a folder that transformers can read, got {str(folder)!r} ({_line(error)})"
        ) from None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

"""`--model`: a folder of transformers, with weights or without, with a tokenizer or without; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import lossproof.impl.train as job
from lossproof.cli import app
from lossproof.impl.corpus import Corpus
from lossproof.impl.language_model import build_model, tokenized
from lossproof.impl.settings import Settings
from lossproof.theory.laws import Bernoulli

WORDS = ["<unk>", "the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
TEXT = "the quick brown fox jumps over the lazy dog " * 60


@pytest.fixture
def corpus() -> Corpus:
    text = np.frombuffer(TEXT.encode(), dtype=np.uint8)
    return Corpus("fox", text[:2000], text[2000:])


def gpt2(folder: Path, vocabulary: int = 256, weights: bool = False) -> Settings:
    """Another architecture than LLaMA, with dropout and tied weights."""
    config = transformers.GPT2Config(vocab_size=vocabulary, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    if weights:
        torch.manual_seed(5)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    else:
        config.architectures = ["GPT2LMHeadModel"]
        config.save_pretrained(folder)
    return Settings(Bernoulli(0.2), ranks=2, steps=3, context=16, validation=64, model=str(folder))


def words(folder: Path) -> None:
    """A tokenizer that knows nine words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_weights_in_the_folder_are_where_training_starts(tmp_path: Path, corpus: Corpus) -> None:
    settings = gpt2(tmp_path, weights=True)
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(parameters(build_model(settings)), parameters(saved))
    assert torch.equal(parameters(build_model(replace(settings, seed=1))), parameters(saved))
    run = job.Job(settings, corpus)
    assert torch.equal(
        run.cluster.owners_model()["transformer.wte.weight"], saved.state_dict()["transformer.wte.weight"]
    )
    with torch.device("meta"):
        assert {p.device.type for p in build_model(settings).parameters()} == {"meta"}


def test_without_weights_the_seed_sets_the_start(tmp_path: Path) -> None:
    settings = gpt2(tmp_path)
    before = torch.random.get_rng_state()
    first, again, other = (parameters(build_model(replace(settings, seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_equal_settings_give_equal_digits_for_a_model_with_dropout_too(tmp_path: Path, corpus: Corpus) -> None:
    settings = gpt2(tmp_path)
    first = job.train(settings, corpus)
    torch.rand(3)
    assert job.train(settings, corpus).train_losses == first.train_losses
    assert first.text["train_bytes"] == 2000
    assert first.settings["model"] == str(tmp_path)


def test_the_text_is_read_by_the_folders_tokenizer(tmp_path: Path, corpus: Corpus) -> None:
    settings = gpt2(tmp_path, vocabulary=len(WORDS))
    words(tmp_path)
    found = tokenized(corpus, settings)
    expected = [WORDS.index(word) for word in corpus.train.tobytes().decode().split()[:40]]
    assert found.train[:40].tolist() == expected
    assert found.unit == "token"
    assert found.digest != corpus.digest
    assert job.train(settings, found).text["train_tokens"] == len(found.train)
    assert tokenized(corpus, replace(settings, model=None)) is corpus


def test_what_cannot_be_used_is_refused(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(
        ValueError, match=r"model must be a folder with the config\.json of transformers, got .*nowhere"
    ):
        Settings(model=str(tmp_path / "nowhere"))
    settings = gpt2(tmp_path, vocabulary=100)
    with pytest.raises(ValueError, match="hidden must not be given with a model, which has its own, got 32"):
        replace(settings, hidden=32)
    with pytest.raises(ValueError, match=r"a token for each byte of the text, up to 1\d\d, got 100 in"):
        tokenized(corpus, settings)
    with pytest.raises(ValueError, match="context must be at most 32 for the model in"):
        build_model(replace(settings, context=33))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
    with pytest.raises(ValueError, match="model must be a causal language model"):
        build_model(settings)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="model must be a folder that transformers can read"):
        build_model(settings)


def test_the_command_trains_it_and_says_in_what_it_counts(tmp_path: Path) -> None:
    gpt2(tmp_path / "model", vocabulary=len(WORDS))
    words(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    arguments = ["train", "--model", str(tmp_path / "model"), "--text", str(tmp_path / "text.txt"), "--ranks", "2",
                 "--steps", "2", "--context", "8", "--loss", "0", "--json", str(tmp_path / "out.json")]  # fmt: skip
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "Perplexity per token of validation text" in outcome.stdout
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert report["settings"]["model"] == str(tmp_path / "model")
    assert report["runs"][0]["text"]["train_tokens"] == 486
    outcome = CliRunner().invoke(app, [*arguments, "--hidden", "32"])
    assert outcome.exit_code == 2
    assert "hidden must not be given with a model" in outcome.output

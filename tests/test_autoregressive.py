"""Autoregressive, prefix and masked training against transformers' own loss and against loops."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import recipe_fields
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM, TrainingArguments

import tess2lite as t2
from tess2lite.training import build, recipe
from tess2lite.training import run as training_run
from tess2lite.training.autoregressive import PretrainingCollator, PretrainingTrainer
from tess2lite.training.data import Rows

EOS, PAD, UNK = 2, 3, 0
TOKENIZER = Path(__file__).parent / "golden" / "tokenizer"


def new_model(**fields):
    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(TOKENIZER)),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.2,
        **{"sliding_window": None} | fields,
    )
    return MistralForCausalLM(config).eval()


@pytest.fixture
def own(tmp_path):
    """A tiny AR model, a text and chats; returns a maker of recipe fields."""
    new_model().save_pretrained(tmp_path / "ar")
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path / "ar")
    (tmp_path / "own.txt").write_text("The cat sat on the mat. The dog saw a red ball in the barn. " * 100)
    (tmp_path / "own.jsonl").write_text(
        "".join(f'{{"prompt": "Who is {name}?", "response": "A cat."}}\n' for name in "ABCDEFGHIJ" * 3)
    )
    return partial(recipe_fields, tmp_path)


def rows_of(length=12, n=40):
    ids = torch.randint(4, 300, (n, length), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "example": j} for j, row in enumerate(ids.tolist())]


def test_the_causal_loss_is_transformers_own(own):
    trainer = build.build_trainer(recipe.PretrainingRecipe(**own()))
    ids = torch.tensor([row["input_ids"] for row in trainer.eval_dataset])
    with torch.no_grad():
        expected = trainer.model(input_ids=ids, labels=ids).loss.item()
        rows = trainer.data_collator(trainer.eval_dataset)
        assert trainer.compute_loss(trainer.model, rows).item() == pytest.approx(expected, rel=1e-6)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_the_response_and_its_end_are_all_that_counts():
    row = {"input_ids": [1, 8, EOS, 9, 6, 7, EOS, PAD, PAD], "span_mask": [False] * 4 + [True] * 5, "example": 0}
    batch = PretrainingCollator("causal", 0, EOS)([row])
    assert batch["labels"].tolist() == [[-100, -100, -100, -100, 6, 7, EOS, -100, -100]]
    assert batch["input_ids"].tolist() == [row["input_ids"]]


def prefixes(batch):
    return (batch["labels"] == -100).sum(1).tolist()


def test_half_of_the_rows_have_a_prefix_and_no_loss_in_it():
    rows = rows_of(n=400)
    batch = PretrainingCollator("prefix", 0, EOS)(rows)
    lengths = prefixes(batch)
    both_ways = [n for n in lengths if n > 1]
    assert len(both_ways) / 400 == pytest.approx(0.5 * 10 / 11, abs=0.06)  # one of eleven lengths is 1
    assert set(both_ways) == set(range(2, 12)) and sum(both_ways) / len(both_ways) == pytest.approx(6.5, abs=0.6)
    for ids, labels, n in zip(batch["input_ids"], batch["labels"], lengths, strict=True):
        assert (labels[:n] == -100).all() and torch.equal(labels[n:], ids[n:])
    alone = PretrainingCollator("prefix", 0, EOS)(rows[7:8])
    assert all(torch.equal(alone[name], batch[name][7:8]) for name in batch)
    assert prefixes(PretrainingCollator("prefix", 1, EOS)(rows)) != lengths


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prefix_is_read_both_ways_and_the_rest_is_not(attention):
    lm = new_model()
    lm.set_attn_implementation(attention)
    rows = rows_of()
    batch = PretrainingCollator("prefix", 0, EOS)(rows)
    j = next(j for j, n in enumerate(prefixes(batch)) if 4 <= n <= 9)
    n, ids, mask = prefixes(batch)[j], batch["input_ids"][j : j + 1], batch["attention_mask"][j : j + 1]

    def hidden(ids, mask=mask):
        with torch.no_grad():
            return lm.model(input_ids=ids, attention_mask=mask).last_hidden_state[0]

    def changed(place, **how):
        other = ids.clone()
        other[0, place] += 1
        return (hidden(ids, **how) != hidden(other, **how)).any(1).tolist()

    assert changed(n - 1) == [True] * 12  # the prefix's last token: earlier ones, and all that follow
    assert changed(n) == [False] * n + [True] * (12 - n)  # the first after it: only what follows
    causal = next(j for j, n in enumerate(prefixes(batch)) if n == 1)
    assert changed(5, mask=batch["attention_mask"][causal : causal + 1]) == changed(5, mask=None)
    assert changed(5, mask=None) == [False] * 5 + [True] * 7


def test_hidden_tokens_are_told_from_both_sides_at_their_own_place(own):
    trainer = build.build_trainer(recipe.PretrainingRecipe(**own(objective="masked")))
    batch = trainer.data_collator(rows_of(length=16, n=6))
    ids, labels = torch.tensor([row["input_ids"] for row in rows_of(length=16, n=6)]), batch["labels"]
    hidden = labels != -100
    assert hidden.sum(1).tolist() == [2] * 6 and not hidden[:, 0].any()  # 15 % of 15
    assert torch.equal(batch["input_ids"], ids.masked_fill(hidden, UNK)) and torch.equal(labels[hidden], ids[hidden])
    both_ways = new_model()
    both_ways.load_state_dict(trainer.model.state_dict())
    both_ways.config.is_causal = False  # transformers' own switch, not a mask
    for layer in both_ways.model.layers:
        layer.self_attn.is_causal = False
    total = 0
    with torch.no_grad():
        for j, i in hidden.nonzero().tolist():
            log_p = both_ways(input_ids=batch["input_ids"][j : j + 1]).logits[0, i].log_softmax(-1)
            total -= log_p[ids[j, i]].item()
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(total / 12, rel=1e-5)


@pytest.mark.parametrize("objective", ["causal", "prefix", "masked"])
def test_a_run_is_resumed_to_the_bit_and_loads_everywhere(own, tmp_path, objective):
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(f"{k}: {v}" for k, v in own(kind="ar", objective=objective, weights="random").items()))
    training_run.main([str(path), f"output={tmp_path / 'whole'}"])
    training_run.main([str(path), "steps=5"])
    training_run.main([str(path)])
    resumed, whole = (AutoModelForCausalLM.from_pretrained(folder) for folder in (own()["output"], tmp_path / "whole"))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert type(resumed) is MistralForCausalLM and getattr(resumed.config, "is_causal", True)
    tokenizer = AutoTokenizer.from_pretrained(own()["output"])
    assert resumed.generate(**tokenizer("The cat", return_tensors="pt"), max_new_tokens=3).shape[1] > 3
    assert not hasattr(t2.load(own()["output"]).config, "diffusion")  # and can be adapted


def test_all_three_learn(own, tmp_path):
    for objective in ("causal", "prefix", "masked"):
        run = training_run.train(
            recipe.PretrainingRecipe(
                **own(objective=objective, steps=40, evaluate_every=1, output=str(tmp_path / objective))
            )
        )
        evaluated = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
        assert evaluated[-1] < 0.8 * evaluated[0]


def test_chats_are_learned_by_their_answers(own, tmp_path):
    changes = {"data": str(tmp_path / "own.jsonl"), "masking": "response", "length": 48, "steps": 40}
    run = training_run.train(recipe.PretrainingRecipe(**own(**changes)))
    assert run.evaluate()["eval_loss"] < 1 < math.log(300)


def test_evaluation_does_not_depend_on_the_seed_or_on_the_batch(own):
    changes = ({"seed": 0}, {"seed": 1}, {"micro_batch_size": 1})
    for objective in ("prefix", "masked"):
        found = [
            build.build_trainer(recipe.PretrainingRecipe(**own(objective=objective, **change))).evaluate()["eval_loss"]
            for change in changes
        ]
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def test_random_weights_follow_from_the_seed_and_others_are_the_models_own(own, tmp_path):
    def weights(**changes):
        return build.build_trainer(recipe.PretrainingRecipe(**own(**changes))).model.state_dict()

    def same(one, other):
        return all(torch.equal(one[name], other[name]) for name in one)

    source = MistralForCausalLM.from_pretrained(own()["model"]).state_dict()
    assert same(weights(), source)
    torch.manual_seed(5)
    random = weights(weights="random")
    assert same(random, weights(weights="random")) and not same(random, weights(weights="random", seed=1))
    assert not same(random, source)
    (Path(own()["model"]) / "model.safetensors").unlink()  # an architecture is enough
    assert same(random, weights(weights="random"))


def test_a_denoiser_is_trained_autoregressively_again(own, tmp_path):
    training_run.train(recipe.MaskedRecipe(**own(steps=3)))
    denoiser = t2.load(own()["output"])
    trainer = build.build_trainer(
        recipe.PretrainingRecipe(**own(model=own()["output"], output=str(tmp_path / "again")))
    )
    assert torch.equal(trainer.model.lm_head.weight, denoiser.lm_head.weight)
    ids, other = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():
        assert torch.equal(*(trainer.model.model(input_ids=x).last_hidden_state[:, :3] for x in (ids, other)))
    assert "timestep_embed.weight" not in trainer.model.state_dict()


def test_what_makes_no_sense_gets_a_sentence(own, tmp_path):
    mistakes = {
        "objective is 'infilling'; choose one of causal, prefix, masked": {"objective": "infilling"},
        "masking is 'ul2'; choose one of none, response": {"masking": "ul2"},
        "weights is 'none'; choose one of pretrained, random": {"weights": "none"},
        "objective is 'prefix'; responses are learned with objective 'causal'": {
            "objective": "prefix",
            "masking": "response",
        },
        "lora_rank is 4; an AR model is trained whole": {"lora_rank": 4},
        "dtype is 'bfloat16'; an AR model is trained whole, in float32": {"dtype": "bfloat16"},
    }
    for sentence, changes in mistakes.items():
        with pytest.raises(ValueError, match=sentence):
            recipe.PretrainingRecipe(**own(**changes))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is a bert; the decoders accepted are mistral, llama"):
        build.build_trainer(recipe.PretrainingRecipe(**own(model=str(tmp_path / "bert"))))
    with pytest.raises(ValueError, match="There is no model"):
        build.build_trainer(recipe.PretrainingRecipe(**own(model="nothing")))
    training_run.train(recipe.Recipe(**own(lora_rank=2, steps=3)))
    with pytest.raises(ValueError, match="is an adapter; merge it into its base first"):
        build.build_trainer(recipe.PretrainingRecipe(**own(model=own()["output"], output=str(tmp_path / "more"))))


def test_labels_count_by_their_weights(tmp_path):
    """By hand: weights of a batch scale each label's cross-entropy in the sum."""
    lm = new_model()
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[])
    made = PretrainingTrainer(lm, args=arguments, train_dataset=Rows([[1, 5, 6, 7]], 8, 0))
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 2]])
    labels = ids.masked_fill(torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]]).bool(), -100)
    weights = torch.tensor([[9.0, 0.5, 1, 2], [9, 9, 3, 1]])
    batch = {"input_ids": ids, "labels": labels, "loss_weights": weights}
    log_p = lm(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    counted = weights[:, 1:] * (labels[:, 1:] != -100)
    expected = -(log_p * counted).sum() / counted.sum()
    assert made.compute_loss(lm, batch).item() == pytest.approx(expected.item(), rel=1e-5)

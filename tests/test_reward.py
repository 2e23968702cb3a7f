"""Reward models: trained on pairs by TRL, loaded whole or as adapters, and read at the place they were trained at."""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN
from parity import close

import tess2lite as t2
from tess2lite import reward
from tess2lite.training import build, recipe
from tess2lite.training import reward as reward_training
from tess2lite.training import run as training_run

PAIRS = [
    {"prompt": "Say a word.", "chosen": f"happy {word}", "rejected": f"sad {word}"}
    for word in ("cat", "dog", "fox", "owl", "cow", "pig", "hen", "bee")
]


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a random denoiser, as a user's own base."""
    from conftest import FAMILIES
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    config_class, model_class = FAMILIES["mistral"]
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tokenizer")
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    lm = model_class(config)
    lm.tokenizer = tokenizer
    folder = tmp_path_factory.mktemp("base") / "denoiser"
    lm.save_pretrained(folder)
    return folder


def tune(base, tmp_path, **changes):
    """The recipe of an adapter on the base that was trained on chats for two steps."""
    tuned = recipe.Recipe(
        model=str(base),
        data=jsonl(tmp_path / "chats.jsonl", [{"prompt": "Say.", "response": "A cat."}] * 9),
        output=str(tmp_path / "tuned"),
        masking="response",
        length=48,
        batch_size=4,
        micro_batch_size=4,
        steps=2,
        warmup=1,
        lora_rank=4,
        num_eval_examples=2,
        evaluate_every=2,
        save_every=2,
        **changes,
    )
    training_run.train(tuned)
    return tuned


def settings(base, tmp_path, **changes):
    given = dict(
        model=str(base),
        data=jsonl(tmp_path / "pairs.jsonl", PAIRS * 4),
        output=str(tmp_path / "judge"),
        length=48,
        batch_size=8,
        micro_batch_size=8,
        steps=30,
        learning_rate=5e-3,
        warmup=2,
        num_eval_examples=6,
        evaluate_every=30,
        save_every=10,
        lora_rank=4,
    )
    return recipe.RewardRecipe(**(given | changes))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    made = settings(base, tmp_path_factory.mktemp("adapter"))
    trained = training_run.train(made)
    return made, trained


def scores(model, tokenizer, words=("happy cow", "sad cow")):
    from tess2lite.chat_template import encode_chat

    chats = [[{"role": "user", "content": "Say a word."}, {"role": "assistant", "content": word}] for word in words]
    return model.score_ids(torch.tensor([encode_chat(tokenizer, chat, 48)[0]["input_ids"] for chat in chats]))


def test_an_adapter_learns_the_preference_and_is_read_as_it_was_trained(adapter):
    """The score of TRL's trainer is the score of guidance: the same row, through both, filler or none."""
    made, trainer = adapter
    model = t2.load_reward(made.output)
    liked, disliked = scores(model, model.tokenizer)
    assert liked > disliked + 1
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        theirs = trainer.model.eval()(**batch).logits[:, 0]
    assert batch["attention_mask"].min() == 0  # some rows have filler
    for row, real, wanted in zip(batch["input_ids"], batch["attention_mask"].sum(1), theirs, strict=True):
        assert model.score_ids(row[None, :real])[0].item() == pytest.approx(wanted.item(), abs=1e-4)
    assert model.config.score_position == "last"


def test_an_adapter_shares_its_base_with_the_denoiser(adapter, base):
    made, _ = adapter
    lm = t2.load(base)
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    shared, alone = t2.load_reward(made.output, base=lm), t2.load_reward(made.output)
    ids = torch.randint(4, 300, (3, 20))
    close(shared.score_ids(ids), alone.score_ids(ids), 1e-5)
    ours = {tensor.data_ptr() for tensor in shared.parameters()} - {tensor.data_ptr() for tensor in lm.parameters()}
    extra = sum(tensor.numel() for tensor in shared.parameters() if tensor.data_ptr() in ours)
    whole = sum(tensor.numel() for tensor in alone.parameters())
    assert extra == sum(t.numel() for n, t in shared.named_parameters() if "lora_" in n or n.startswith("score"))
    assert extra < whole / 4
    after = lm.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    plain = t2.generate(lm, "A cat.", steps=4, progress=False).token_ids
    assert plain == t2.generate(t2.load(base), "A cat.", steps=4, progress=False).token_ids


def test_a_denoiser_with_an_adapter_of_its_own_shares_its_base(adapter, base, tmp_path):
    made, _ = adapter
    tuned = tune(base, tmp_path, embeddings="trained", learning_rate=0.1)
    lm = t2.load(tuned.output)
    ids = torch.randint(4, 300, (3, 20))
    close(t2.load_reward(made.output, base=lm).score_ids(ids), t2.load_reward(made.output).score_ids(ids), 1e-5)


def test_guidance_in_four_bits(adapter, base):
    made, _ = adapter
    lm = t2.load(base, load_in_4bit=True)
    judge = t2.load_reward(made.output, base=lm)
    assert any("4bit" in type(module).__name__ for module in judge.modules())
    out = t2.generate(lm, "A cat.", steps=3, length=8, hooks=[t2.RewardGuidance(judge, 50.0)], progress=False)
    plain = t2.generate(lm, "A cat.", steps=3, length=8, progress=False)
    assert out.trajectory.records["reward"].isfinite().all() and not torch.equal(
        out.trajectory.top_p, plain.trajectory.top_p
    )
    whole = t2.load_reward(GOLDEN / "reward", load_in_4bit=True)
    assert any("4bit" in type(module).__name__ for module in whole.modules())


@pytest.mark.parametrize("wanted", [False, True])
def test_the_recipe_decides_on_checkpointing_whatever_trl_prefers(base, tmp_path, wanted):
    trainer = reward_training.prepare_reward(settings(base, tmp_path, gradient_checkpointing=wanted, steps=3))
    trainer.train()
    layer = trainer.model.base_model.model.model.layers[0]
    assert layer.gradient_checkpointing == wanted


def test_an_adapter_names_a_base_of_the_hub_by_its_name(base, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "adapter_base", lambda source: None)
    whole = reward_training.load_classifier
    monkeypatch.setattr(reward_training, "load_classifier", lambda source, *how, **more: whole(str(base), *how, **more))
    trainer = reward_training.prepare_reward(settings(base, tmp_path, model="someone/base"))
    assert trainer.model.peft_config["default"].base_model_name_or_path == "someone/base"


def test_a_whole_classifier_and_resuming(base, tmp_path):
    """Every weight tuned; a run of 20 steps that went on to 30 is the run of 30."""
    straight = training_run.train(settings(base, tmp_path, lora_rank=0, learning_rate=1e-3))
    halves = {"lora_rank": 0, "learning_rate": 1e-3, "output": str(tmp_path / "halves")}
    training_run.train(settings(base, tmp_path, steps=20, **halves))
    resumed = training_run.train(settings(base, tmp_path, **halves))
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        close(one, other, 1e-6)
    model = t2.load_reward(tmp_path / "judge")
    liked, disliked = scores(model, model.tokenizer)
    assert liked > disliked and model.config.score_position == "last"


def test_pairs_are_padded_as_what_a_denoiser_writes(tiny):
    tokenizer = tiny().tokenizer
    pairs = [reward_training.pair_of(record) for record in PAIRS]
    rows, dropped = reward_training.pair_rows(pairs, tokenizer, 48, seed=0)
    texts = [row[side] for row in rows for side in ("chosen_ids", "rejected_ids")]
    padding = [len(ids) - 1 - ids.index(tokenizer.eos_token_id) for ids in texts]
    assert not dropped and all(len(ids) <= 48 for ids in texts) and len(set(padding)) > 4
    assert all(
        ids[len(ids) - some :] == [tokenizer.pad_token_id] * some for ids, some in zip(texts, padding, strict=True)
    )
    assert reward_training.pair_rows(pairs, tokenizer, 20, seed=0)[1] == len(pairs)


def test_messages_and_prompts_are_both_pairs():
    said = [{"role": "user", "content": "Say."}, {"role": "assistant", "content": "yes"}]
    record = {"chosen": said, "rejected": [said[0], {"role": "assistant", "content": "no"}], "score": 3}
    assert reward_training.pair_of(record) == reward_training.pair_of(
        {"prompt": "Say.", "chosen": "yes", "rejected": "no"}
    )


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "Record 1 of .* are the same text"),
        ({"prompt": "a", "chosen": "b"}, "no preference in the columns prompt, chosen"),
        ({"chosen": "b", "rejected": "c"}, "give prompt, chosen and rejected"),
        ({"prompt": "a", "chosen": " ", "rejected": "c"}, "Record 1 of .* has no text in .chosen.: it is empty"),
        ({"chosen": [{"role": "user", "content": "a"}], "rejected": "c"}, "does not end with the assistant"),
    ],
)
def test_pairs_that_are_none(tmp_path, record, sentence):
    path = jsonl(tmp_path / "pairs.jsonl", [record])
    with pytest.raises(ValueError, match=sentence):
        reward_training.read_pairs(path)


def test_mistakes_get_a_sentence(tmp_path, adapter, base, tiny):
    made, _ = adapter

    def refuses(sentence, *arguments, **more):
        with pytest.raises(ValueError, match=sentence):
            t2.load_reward(*arguments, **more)

    refuses("is not a reward model", GOLDEN / "checkpoint")
    refuses("There is no model", tmp_path / "nothing")
    with pytest.raises(ValueError, match="base is a str; give a denoiser"):
        t2.load_reward(made.output, base="tinytown-instruct")
    with pytest.raises(ValueError, match="'tinytown:funny' is not a preference of Tinytown; choose tinytown:cheerful"):
        reward_training.read_pairs("tinytown:funny")
    refuses("score_position is 'middle'; choose one of last, eos", GOLDEN / "reward", score_position="middle")
    refuses("is a whole model, not an adapter", GOLDEN / "reward", base=tiny())
    refuses("base is on .*; leave base out", made.output, base=t2.load("tinytown-base"))
    for more in ({"load_in_4bit": True}, {"dtype": "float64"}, {"device": "cpu"}):
        refuses("leave load_in_4bit, dtype and device out", made.output, base=t2.load(base), **more)
    shutil.copytree(GOLDEN / "reward", tmp_path / "spoiled")
    (tmp_path / "spoiled" / "model.safetensors").rename(tmp_path / "spoiled" / "pytorch_model.bin")
    refuses("pickled weights", tmp_path / "spoiled")
    two = tmp_path / "two"
    reward.MistralRewardModel.from_pretrained(
        GOLDEN / "reward", num_labels=2, ignore_mismatched_sizes=True
    ).save_pretrained(two)
    refuses("is not a reward model; give a sequence classifier with one label", two)
    tuned = tune(base, tmp_path)
    refuses("is not a reward model: it has no score head", tuned.output)
    with pytest.raises(ValueError, match="is a reward model; give it to tess2lite.load_reward"):
        t2.load(made.output)
    with pytest.raises(ValueError, match="is an adapter; merge it into its base first, or give that base"):
        reward_training.prepare_reward(settings(made.output, tmp_path))
    with pytest.raises(ValueError, match="pairs are longer|at least 5 are needed"):
        reward_training.prepare_reward(settings(base, tmp_path, length=16))
    with pytest.raises(ValueError, match="knows no field 'masking'"):
        recipe.read_recipe("own-preferences", masking="ul2")
    (tmp_path / "odd.yaml").write_text("kind: poems\nmodel: a\ndata: b\noutput: c\n")
    with pytest.raises(ValueError, match="has kind 'poems'; a recipe has one of denoiser, masked, ar, reward"):
        recipe.read_recipe(tmp_path / "odd.yaml")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_all_trained_weights_are_float32_and_can_be_unscaled(base, tmp_path, dtype, lora_rank):
    """In half precision small updates are lost, and GradScaler refuses float16 gradients."""
    made = settings(base, tmp_path, dtype=dtype, lora_rank=lora_rank)
    trainer = reward_training.prepare_reward(made)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    scaler = torch.amp.GradScaler("cpu")
    before = trainer.model.get_submodule("base_model.model.score" if lora_rank else "score")
    head = [weight for weight in before.parameters() if weight.requires_grad][0]
    value = head.detach().clone()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.autocast("cpu", torch.bfloat16):
        loss = trainer.model(**batch).logits.sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert (head != value).all()

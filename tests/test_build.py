"""All bundled models made from nothing, tiny and bad: every stage runs, is skipped when it is done, and scores."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

import tess2lite as t2
from tess2lite import textbook
from tess2lite.chunks import generator_for
from tess2lite.schedule import alpha_bar
from tess2lite.tinytown import tasks
from tess2lite.tinytown.tasks import TASKS, examples
from tess2lite.training import reward as reward_training
from tess2lite_course.experiments import build, instruct, rewards


def shortened(phase):
    return replace(phase, steps=2, tokens=512)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("tinytown")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SAMPLE", 2_000)
        patch.setattr(build, "SCORED", 2)
        patch.setattr(build, "PHASES", {name: [shortened(phase) for phase in p] for name, p in build.PHASES.items()})
        patch.setattr(build, "has_fast_bfloat16", lambda device: False)  # compiling takes longer than two steps
        patch.setattr(build, "MEASURED", 12)
        patch.setattr(instruct, "PER_SEED", 1)
        patch.setattr(instruct, "STEPS", 2)
        patch.setattr(instruct, "CONVERSATIONS", 2)
        patch.setattr(instruct, "MOST_NEW_TOKENS", 4)
        patch.setattr(reward_training, "TINYTOWN_PAIRS", 200)
        patch.setattr(rewards, "STEPS", 8)
        patch.setattr(rewards, "BATCH", 4)
        patch.setattr(rewards, "SCORED", 4)
        build.build(out)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
        build.build(out)
    return out, before


def test_every_stage_leaves_a_model_and_a_card(made):
    out, before = made
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before  # the second time, nothing
    for name in (*build.PHASES, *rewards.KINDS):
        assert json.loads((out / name / "card.json").read_text())["model"] == name
    card = json.loads((out / "tinytown-instruct" / "card.json").read_text())
    assert set(card["scores"]) == {*TASKS, "sorting", "counting", "boolean", "tracking"} - {"puzzle"}
    assert all(set(models) == {"diffusion", "ar", "base"} for models in card["scores"].values())
    assert {name: len(shares) for name, shares in card["right_by_turn"].items()} == {"diffusion": 3, "ar": 3, "base": 3}
    assert json.loads((out / "tinytown-reward" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "tinytown-instruct"
    )
    assert t2.Chat(t2.load(out / "tinytown-instruct"), steps=2, progress=False)("Who is Tom?").prompt


def test_readmes_say_what_the_cards_say(made):
    out, _ = made
    card = json.loads((out / "tinytown-instruct" / "card.json").read_text())
    score = card["scores"]["reading"]["diffusion"]
    row = f"| question about a passage | {score['score']:.0%} [{score['low']:.0%} to {score['high']:.0%}] |"
    assert row in (out / "tinytown-instruct" / "README.md").read_text()
    assert row in (out / "README.md").read_text()
    for folder in out.glob("tinytown-*/"):
        readme = folder / "README.md"
        if readme.exists():
            assert "{" not in readme.read_text().split("```")[0]
            assert folder.name in readme.read_text()


@pytest.mark.parametrize("name", ["tinytown-base", "tinytown-instruct"])
def test_a_denoiser_takes_its_steps_where_its_own_loss_changes(made, name):
    lm = t2.load(made[0] / name)
    curve = lm.config.loss_curve
    assert len(curve["t"]) == len(curve["loss"]) > 10
    assert lm.config.timestep_spacing == "informative"
    times = t2.schedule.sampling_times(20, "informative", curve)
    assert not torch.allclose(times, t2.schedule.sampling_times(20, "uniform"), atol=0.02)


def test_the_loss_of_a_stage_is_the_textbook_s_with_one_stream_of_noise(made, tmp_path):
    out, _ = made
    lm = build.load_trainable(out / "tinytown-base").eval()
    phase = build.Phase(1, 256, 1e-3, 0.0)
    batch = build._planned("tinytown-base", phase, lm.tokenizer, 0, [])[0]
    mask = batch["span_mask"]
    trainer = build.DenoisingStage(model=lm, args=build.training_arguments("tinytown-base", tmp_path))
    trainer.state.global_step = 7
    with torch.no_grad():
        loss = trainer._denoising_loss(lm, batch, True, seed=3)
        vocabulary = lm.config.vocab_size
        generator = generator_for(3, 7, "training noise", mask.device)
        noise = torch.zeros(*mask.shape, vocabulary)
        noise[mask] = torch.randn(int(mask.sum()), vocabulary, generator=generator)
        logits = textbook.training_logits(lm, batch["input_ids"], mask, batch["t"], noise, alpha_bar(), True)
    each = cross_entropy(logits[mask], batch["input_ids"][mask], reduction="none")
    expected = (each * batch["loss_weights"][mask]).sum()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_answers_alone_are_measured(made):
    tokenizer = t2.load(made[0] / "tinytown-instruct").tokenizer
    ids, span_mask = build.answers_to_measure(tokenizer)
    for row, mask in zip(ids, span_mask, strict=True):
        assert row[mask][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row[: mask.int().argmax()]).endswith("<|assistant|>\n")


def test_turns_are_scored_after_the_true_answers_of_the_turns_before(monkeypatch):
    """An oracle that forgets everything after the first turn."""
    monkeypatch.setattr(instruct, "CONVERSATIONS", 6)
    tokenizer = t2.load("tinytown-base").tokenizer
    chats = instruct.conversations(6, tokenizer, 256)
    first_answers = {chat[0]["content"]: chat[1]["content"] for chat in chats}
    assert all(tasks.side(chat[0]["content"]) == "test" for chat in chats)

    def answer(asked, seed):
        assert all(message in chat for chat, known in zip(chats, asked, strict=True) for message in known)
        return [first_answers[known[0]["content"]] if len(known) == 1 else "nothing" for known in asked]

    assert instruct.turn_scores(answer, tokenizer, 256) == [1, 0, 0]


def test_puzzles_are_told_apart():
    kinds = {instruct.kind(example) for example in examples("puzzle", "test", 60)}
    assert kinds == {"sorting", "counting", "boolean", "tracking"}
    assert instruct.kind(examples("reading", "test", 1)[0]) == "reading"


def test_scores_by_hand(monkeypatch):
    """An oracle that knows the references of the first seed alone."""
    monkeypatch.setattr(instruct, "PER_SEED", 4)
    tokenizer = t2.load("tinytown-base").tokenizer
    known = {e.prompt: e.response for task in TASKS for e in instruct.test_examples(task, tokenizer, 128, 0)}
    found = instruct.scores(lambda prompts, seed: [known[p] if seed == 0 else "" for p in prompts], tokenizer, 128)
    assert found["arithmetic"]["by_seed"] == [1, 0, 0] and found["arithmetic"]["n"] == 12
    assert found["arithmetic"]["score"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["arithmetic"]["low"] < 0.15 and 0.6 < found["arithmetic"]["high"] < 0.75
    facts = found["knowledge"]  # of which there are few, so that seeds ask the same
    assert facts["questions"] <= facts["n"] == 12

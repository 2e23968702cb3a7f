"""A recorded run says what the run did; counted by hand, and against the full logits."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tess2lite as t2
from tess2lite import textbook
from tess2lite.generation import replay
from tess2lite.hooks import Halt, Pin, Recorder
from tess2lite.trajectory import Trajectory

STEPS = 6


def by_hand(argmax, **more):
    """A trajectory of S steps × L positions whose likeliest tokens are given."""
    ids = torch.tensor(argmax, dtype=torch.int)
    return Trajectory(
        **{
            "tokens": ids,
            "top_ids": ids[..., None].clone(),
            "top_p": torch.ones(*ids.shape, 1),
            "entropy": torch.ones(ids.shape),
            "alpha_bar": torch.linspace(0, 1, len(ids)),
            "span_mask": torch.ones(ids.shape[1], dtype=torch.bool),
            "texts": ["x"] * len(ids),
            "token_strings": {i: f" {i}" for i in range(10)},
        }
        | more
    )


def test_flips_commitment_and_its_order_by_hand():
    run = by_hand([[1, 2, 3, 4], [1, 5, 3, 6], [1, 5, 2, 4], [1, 5, 3, 4]])
    assert run.flips().tolist() == [0, 1, 2, 2]
    assert run.commit_step().tolist() == [0, 1, 3, 2]
    assert run.commit_order().tolist() == [0, 1, 3, 2]
    one = by_hand([[1, 2]])
    assert one.flips().tolist() == one.commit_step().tolist() == [0, 0]


def test_words_join_pieces_that_meet_in_letters():
    token_strings = {0: "<s>", 1: " An", 2: "na", 3: ".", 4: " a", 5: "\n", 6: "B"}
    run = by_hand([[0, 1, 2, 3, 4, 5, 6]], token_strings=token_strings)
    assert run.words() == [(0, 1), (1, 3), (3, 4), (4, 5), (5, 6), (6, 7)]


@pytest.mark.parametrize("final", ["argmax", "sample"])
def test_the_probability_of_each_drawn_token_is_recorded(tiny, final):
    """Against the full logits: of what was drawn, of what was pinned, and of what a run ends with."""
    logits = []
    hooks = [Pin({12: 9}, start=2), lambda step: logits.append(step.logits[0])]
    options = {"steps": STEPS, "length": 9, "final": final, "progress": False}
    run = t2.generate(tiny(), "A cat.", hooks=hooks, **options).trajectory
    p = torch.stack(logits).softmax(-1)
    expected = p.gather(-1, run.tokens[..., None].long())[..., 0]
    assert torch.allclose(run.records["token_p"][:, run.span_mask], expected[:, run.span_mask], atol=1e-6)
    assert (run.records["token_p"][:, ~run.span_mask] == 1).all()
    assert run.tokens[2:, 12].tolist() == [9] * (STEPS - 2)


def test_the_loudest_tokens_of_the_noisy_pages_are_recorded(tiny):
    """Against the textbook's noisy simplex of the tokens and noise that each step read."""
    lm = tiny()
    ids = torch.arange(4, 16)[None]
    mask = torch.arange(12)[None] > 3
    noise = torch.randn(STEPS + 1, 1, 12, lm.config.vocab_size)
    recorder = Recorder()
    batch = {"input_ids": ids, "span_mask": mask}
    steps = t2.denoise(lm, batch, steps=STEPS, hooks=[recorder], noise=lambda step, shape: noise[step + 1])
    pages = [torch.as_tensor(5 * noise[0])]
    for step in steps:
        if not step.is_last:
            clean = textbook.token_simplex(step.tokens, lm.config.vocab_size)
            pages.append(textbook.add_noise(clean, noise[step.index + 1], torch.tensor(step.next_alpha_bar)))
    for page, kept in zip(pages, recorder.steps, strict=True):
        assert torch.equal(kept["noisy_tokens"][mask], page.argmax(-1)[mask])
        assert torch.equal(kept["noisy_tokens"][~mask], ids[~mask])


def test_the_loudest_tokens_are_found_only_for_a_hook_that_asks(tiny):
    lm = tiny()
    batch = {"input_ids": torch.arange(4, 16)[None], "span_mask": torch.arange(12)[None] > 3}
    for hooks, expected in (([], False), ([Recorder()], True), ([Halt()], False)):
        steps = list(t2.denoise(lm, batch, steps=STEPS, hooks=hooks))
        assert [step.noisy_tokens is not None for step in steps] == [expected] * STEPS


@pytest.fixture(scope="module")
def recorded():
    """A real run, and its full logits."""
    lm = t2.load("tinytown-base")
    logits = []
    out = t2.generate(
        lm, "Tom had a drum.", steps=STEPS, length=10, hooks=[lambda step: logits.append(step.logits)], progress=False
    )
    return lm, out, torch.stack(logits)[:, 0]


def test_what_is_recorded_is_the_models_own_prediction(recorded):
    lm, out, logits = recorded
    run, mask = out.trajectory, out.trajectory.span_mask
    p = logits[:, mask].softmax(-1)  # (S, M, V)
    top, ids = p.topk(5)
    assert torch.allclose(run.top_p[:, mask], top, atol=1e-6) and torch.equal(run.top_ids[:, mask], ids.int())
    assert torch.allclose(run.entropy[:, mask], -(p * p.log()).sum(-1), atol=1e-4)
    assert torch.equal(run.argmax[:, ~mask], run.tokens[:, ~mask]) and (run.confidence[:, ~mask] == 1).all()
    assert set(run.top_ids.unique().tolist()) <= set(run.token_strings)
    assert "".join(run.token_strings[i] for i in run.tokens[-1].tolist()[1:]) == lm.tokenizer.decode(run.tokens[-1][1:])


def test_k_is_the_users(recorded):
    lm = recorded[0]
    recorder = Recorder(top_k=3)
    ids, mask = torch.tensor([[1, 5, 6, 0, 0]]), torch.tensor([[False, False, False, True, True]])
    for _ in t2.denoise(lm, {"input_ids": ids, "span_mask": mask}, steps=2, hooks=[recorder]):
        pass
    run = recorder.trajectory(0, mask[0], lm.tokenizer.decode, 1, {})
    assert run.top_ids.shape == (2, 5, 3) and (run.top_p[:, mask[0]].diff(dim=-1) <= 0).all()


def test_saved_and_loaded_the_same(recorded, tmp_path):
    run = recorded[1].trajectory
    run.records["reward"] = torch.arange(STEPS).float()
    run.save(tmp_path / "run.safetensors")
    again = Trajectory.load(tmp_path / "run.safetensors")
    for name in ("tokens", "top_ids", "top_p", "entropy", "alpha_bar", "span_mask"):
        assert torch.equal(getattr(again, name), getattr(run, name)), name
    assert torch.equal(again.records["reward"], run.records["reward"])
    assert (again.texts, again.token_strings, again.settings) == (run.texts, run.token_strings, run.settings)


def test_a_replay_is_the_same_to_the_bit(recorded, tmp_path):
    lm, out, _ = recorded
    out.trajectory.save(tmp_path / "run")
    again = replay(t2.load("tinytown-base"), Trajectory.load(tmp_path / "run"), progress=False)
    assert torch.equal(again.trajectory.top_p, out.trajectory.top_p) and again.text == out.text
    assert not again.trajectory.difference(out.trajectory).any()
    blanks = t2.infill(lm, "Tom had a ___.", steps=3, progress=False)
    assert replay(lm, blanks.trajectory, progress=False).text == blanks.text
    assert replay(lm, out.trajectory, seed=1, progress=False).trajectory.difference(out.trajectory).any()


def test_a_replay_needs_its_own_tokenizer_and_settings(recorded):
    run = recorded[1].trajectory
    other = t2.load("tinytown-base")
    other.tokenizer.decode = lambda ids: "x" * len(ids)
    with pytest.raises(ValueError, match="another tokenizer; load its model, 'tinytown-base'"):
        replay(other, run)
    with pytest.raises(ValueError, match="does not say its final, from_start, hooks, model, prompt, seed"):
        replay(recorded[0], by_hand([[1, 2]]))


def test_files_that_are_no_trajectory(recorded, tmp_path):
    recorded[1].trajectory.save(tmp_path / "whole")
    (tmp_path / "truncated").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign")
    (tmp_path / "text").write_text("no tensors here")
    for name, sentence in (
        ("truncated", "not a complete trajectory"),
        ("foreign", "not a complete trajectory"),
        ("text", "not a complete trajectory"),
        ("missing", "The trajectory file .* does not exist"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Trajectory.load(tmp_path / name)


def test_difference_by_hand():
    one, late = by_hand([[1, 2], [3, 4], [5, 6]]), by_hand([[3, 9], [5, 6]], settings={"start": 1})
    assert one.difference(late).tolist() == [[False, False], [False, True], [False, False]]
    assert late.difference(one).tolist() == [[False, True], [False, False]]
    stopped = by_hand([[1, 9]])
    assert one.difference(stopped).tolist() == [[False, True], [False, False], [False, False]]
    assert not late.difference(stopped).any()
    with pytest.raises(ValueError, match="have 2 and 3 positions"):
        one.difference(by_hand([[1, 2, 3]]))


def test_changed_runs_are_not_taken_for_replays(recorded):
    lm, out, _ = recorded
    late = replay(lm, out, start=3, progress=False)
    assert late.trajectory.first == 3 and late.trajectory.label(0) == "step 4 of 6"
    with pytest.raises(ValueError, match="began at step 3 with the text of another"):
        replay(lm, late)
    pin = Pin({int(out.trajectory.span_mask.nonzero()[2]): 9})
    pinned = replay(lm, out, [pin], progress=False)
    with pytest.raises(ValueError, match="was made with Pin; give these hooks again"):
        replay(lm, pinned)
    assert replay(lm, pinned, [pin], progress=False).token_ids == pinned.token_ids
    with pytest.raises(ValueError, match=r"span_mask has shape \(2,\); this text needs"):
        replay(lm, out, span_mask=[True, False])


def test_signs_of_several_tokens_are_shown_whole(recorded):
    lm = recorded[0]
    run = t2.generate(lm, "Tom 🙂 שלום had", steps=1, length=4, progress=False).trajectory
    assert "".join(run.context_strings) == "<s>Tom 🙂 שלום had" and len(run.context_strings) == len(run.span_mask)
    blanks = t2.infill(lm, "🙂 __ 🙂.", steps=1, progress=False).trajectory
    assert "".join(blanks.context_strings).count("🙂") == 2


def test_an_interrupt_keeps_what_there_is(recorded):
    def interrupt(step):
        if step.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(t2.Interrupted, match="Stopped after 2 of 6 steps") as stop:
        t2.generate(recorded[0], ["Tom had a drum.", "Anna ran."], steps=6, length=5, hooks=[interrupt], progress=False)
    first, second = stop.value.generations
    assert len(first.trajectory) == len(second.trajectory) == 2
    assert "Stopped after 2 of 6 steps" in first._repr_html_()


def test_the_user_says_how_many_tokens_are_recorded(recorded):
    run = t2.generate(recorded[0], "Tom.", steps=2, length=3, record=8, progress=False).trajectory
    assert run.top_ids.shape[-1] == 8


def test_numbers_of_numpy_are_saved_too(recorded, tmp_path):
    out = t2.generate(
        recorded[0],
        "Tom.",
        steps=np.int64(2),
        top_p=np.float32(0.9),
        temperature=np.float64(1.5),
        seed=np.array([3]),
        length=3,
        progress=False,
    )
    out.trajectory.save(tmp_path / "run")
    assert Trajectory.load(tmp_path / "run").settings == out.trajectory.settings
    with pytest.raises(OSError, match="could not be written"):
        out.trajectory.save(tmp_path / "no such folder" / "run")


BROKEN = {
    "alpha_bar": torch.ones(2),
    "token_strings": {},
    "texts": ["x"],
    "context_strings": ["x"],
    "settings": [],
    "span_mask": torch.zeros(2, dtype=torch.bool),
    "top_p": torch.full((3, 2, 1), 2.0),
    "entropy": torch.full((3, 2), float("nan")),
    "top_ids": torch.zeros(3, 2, 0, dtype=torch.int),
    "records": {"reward": torch.ones(1)},
}


@pytest.mark.parametrize("part", BROKEN)
def test_parts_that_do_not_fit_are_no_trajectory(part, tmp_path):
    by_hand([[1, 2], [3, 4], [5, 6]]).save(tmp_path / "whole")
    assert len(Trajectory.load(tmp_path / "whole")) == 3
    by_hand([[1, 2], [3, 4], [5, 6]], **{part: BROKEN[part]}).save(tmp_path / "broken")
    with pytest.raises(ValueError, match="not a complete trajectory"):
        Trajectory.load(tmp_path / "broken")


def test_a_start_is_a_number(tmp_path):
    by_hand([[1, 2], [3, 4]], settings={"start": '"><b>'}).save(tmp_path / "broken")
    with pytest.raises(ValueError, match="not a complete trajectory"):
        Trajectory.load(tmp_path / "broken")


def test_a_run_without_a_step_has_no_trajectory():
    with pytest.raises(ValueError, match="Nothing was recorded"):
        Recorder().trajectory(0, torch.ones(3, dtype=torch.bool), str, 0, {})

"""The explorer as an exported page shows it, in a real browser without a network."""

import json
import re

import pytest
import torch
from test_explorer import HOSTILE, trajectory, undecided
from test_guidance import small_judge

import tess2lite as t2
from tess2lite.hooks import Pin
from tess2lite.tokens import encode
from tess2lite.viz.explorer import comparison, explorer
from tess2lite.viz.export import export
from tess2lite.viz.voices import Voice

PROMPT = "Tom had a drum."
STEPS = 12
PAGE = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
OURS = {"page-has-heading-one"}  # of the page that this test makes
PLACES = "all => all.map(slot => { const box = slot.getBoundingClientRect(); return [box.x, box.y, box.width]; })"


@pytest.fixture(scope="module")
def lm():
    return t2.load("tinytown-base")


@pytest.fixture(scope="module")
def written(lm):
    return t2.generate(lm, PROMPT, steps=STEPS, length=30, seed=1, progress=False)


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of HTML without a network; a script's failure is the test's."""
    contexts = []

    def open_page(page_html, tour=False, **settings):
        path = tmp_path / "run.html"
        path.write_text(f"{PAGE}<title>x</title><body><main>{page_html}</main></body></html>", encoding="utf-8")
        settings = {"viewport": {"width": 900, "height": 700}} | settings
        contexts.append(browser.new_context(offline=True, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("dialog", lambda dialog: pytest.fail(f"the page ran {dialog.message}"))
        page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
        if not tour and settings.get("java_script_enabled", True):
            page.add_init_script("localStorage.setItem('tess2lite tour', 'seen')")
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def percent(p):
    """A share as the explorer says it: no line ends before the sign."""
    if 0.995 < p < 1:
        return "99\u00a0%"
    if p < 0.005:
        return "below 1\u00a0%" if p else "0\u00a0%"
    return f"{round(100 * p)}\u00a0%"


def label(page):
    return page.locator("output").inner_text()


def go(page, step):
    """Moves to a step, counted from 1."""
    page.locator("input[type=range]").fill(str(step - 1))


def held(page):
    return page.locator(".name").inner_text()


def shown_words(page, pane=0):
    """What the slots say, by their labels."""
    slots = page.locator(".pane").nth(pane).locator(".slot")
    return slots.evaluate_all("all => all.map(slot => slot.getAttribute('aria-label'))")


def says(run, token):
    """A token as the explorer names it."""
    text = run.token_strings[token]
    special = {run.settings["eos_token_id"][0]: "end of text", run.settings["pad_token_id"]: "padding"}
    return special.get(token, text.strip().replace("\n", "⏎") or "∅")


def test_every_step_shows_the_recorded_tokens(opened, written):
    page, run = opened(explorer(written)), written.trajectory
    assert label(page) == f"step {STEPS}/{STEPS}"  # the final text first
    fold = page.locator(".fold")
    if fold.count():
        fold.click()
    for step in (1, 4, STEPS):
        go(page, step)
        words = shown_words(page)
        ids = run.tokens[step - 1, run.span_mask].tolist()
        whole = [i for i, token in enumerate(ids) if token not in run.token_bytes]
        assert whole and [words[i] for i in whole] == [says(run, ids[i]) for i in whole]


# Keeps, at every step that is shown, where everything is and what the words say.
WATCH = """host => {
  const place = element => {
    const box = element.getBoundingClientRect();
    return [box.x, box.y, box.width, box.height];
  };
  const all = names => [...host.shadowRoot.querySelectorAll(names)];
  window.seen = [];
  host.addEventListener("t2-change", () => window.seen.push({
    places: all(".slot, .bars, .name, .ribbon, .track, .view, .pane, .play").map(place),
    words: all(".slot").map(slot => slot.getAttribute("aria-label")).join(" "),
  }));
}"""


def test_nothing_moves_while_it_plays(opened, written):
    page = opened(explorer(written))
    frame = page.locator(".x").bounding_box()
    assert (frame["width"], frame["height"]) == (860, 560)
    page.locator(".t2-explorer").evaluate(WATCH)
    go(page, 1)
    page.get_by_role("button", name="Play").click()
    page.locator("output", has_text=f"step {STEPS}/{STEPS}").wait_for(timeout=60_000)
    seen = page.evaluate("window.seen")
    assert len(seen) == STEPS and len({each["words"] for each in seen}) > 3
    assert len(seen[0]["places"]) > 20
    for each in seen:
        assert each["places"] == seen[0]["places"]
    assert page.locator(".x").bounding_box() == frame


def test_a_held_token_stays_held(opened, written):
    page = opened(explorer(written))
    go(page, 3)
    slots = page.locator(".slot")
    slots.nth(9).click()
    place = re.search(r"place \d+", held(page))[0]
    slots.nth(2).hover()
    page.locator(".view canvas").hover(position={"x": 300, "y": 20})
    assert place in held(page) and slots.nth(9).get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Play").click()
    page.locator("output", has_text=f"step {STEPS}/{STEPS}").wait_for()
    assert place in held(page) and page.locator(".slot.held").count() == 1
    page.keyboard.press("Escape")
    assert page.locator(".slot.held").count() == 0
    slots.nth(2).hover()
    assert place not in held(page)  # hover previews again


def test_drawn_and_first_choice_are_told_apart(opened, written):
    page, run = opened(explorer(written)), written.trajectory
    position = int(run.span_mask.nonzero()[5, 0])
    page.locator(".slot").nth(5).click()
    for step in range(STEPS):
        go(page, step + 1)
        drawn, best = int(run.tokens[step, position]), int(run.top_ids[step, position, 0])
        sentence = page.locator(".sentence").inner_text()
        named = {name: says(run, token) for name, token in (("Drawn", drawn), ("First choice", best))}
        for name, word in named.items():
            if not set(word) & {"\ufffd"} and word not in ("end of text", "padding"):
                assert f"{name}: {word}," in sentence
        listed = run.top_ids[step, position].tolist()
        share = round(float(run.top_p[step, position, 0]) * 255) / 255
        assert sentence.endswith(f", {percent(share)}.")
        if drawn not in listed:
            chance = round(float(run.records["token_p"][step, position]) * 255) / 255
            said = percent(max(chance, 0.5 / 255))
            assert f", {said}. First choice" in sentence and page.locator(".bar.drawn").count() == 0
        rest = page.locator(".bar.rest").inner_text()
        assert rest.startswith("all others")


def test_the_ribbon_shows_all_steps_and_takes_there(opened, written):
    page = opened(explorer(written))
    page.locator(".slot").nth(4).click()
    box = page.locator(".ribbon").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 1.5 / STEPS, box["y"] + 5)
    assert label(page) == f"step 2/{STEPS}"
    assert "from step 1" in page.locator(".ribbon canvas").get_attribute("aria-label")


def test_the_map_takes_to_a_step_and_a_word_and_names_them(opened, written):
    page, run = opened(explorer(written)), written.trajectory
    track, canvas = page.locator(".track").bounding_box(), page.locator(".view canvas").bounding_box()
    x = track["x"] + track["width"] * 2.5 / STEPS  # the same axis as the slider's
    page.mouse.move(x, canvas["y"] + 4)
    tip = page.locator(".tip").inner_text()
    first = int(run.span_mask.nonzero()[0, 0])
    assert f"step 3, place {first + 1}" in tip and "%" in tip
    page.mouse.click(x, canvas["y"] + 1)
    assert label(page) == f"step 3/{STEPS}" and f"place {first + 1}" in held(page)
    mark = page.locator(".row").bounding_box()
    assert abs(mark["y"] - canvas["y"]) < 6 and page.locator(".slot.held").count() == 1
    page.locator(".view canvas").press("ArrowRight")
    assert label(page) == f"step 4/{STEPS}"
    page.locator(".view canvas").press("ArrowDown")
    assert f"place {first + 2}" in held(page)


def test_curves_say_their_numbers_on_the_sliders_axis(opened, written):
    page, run = opened(explorer(written)), written.trajectory
    page.get_by_role("tab", name="Curves").click()
    for step in (2, 9):
        go(page, step)
        assert percent(float(run.alpha_bar[step - 1])) in page.locator(".view").inner_text()
    cursor, track = page.locator(".view .cursor").bounding_box(), page.locator(".track").bounding_box()
    assert cursor["x"] + 1 == pytest.approx(track["x"] + track["width"] * 8.5 / STEPS, abs=1)


def test_a_step_is_told_from_the_inside(opened, written):
    page, run = opened(explorer(written)), written.trajectory
    page.get_by_role("tab", name="This step").click()
    page.locator(".slot").nth(6).click()
    go(page, 7)
    position = int(run.span_mask.nonzero()[6, 0])
    strip = page.locator(".strip").inner_text()
    assert f"{percent(float(run.alpha_bar[6]))} signal" in strip.replace("\n", " ")
    words = round(round(float(run.entropy[6, position]) * 16) / 16, 4)
    between = float(torch.tensor(words).exp())
    said = ["hardly"] if between < 1.5 else [f"about {between:.1f}", f"about {between:.0f}"]
    assert any(words in strip for words in said)
    page.locator(".term", has_text="signal").hover()
    assert "ᾱ" in page.locator(".tip").inner_text()


def test_an_end_is_a_pilcrow_and_what_follows_is_folded(opened):
    run = trajectory(["a", "b"])
    run.token_strings = {0: " word", 1: "</s>", 2: "[PAD]"}
    run.tokens = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 2, 2]])
    run.top_ids, run.top_p = run.tokens[..., None], torch.full((2, 6, 1), 0.9)
    run.span_mask = torch.tensor([False, True, True, True, True, True])
    run.entropy, run.settings = torch.ones(2, 6), {"eos_token_id": 1, "pad_token_id": 2}
    page = opened(explorer(run))
    assert page.locator(".slot").all_inner_texts() == ["word", "¶"]
    fold = page.locator(".fold")
    assert "1 more token" in fold.inner_text() and "2 PADs" in fold.inner_text()
    fold.click()
    assert page.locator(".slot").count() == 5 and page.locator(".slot.pad").count() == 2


def test_characters_of_several_tokens_are_whole(opened, lm, written):
    text = " Mädchen “so” 🙂."
    ids = encode(lm.tokenizer, text)
    positions = written.trajectory.span_mask.nonzero()[:, 0].tolist()
    pin = Pin({positions[i]: token for i, token in enumerate(ids)}, start=2)
    page = opened(explorer(t2.replay(lm, written, [pin], progress=False)))
    words = page.locator(".words")
    spelled = "".join(words.locator(".slot").all_inner_texts())
    assert text.replace(" ", "") in re.sub(r"\s|␣", "", spelled)
    assert "\ufffd" not in page.locator(".x").inner_text()
    assert page.locator(".slot.pinned").count() == len(ids)


@pytest.fixture(scope="module")
def futures(lm, written):
    position = int(written.trajectory.span_mask.nonzero()[3, 0])
    token = int(written.trajectory.top_ids[5, position, 1])
    pinned = t2.replay(lm, written, [Pin({position: token}, start=5)], progress=False)
    return {"as it was": written, "by hand": pinned}, position


def test_two_runs_share_rows_control_and_the_held_place(opened, futures):
    runs, position = futures
    page = opened(comparison(runs))
    panes = [page.locator(".pane").nth(i).locator(".slot") for i in range(2)]
    assert page.locator("input[type=range]").count() == 1
    go(page, 3)
    assert page.locator(".slot.differs").count() == 0  # before they part
    rows = [[[round(x), round(width)] for x, _, width in pane.evaluate_all(PLACES)] for pane in panes]
    assert rows[0] == rows[1]
    count = len(rows[0])
    go(page, 6)
    one, other = (run.trajectory for run in runs.values())
    assert page.locator(".slot.pinned").count() == 1
    panes[0].nth(3).click()
    assert [pane.nth(3).get_attribute("aria-pressed") for pane in panes] == ["true", "true"]
    assert "by hand from step 6" in page.locator(".card").inner_text()
    page.get_by_role("tab", name="Difference").click()
    assert "as it was" in page.locator(".view canvas").get_attribute("aria-label")
    go(page, STEPS)
    differ = int(one.difference(other)[-1][one.span_mask][:count].sum())
    marked = page.locator(".pane").nth(1).locator(".slot.differs").count()
    assert abs(marked - differ) <= 1  # the touched one may be marked as held instead


def test_a_stopped_run_is_compared_step_by_step(opened, lm, written):
    late = t2.replay(lm, written, seed=5, start=4, progress=False)
    assert late.trajectory.first > 0
    page = opened(comparison({"whole": written, "late": late}))
    for step in (5, STEPS):
        go(page, step)
        ids = written.trajectory.tokens[step - 1, written.trajectory.span_mask].tolist()
        first = [says(written.trajectory, token) for token in ids]
        assert shown_words(page, 0)[:3] == first[:3] or "\ufffd" in "".join(first[:3])
        run = late.trajectory
        ids = run.tokens[step - 1 - run.first, run.span_mask].tolist()
        assert shown_words(page, 1)[:3] == [says(run, token) for token in ids[:3]]
    assert page.locator("input[type=range]").get_attribute("min") == "0"


def test_what_guidance_changed_is_said(opened, lm):
    hook = t2.RewardGuidance(small_judge(lm), 3e3)
    run = t2.generate(lm, PROMPT, steps=8, length=30, hooks=[hook], progress=False).trajectory
    page = opened(explorer(run))
    changed = run.records["argmax_before_guidance"] != run.argmax
    slots = page.locator(".slot")
    order = run.span_mask.nonzero()[:, 0].tolist()
    reach = slots.count()
    step, position = next((s, p) for s, p in changed.nonzero().tolist() if s > 0 and order.index(p) < reach)
    go(page, step + 1)
    assert "guided" in slots.nth(order.index(position)).get_attribute("class")
    slots.nth(order.index(position)).click()
    sentence = page.locator(".extra.hand").inner_text()
    before = int(run.records["argmax_before_guidance"][step, position])
    names = [says(run, token) for token in (before, int(run.argmax[step, position]))]
    assert sentence.startswith("Guidance changed the first choice: ")
    for name in names:  # and not the drawn token's
        assert name in sentence or name in ("end of text", "padding") or "\ufffd" in name
    assert f"{abs(float(run.records['logprob_gain'][step, position])):.2f} nats" in sentence
    page.get_by_role("tab", name="Curves").click()
    assert "reward" in page.locator(".view").inner_text()


def test_reasons_are_drawn_on_the_words(opened, written):
    run = written.trajectory
    position = int(run.span_mask.nonzero()[4, 0])
    weights = [0.0] * len(run.span_mask)
    weights[2], weights[position - 1] = 2.0, -1.0
    html = explorer(written)
    why = [{"step": 6, "position": position, "weights": weights, "unit": "nats"}]
    page = opened(html.replace('"pins": []', f'"pins": [], "why": {json.dumps(why)}', 1))
    go(page, 7)
    page.locator(".slot").nth(4).click()
    assert page.locator(".words.why").count() == 1
    tinted = page.locator(".given[style*='--held']")
    assert tinted.count() >= 1
    assert "--hand" in page.locator(".slot").nth(3).get_attribute("style")
    go(page, 6)
    assert page.locator(".words.why").count() == 0


@pytest.mark.parametrize("scripts", [True, False])
def test_hostile_text_is_shown_and_never_run(opened, scripts):
    page = opened(explorer(trajectory(["soup", *HOSTILE])), java_script_enabled=scripts)
    page.wait_for_timeout(200)
    assert page.locator("img").count() == 0
    if scripts:
        page.locator(".slot").nth(1).click()
        go(page, 1)
        assert HOSTILE[0] in page.locator(".bars").inner_text()
    else:
        assert page.get_by_text(HOSTILE[-1]).first.is_visible()  # the last step, readable without scripts
        assert page.locator("button, input, canvas, svg").count() == 0  # nothing dead
        page.locator("summary").click()
        assert HOSTILE[1] in page.locator("details").inner_text()
        assert page.get_by_text("run the cell or let scripts run").count() == 1


def test_a_large_run_opens_within_two_seconds(browser, tmp_path):
    """Of the page's own thread time, so that other work on the machine does not count."""
    path = tmp_path / "run.html"
    path.write_text(f"{PAGE}<title>x</title><main>{explorer(undecided(500, 2048))}</main>", encoding="utf-8")
    page = browser.new_context(offline=True, viewport={"width": 900, "height": 700}).new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def seconds():
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")

    page.goto(path.as_uri(), timeout=60_000)
    assert label(page) == "step 500/500"
    opened = seconds()
    go(page, 250)
    assert label(page) == "step 250/500"
    page.context.close()
    assert 0 < opened < 2


@pytest.fixture
def axe():
    run = pytest.importorskip("axe_playwright_python.sync_playwright").Axe().run

    def check(page, allowed=OURS):
        page.wait_for_timeout(300)  # a changed word fades in for 220 ms, and a half-seen word has half its contrast
        found = run(page).response["violations"]
        return [f"{rule['id']}: {rule['nodes'][0]['html']}" for rule in found if rule["id"] not in allowed]

    return check


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened, futures, axe, scheme):
    page = opened(comparison(futures[0]), color_scheme=scheme)
    dark = "getComputedStyle(document.querySelector('.t2-explorer').shadowRoot.querySelector('.x')).backgroundColor"
    assert page.evaluate(dark) == {"light": "rgb(255, 253, 248)", "dark": "rgb(21, 23, 27)"}[scheme]
    assert not axe(page)
    page.locator(".slot").nth(3).click()
    for view in ("Curves", "This step", "Difference", "Map"):
        page.get_by_role("tab", name=view).click()
        go(page, 2 if view == "Map" else 8)
        assert not axe(page)


def test_axe_finds_nothing_in_odd_tokens_and_in_the_tour(opened, axe):
    odd = trajectory(["a", "b"])
    odd.token_strings = {0: "\u200b", 1: "\n"}
    page = opened(explorer(odd), tour=True)
    page.locator(".tour").wait_for()
    assert not axe(page)
    assert "U+200B" in page.locator(".slot").first.get_attribute("aria-label")


def test_the_tour_has_five_bubbles_and_comes_once(opened, written):
    page = opened(explorer(written), tour=True)
    for i in range(1, 6):
        assert f"{i} of 5" in page.locator(".tour").inner_text()
        frame, bubble = page.locator(".x").bounding_box(), page.locator(".tour").bounding_box()
        assert bubble["x"] >= frame["x"] and bubble["y"] >= frame["y"]
        assert bubble["y"] + bubble["height"] <= frame["y"] + frame["height"]
        page.get_by_role("button", name="Next" if i < 5 else "Done").click()
    assert page.locator(".tour").count() == 0
    page.reload()
    page.wait_for_timeout(300)
    assert page.locator(".tour").count() == 0


def test_keys_reach_everything(opened, written):
    page = opened(explorer(written))
    page.locator(".slot").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator(".slot").nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    assert page.locator(".slot").nth(2).get_attribute("aria-pressed") == "true"
    page.locator("input[type=range]").press("Home")
    assert label(page) == f"step 1/{STEPS}"
    page.locator("input[type=range]").press("ArrowRight")
    assert label(page) == f"step 2/{STEPS}"
    page.get_by_role("tab", name="Map").press("ArrowDown")
    assert page.get_by_role("tab", name="Curves").get_attribute("aria-selected") == "true"
    page.keyboard.press("Escape")
    assert page.locator(".slot.held").count() == 0


def test_no_underlines_unless_asked_for(opened, written):
    page = opened(explorer(written))
    go(page, 2)
    lines = ".t2-explorer b"
    decorated = "all => all.filter(b => getComputedStyle(b).textDecorationLine !== 'none').length"
    assert page.locator(lines).evaluate_all(decorated) == 0
    page.get_by_title("Underline unsure words").click()
    assert page.locator(lines).evaluate_all(decorated) > 0


def test_play_is_slower_at_events_and_calm_where_motion_is_unwelcome(opened, written):
    page = opened(explorer(written), reduced_motion="reduce")
    page.get_by_role("button", name="Play").click()
    page.wait_for_timeout(600)
    assert label(page) == f"step 1/{STEPS}"


@pytest.mark.parametrize("width", [360, 640])
def test_no_sideways_scrolling(opened, futures, width):
    page = opened(comparison(futures[0]), viewport={"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".slot").nth(2).click()
    for view in ("Curves", "This step", "Difference", "Map"):
        page.get_by_role("tab", name=view).click()
        frame = page.locator(".x").bounding_box()
        wide = "all => all.map(e => e.getBoundingClientRect().right)"
        parts = page.locator(".card, .bar, .track, .view, .pane, .play, header > *:not([hidden])").evaluate_all(wide)
        assert max(parts) <= frame["x"] + frame["width"] + 0.5
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_chosen_tab_can_be_seen_on_a_phone(opened, written):
    names = ["as it was", "kite at step 3", "drum at step 5", "Mia at step 7"]
    page = opened(comparison(dict.fromkeys(names, written)), viewport={"width": 360, "height": 900})
    row = page.locator(".tabs").bounding_box()
    for name in (names[-1], names[0], names[2]):
        page.get_by_role("tab", name=name).evaluate("tab => tab.click()")
        tab = page.get_by_role("tab", name=name).bounding_box()
        assert tab["x"] >= row["x"] - 1 and tab["x"] + min(tab["width"], row["width"]) <= row["x"] + row["width"] + 1


def with_actor(html):
    """The explorer's page with something that can act: its wishes are kept, and `handle` answers them."""
    end = html.rindex(");\n})();")
    actor = "{ whatIf: wish => window.wishes.push(wish), stop: () => window.wishes.push('stop') }"
    start = html.rindex("explore(document.getElementById")
    call = html[start:end]
    return f"{html[:start]}window.wishes = []; window.handle = {call}, {{ actor: {actor} }}{html[end:]}"


def test_wishes_name_step_place_and_word_and_silence_is_said(opened, written):
    run = written.trajectory
    page = opened(with_actor(explorer(written)))
    go(page, 4)
    page.locator(".slot").nth(5).click()
    page.locator("button.bar").first.click()
    position = int(run.span_mask.nonzero()[5, 0])
    wish = page.evaluate("window.wishes[0]")
    assert (wish["run"], wish["step"], wish["position"]) == (0, 3, position)
    drawn = int(run.tokens[3, position])
    first_other = next(token for token in run.top_ids[3, position].tolist() if token != drawn)
    assert sorted(run.token_strings)[wish["token"]] == first_other
    assert page.locator("button.bar:not(:disabled)").count() == 0  # one wish at a time
    page.locator(".say", has_text="The kernel is busy or gone").wait_for(timeout=2_000)
    page.get_by_role("button", name="Stop").click()
    assert page.locator(".say").inner_text() == "" and page.evaluate("window.wishes[1]") == "stop"
    page.locator(".try input").fill("kite")
    page.locator(".try input").press("Enter")
    assert page.evaluate("window.wishes[2].text") == "kite"


def test_a_future_streams_in_beside_the_old_run_without_moving_it(opened, written):
    run = written.trajectory
    page = opened(with_actor(explorer(written)))
    page.locator(".slot").nth(5).click()
    header = "{ ...given, name: 'new', tokens: [], top: [], counts: [], p: [], sure: [], entropy: [], alpha_bar: [] }"
    start = "() => { window.given = window.handle.runs[0]; window.handle.addRun(" + header + "); }"
    page.evaluate(start)
    old = page.locator(".pane").first.locator(".slot")
    places = old.evaluate_all(PLACES)
    count = int(run.span_mask.sum())
    for step in range(3):
        columns = {"tokens": [step] * count, "sure": [99] * count, "counts": [1] * count, "top": [step] * count}
        columns |= {"p": [99] * count, "entropy": [9] * count, "alpha_bar": 0.1}
        page.evaluate("columns => window.handle.addStep(1, columns)", columns)
        assert label(page) == f"step {step + 1}/{STEPS}"
        assert old.evaluate_all(PLACES) == places
        assert page.locator(".pane").nth(1).locator(".slot").evaluate_all(PLACES)[0][0] == places[0][0]
    page.evaluate("window.handle.endRun(1)")
    assert page.get_by_role("tab", name="new").get_attribute("aria-selected") == "true"
    page.evaluate("window.handle.fail('It did not work.')")
    assert page.get_by_role("alert").inner_text().startswith("It did not work.")
    page.get_by_role("button", name="Back to the last run").click()
    assert not page.locator(".failure").is_visible()


VOICES = [
    Voice("guided, η = 10", "Everybody is glad there. " * 9, 2.5, 200),
    Voice(HOSTILE[0], HOSTILE[0], -1.5, 41),
    Voice("best of 3", "Mädchen", 1.5, 153, (-0.5, 0.5)),
]


@pytest.mark.parametrize("width", [360, 640, 1200])
def test_voices_are_listed_with_their_rewards_on_one_axis_and_nothing_moves(opened, futures, width):
    page = opened(comparison(futures[0], VOICES), viewport={"width": width, "height": 1100})
    measured = page.locator(".x, .view, .controls, .card, .pane")
    before = measured.evaluate_all(PLACES)
    heights = "all => all.map(e => e.getBoundingClientRect().height)"
    high = measured.evaluate_all(heights)
    page.get_by_role("tab", name="Answers").click()
    assert measured.evaluate_all(PLACES) == before and measured.evaluate_all(heights) == high
    rows = page.get_by_role("listitem")
    says = rows.all_inner_texts()
    assert len(says) == 3 and page.locator("img").count() == 0
    for row, voice, passes in zip(says, VOICES, ("200 passes", "41 passes", "153 passes"), strict=True):
        first, rest = row.split("\n", 1)
        assert first == f"{voice.name} {passes}"
        number = f"{voice.reward:.2f}".replace("-", "−")
        assert number in rest and voice.text.strip() in rest
    places = page.locator(".dots i").evaluate_all(
        "all => all.map(i => i.getBoundingClientRect().x + i.offsetWidth / 2)"
    )
    guided, hostile, *unchosen, best = places
    unit = (guided - hostile) / 4  # pixels per reward
    assert [(place - hostile) / unit - 1.5 for place in (*unchosen, best)] == pytest.approx([-0.5, 0.5, 1.5], abs=0.1)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="passes").hover()
    assert "A pass is one run of a network" in page.get_by_role("tooltip").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_voices(opened, futures, axe, scheme):
    page = opened(comparison(futures[0], VOICES), color_scheme=scheme)
    page.get_by_role("tab", name="Answers").click()
    assert not axe(page)


def test_voices_that_come_later_are_shown_at_once(opened, written):
    page = opened(with_actor(explorer(written)))
    assert page.get_by_role("tab", name="Answers").count() == 0
    frame = page.locator(".x").bounding_box()
    voices = [voice.as_dict() for voice in VOICES]
    for count in (2, 3):
        page.evaluate("voices => window.handle.addVoices(0, voices)", voices[:count])
        assert page.get_by_role("listitem").count() == count
        assert page.locator(".x").bounding_box() == frame
        if count == 2:
            page.get_by_role("tab", name="Map").click()
            page.evaluate("voices => window.handle.addVoices(0, voices)", voices)
            assert page.get_by_role("listitem").count() == 0  # who has gone elsewhere stays there
            page.get_by_role("tab", name="Answers").click()


@pytest.mark.parametrize("scheme, width", [("light", 900), ("dark", 900), ("dark", 360)])
def test_export_is_the_same_explorer(browser, written, tmp_path, axe, scheme, width):
    """The file itself, with nothing of this test's around it: its views, axe without exceptions, a phone."""
    path = export(written.trajectory, tmp_path / "run.html")
    settings = {"is_mobile": True, "device_scale_factor": 2} if width < 500 else {}
    size = {"width": width, "height": 700}
    page = browser.new_context(offline=True, color_scheme=scheme, viewport=size, **settings).new_page()
    page.add_init_script("localStorage.setItem('tess2lite tour', 'seen')")
    page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    page.goto(path.as_uri())
    assert label(page) == f"step {STEPS}/{STEPS}"
    assert page.evaluate("innerWidth") == width  # a phone does not shrink it
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".slot").nth(3).click()
    for view in ("Curves", "This step", "Map"):
        page.get_by_role("tab", name=view).click()
        assert not axe(page, allowed=())
    page.context.close()

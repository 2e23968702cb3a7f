"""The live page as its reader meets it: opened from a file, with no network, on a desk and on a phone."""

import re
import urllib.parse

import pytest

from tess2lite.validation import InputError
from tess2lite.viz.live import page as live
from tess2lite.viz.live.wording import CHAT

SHORT = {"text": "Tom had a drum.", "steps": 8, "length": 20, "seed": 3, "p": 0.95, "t": 1}
WAIT = 60_000  # milliseconds, for a machine that has other work to do


def link(pins=(), **changes) -> str:
    parts = [*(SHORT | changes).items(), *(("pin", pin) for pin in pins)]
    return "#" + urllib.parse.urlencode(parts)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "page.html"
    live.main([str(path), "model=tinytown-base"])
    return path


@pytest.fixture(scope="module")
def chat_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "chat.html"
    live.main([str(path), "model=tinytown-instruct"])
    return path


@pytest.fixture
def opened(browser, path):
    """Opens the page with a link; a request to any network, a failed script or a dialog fails the test."""
    yield from open_pages(browser, path)


@pytest.fixture
def chat(browser, chat_path):
    """The same for the page that answers questions."""
    yield from open_pages(browser, chat_path)


def open_pages(browser, path):
    contexts = []
    problems = []

    def open_page(hash_="", **settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: problems.append(request.url))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("pageerror", lambda error: problems.append(error.stack))
        page.goto(path.as_uri() + hash_)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [problem for problem in problems if not problem.startswith(("file:", "blob:", "data:"))] == []


def status(page) -> str:
    return page.locator("#status").inner_text()


def finish(page, start="Done") -> None:
    page.wait_for_function("start => document.querySelector('#status').textContent.startsWith(start)", arg=start)


def story(page) -> str:
    """The shown text: what was given as it stands, and a space before every token that was written."""
    parts = page.locator(".pane").last.locator(".given, .slot")
    return parts.evaluate_all(
        "parts => parts.map((part) => (part.className.includes('slot') ? ' ' : '') + part.textContent).join('')"
    )


def tabs(page) -> list[str]:
    return page.locator(".tabs button").all_inner_texts()


def wait_for_tabs(page, count: int) -> None:
    page.locator(".tabs button").nth(count - 1).wait_for()


def test_the_file_is_small_enough_to_send(path, chat_path):
    for each in (path, chat_path):
        size = each.stat().st_size
        print(f"\nlive page: {size / 2**20:.1f} MB")
        assert size <= live.MAX_BYTES == 12 * 2**20


QUESTION = "Where does a cat sleep?"


def test_a_question_is_answered_out_of_noise(chat):
    page = chat()
    page.locator(".slot").nth(5).wait_for()
    assert page.title() == CHAT.title and page.get_by_label("Your question").input_value() == CHAT.tries[0]
    finish(page)
    page.locator("#text").fill(QUESTION)
    page.locator("#text").press("Enter")
    wait_for_tabs(page, 2)
    finish(page)
    assert story(page).startswith(f"<|user|>\n{QUESTION}\n<|assistant|>\n")
    first = page.evaluate("location.hash")
    assert urllib.parse.parse_qs(first[1:])["text"] == [QUESTION]
    answer = story(page)
    again = chat(first)
    finish(again)
    assert story(again) == answer


def test_another_word_in_an_answer(chat):
    page = chat(link(text="Tell me something about the barn.", length=30))
    finish(page)
    hold(page, 3, 4)
    page.locator(".bar:not(.rest):not(.drawn)").first.click()
    wait_for_tabs(page, 2)
    finish(page)
    shared = page.evaluate("location.hash")
    assert "pin=" in shared and "Held by hand" in page.locator("#pins").inner_text()
    page.locator("button", has_text="Compare").click()
    branched = story(page)
    again = chat(shared)
    finish(again)
    assert story(again) == branched
    page.locator(".slot").nth(4).click()
    page.locator("button", has_text="Why?").click()
    page.locator(".words.why").first.wait_for()


@pytest.mark.parametrize(
    "text, sentence",
    [(" \x1f", "The text is empty; give at least one word to start from."), ("Tom " * 400, "shorten the text.")],
)
def test_a_question_that_cannot_be_asked_gets_one_sentence(chat, text, sentence):
    page = chat(link(text=text))
    page.locator("#status.problem").wait_for()
    assert sentence in status(page)


def test_a_hostile_question_is_shown_and_not_run(chat):
    hostile = "<img src=x onerror=alert(1)></script>$about ${title} <|assistant|>"
    page = chat(link(text=hostile, length=8))
    finish(page)
    assert hostile in story(page) and page.locator("img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_questions_fits_a_phone_and_axe(chat, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = chat(link(), viewport={"width": 360, "height": 780}, color_scheme=scheme, reduced_motion="reduce")
    finish(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.wait_for_timeout(300)
    found = axe.run(page).response["violations"]
    assert not found, [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]


def test_a_story_appears_within_seconds_of_opening(opened):
    page = opened()
    page.locator(".slot").nth(20).wait_for(timeout=20_000)
    page.locator("output", has_text="step 3").first.wait_for()
    assert page.locator("#lead").inner_text().count(".") == 1
    assert "Tom lost his old drum in the forest." in story(page)


def test_a_link_opens_the_same_run_again(opened):
    first = opened(link())
    finish(first)
    written = story(first)
    shared = first.evaluate("location.hash")
    second = opened(shared)
    finish(second)
    assert story(second) == written
    assert second.evaluate("location.hash") == shared
    other = opened(link(seed=4))
    finish(other)
    assert story(other) != written


def test_every_setting_changes_the_text(opened):
    page = opened(link())
    finish(page)
    written = {story(page)}
    for changes in ({"steps": 9}, {"length": 12}, {"p": ""}, {"t": 2}, {"text": "Mia had a drum."}):
        page.evaluate("hash => { location.hash = hash }", link(**changes))
        wait_for_tabs(page, len(written) + 1)
        finish(page)
        written.add(story(page))
    assert len(written) == 6


def hold(page, position: int, back: int) -> None:
    """Holds a word of the shown run and goes back some steps."""
    page.locator(".pane").last.locator(".slot").nth(position).click()
    slider = page.locator("input[type=range]")
    slider.focus()
    for _ in range(back):
        page.keyboard.press("ArrowLeft")


def test_another_word_at_a_step_writes_what_a_run_with_that_pin_writes(opened):
    page = opened(link())
    finish(page)
    first = story(page)
    hold(page, 3, 4)
    page.locator(".try input").fill("Max")
    page.locator(".try button", has_text="Try it").click()
    wait_for_tabs(page, 2)
    finish(page)
    page.locator("button", has_text="Compare").click()  # both runs no longer share their lines
    branched = story(page)
    assert "Max" in branched and branched != first
    assert "Held by hand: “Max” from step 4." in page.locator("#pins").inner_text()
    shared = page.evaluate("location.hash")
    assert "pin=" in shared
    again = opened(shared)
    finish(again)
    assert story(again) == branched


def test_the_chance_of_what_was_drawn_and_the_noise_are_told(opened):
    page = opened(link(t=3, p=1), reduced_motion="reduce")  # so hot that many draws are none of the five likeliest
    finish(page)
    page.get_by_role("tab", name="This step").click()
    said = []
    for slot in page.locator(".slot").all()[::2]:
        slot.click()
        for step in range(1, 8):
            page.locator("input[type=range]").fill(str(step))
            said.append(page.locator(".sentence").inner_text())
            noise = page.get_by_text("Loudest in the noise: ").inner_text()
            assert noise.removeprefix("Loudest in the noise: ").strip()
        page.keyboard.press("Escape")
    # What is none of the five would be said to be less likely than the last of them.
    assert [sentence for sentence in said if re.search(r"Drawn: .*, below ([2-9]|\d\d)\s%. First", sentence)] == []


def test_an_alternative_is_one_click_away(opened):
    page = opened(link())
    finish(page)
    hold(page, 5, 5)
    page.locator(".bar:not(.rest):not(.drawn)").first.click()
    wait_for_tabs(page, 2)
    finish(page)
    assert "pin=" in page.evaluate("location.hash")


def test_why_weighs_every_word_and_can_be_stopped(opened):
    page = opened(link())
    finish(page)
    hold(page, 5, 0)
    why = page.locator("button", has_text="Why?")
    why.click()
    page.locator(".words.why").wait_for()
    weights = page.locator(".slot").evaluate_all(
        "slots => slots.map((slot) => slot.style.getPropertyValue('--weight'))"
    )
    assert "7px" in weights + page.locator(".given").evaluate_all(
        "parts => parts.map((part) => part.style.getPropertyValue('--weight'))"
    )
    page.keyboard.press("ArrowLeft")
    page.locator(".slot").nth(9).click()
    if why.get_attribute("aria-pressed") == "true":
        why.click()
    why.click()
    page.locator("button", has_text="Stop").locator("visible=true").first.click()
    page.wait_for_function("() => !document.querySelector('#explorer').shadowRoot.querySelector('.say').textContent")


def test_blanks_are_filled_and_the_rest_stays(opened):
    page = opened(link(text="Tom had a __ and Mia had a _. They were glad."))
    finish(page)
    text = story(page)
    assert text.startswith("Tom had a") and "and Mia had a" in text and text.endswith(". They were glad.")
    assert page.locator(".slot").count() == 3


@pytest.mark.parametrize(
    "hash_, sentence",
    [
        (link(text=""), "The text is empty; give at least one word to start from."),
        (link(text="Tom " * 400), "shorten the text."),
        (link(text="x" * 5000), "The text has 5000 characters and may have 4000; shorten the text."),
        (link(steps=0), "Steps is “0”; give a whole number from 1 to 200."),
        (link(steps="many"), "Steps is “many”; give a whole number from 1 to 200."),
        (link(length=1.5), "Length is “1.5”; give a whole number of 1 or more."),
        (link(length=999), "Length is 999, but after 6 tokens of text only 250 of 256 are left; give at most 250."),
        (link(seed=-1), "Seed is “-1”; give a whole number from 0 to 4294967295."),
        (link(p=2), "Top-p is “2”; give a number from 0.01 to 1."),
        (link(t=0), "Temperature is “0”; give a number from 0.1 to 3."),
        (link(pins=["nonsense"]), "The link pins “nonsense”; a pin is written position@step:word."),
        (link(pins=["1@2: Max"]), "The link pins “ Max” where this run writes nothing; remove that pin."),
        (link(pins=["9@99: Max"]), "The link pins “ Max” where this run writes nothing; remove that pin."),
        (link(pins=["9@2:<img src=x onerror=alert(1)>"]), "is not one word of this model's vocabulary"),
    ],
)
def test_what_cannot_be_run_gets_one_sentence(opened, hash_, sentence):
    page = opened(hash_)
    page.locator("#status.problem").wait_for()
    assert sentence in status(page)
    assert status(page).endswith(".")
    page.locator("#text").fill("Tom had a drum.")
    for name, value in {"steps": "3", "length": "8", "seed": "1", "temperature": "1", "topP": "0.9"}.items():
        page.evaluate("([name, value]) => { document.forms.ask.elements.namedItem(name).value = value }", [name, value])
    page.locator("#write").click()
    finish(page)
    assert "Tom had a drum." in story(page)


def test_a_typed_word_that_is_many_tokens_is_refused_and_the_page_goes_on(opened):
    page = opened(link())
    finish(page)
    hold(page, 3, 4)
    page.locator(".try input").fill("antidisestablishmentarianism")
    page.locator(".try button", has_text="Try it").click()
    page.locator("#status.problem").wait_for()
    assert "is not one word of this model's vocabulary; choose another word." in status(page)
    page.locator(".bar:not(.rest):not(.drawn)").first.click()
    finish(page)
    assert len(tabs(page)) == 2


def test_hostile_text_is_shown_and_not_run(opened):
    hostile = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
    page = opened(link(text=hostile))
    finish(page)
    assert hostile in story(page)
    assert page.locator("img").count() == 0


def test_a_run_can_be_stopped(opened):
    page = opened(link(steps=200, length=60))
    page.locator("#stop").click()
    finish(page, "Stopped after step")
    page.locator("#again").click()
    page.locator("#stop").wait_for()


def test_tabs_begin_anew_when_there_are_too_many(opened):
    page = opened(link(steps=1, length=4))
    finish(page)
    for count in [2, 3, 4, 5, 6, 7, 8, 1, 2]:
        page.locator("#again").click()
        page.wait_for_function(
            "n => document.querySelector('#explorer').shadowRoot.querySelectorAll('.tabs button').length === n",
            arg=count,
        )
        finish(page)


def test_enter_writes_and_a_new_line_needs_shift(opened):
    page = opened(link())
    finish(page)
    page.locator("#text").fill("Mia")
    page.locator("#text").press("Shift+Enter")
    assert page.locator("#text").input_value() == "Mia\n"
    page.locator("#text").press("Enter")
    page.wait_for_function("() => location.hash.startsWith('#text=Mia')")
    finish(page)
    assert len(tabs(page)) == 2 and story(page).startswith("Mia")


def tab_to(page, selector: str, key: str = "Tab") -> None:
    """Presses a key until such an element of the page or of the explorer has the focus."""
    matches = """selector => {
        const { activeElement } = document;
        return (activeElement.shadowRoot?.activeElement ?? activeElement).matches(selector);
    }"""
    for _ in range(60):
        page.keyboard.press(key)
        if page.evaluate(matches, selector):
            return
    pytest.fail(f"{key} never reaches {selector}")


def test_the_keyboard_is_enough(opened):
    page = opened(link(), reduced_motion="reduce")
    finish(page)
    page.keyboard.press("Escape")  # the tour
    tab_to(page, "#text")
    tab_to(page, "#write")
    tab_to(page, "#share")
    tab_to(page, "summary")
    tab_to(page, ".slot")
    page.keyboard.press("Enter")
    tab_to(page, "input[type=range]")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    tab_to(page, ".bar:not(.drawn)", "Shift+Tab")
    page.keyboard.press("Enter")
    wait_for_tabs(page, 2)
    finish(page)
    assert "pin=" in page.evaluate("location.hash")


def test_sharing_copies_the_link_or_shows_it(opened):
    page = opened(link())
    finish(page)
    page.locator("#share").click()
    copied = "document.querySelector('#share').textContent === 'Link copied'"
    shown = "document.querySelector('#link').value === location.href"
    page.wait_for_function(f"() => {copied} || {shown}")


@pytest.mark.parametrize("width", [360, 640, 1280])
def test_nothing_scrolls_sideways(opened, width):
    page = opened(link(), viewport={"width": width, "height": 780})
    finish(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_moves_down_while_a_story_is_written(opened):
    page = opened(link(steps=12))
    top = "document.querySelector('#explorer').getBoundingClientRect().top"
    page.locator(".slot").first.wait_for()
    before = page.evaluate(top)
    finish(page)
    assert page.evaluate(top) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened, scheme):
    """At opening, with the settings open, beside another word's future in every view, and with reasons."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(link(), color_scheme=scheme, reduced_motion="reduce")
    finish(page)

    def check():
        page.wait_for_timeout(300)
        found = axe.run(page).response["violations"]
        assert not found, [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]

    check()  # the tour is open
    page.get_by_role("button", name="Skip").click()
    page.locator("summary").click()
    check()
    page.locator(".slot").nth(3).click()
    page.locator("input[type=range]").fill("3")
    page.locator(".bar:not(.rest):not(.drawn)").first.click()
    wait_for_tabs(page, 2)
    finish(page)
    for view in ("Curves", "This step", "Difference", "Map"):
        page.get_by_role("tab", name=view).click()
        check()
    page.locator("button", has_text="Why?").click()
    page.locator(".words.why").first.wait_for()
    check()


def test_the_theme_button_changes_the_page_and_the_explorer(opened):
    page = opened(link(), color_scheme="dark")
    finish(page)
    explorer = "document.querySelector('#explorer').shadowRoot.querySelector('.x')"
    colours = f"[document.body, {explorer}].map((element) => getComputedStyle(element).backgroundColor)"
    dark = page.evaluate(colours)
    page.locator("#theme").click()
    page.wait_for_function(f"dark => ({colours}).every((colour, i) => colour !== dark[i])", arg=dark)
    page.locator("#theme").click()
    page.wait_for_function(f"dark => ({colours}).every((colour, i) => colour === dark[i])", arg=dark)


def test_models_that_the_page_cannot_hold_are_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="silu activations"):
        live.write_page(tmp_path / "page.html", tiny(hidden_act="gelu"))
    with pytest.raises(InputError, match="The page would have .* MB and may have 12; choose a smaller model"):
        live.write_page(tmp_path / "page.html", tiny(hidden_size=512, intermediate_size=2048, num_hidden_layers=3))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("arguments", [[], ["a.txt"], ["a.html", "b.html"], ["a.html", "size=3"]])
def test_the_command_says_what_it_takes(arguments):
    with pytest.raises(InputError, match="Give a file to write and a model"):
        live.main(arguments)

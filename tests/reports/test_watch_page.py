"""The page of `prdp watch` in a real browser: a run goes on, and the page moves."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_run import add_evaluation, disc_images, make_run, train_metrics
from watch_serving import TOKEN, served

from prdp.tracking.evaluations import save_evaluation
from prdp.tracking.jsonl import JsonlTracker
from prdp.tracking.status_file import update_status
from prdp.types import PromptBatch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
]
ATTACK = '<script>window.attacked = 1</script><img src="x" onerror="window.attacked = 1">'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api.expect.set_options(timeout=30_000)  # of a busy machine; what is there is found at once
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Any]:
    """Makes pages; an error in a script of one of them fails the test."""
    contexts, errors = [], []

    def made(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(error))
        page.on("console", lambda message: "Security Policy" in message.text and errors.append(message.text))
        return page

    yield made
    for context in contexts:
        context.close()
    assert errors == []


def expect(page: Any, selector: str, text: str) -> None:
    sync_api.expect(page.locator(selector)).to_contain_text(text)


def test_the_page_follows_a_run_that_goes_on(new_page: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", epochs=20, done=4, evaluations=[(0, 0.0)], status=None)
    update_status(folder, progress={"epoch": 4, "epochs": 20})
    with served([folder]) as (port, server):
        page = new_page()
        page.goto(f"http://127.0.0.1:{port}/{TOKEN}/")
        page.evaluate("window.here = true")
        expect(page, "#headline", "epoch 4 of 20")
        expect(page, "#headline", "running")
        expect(page, "#cards .card >> nth=0", "a red disc, number 0 <&>")
        assert page.locator("#runs").is_hidden()
        reward = page.locator('[data-title="Reward"] .plot')
        sync_api.expect(reward).to_have_attribute(
            "aria-label", re.compile("^Reward. mean: from 0.4.* at epoch 1 to 0.4.* at epoch 4$")
        )

        tracker = JsonlTracker(folder, "abc", resumed_epoch=4)
        for epoch in (5, 6):
            scores = add_evaluation(folder, epoch, 0.1) if epoch == 6 else {}
            tracker.log({**train_metrics(epoch), **scores}, epoch)
        update_status(folder, progress={"epoch": 6, "epochs": 20})
        expect(page, "#headline", "epoch 6 of 20")
        expect(page, "#headline", "paired difference")
        expect(page, "#epoch-told", "6, the newest")
        expect(page, "#announced", " at epoch 6")
        sync_api.expect(page.locator("#cards .shot img >> nth=1")).to_have_attribute(
            "src", _starts("runs/0/pictures/6/0/0")
        )
        sync_api.expect(reward).to_have_attribute("aria-valuemax", "5")

        tracker.finish("interrupted")
        expect(page, "#headline", "interrupted")
        shutil.rmtree(folder)
        expect(page, "#headline", "The folder is not there any more")
        expect(page, "#headline", "paired difference")
        make_run(folder, epochs=2, evaluations=[(0, 0.0)], done=1, status="failed")
        expect(page, "#headline", "failed")
        expect(page, "#epoch-told", "0, the newest")
        assert page.evaluate("window.here") is True, "all of it without a reload"
        server.should_exit = True
        expect(page, "#connection", "not connected")


def _starts(text: str) -> Any:
    return re.compile(f"^{re.escape(text)}")


def test_by_keyboard_and_for_screen_readers(new_page: Any, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, epochs=20) for name in ("first", "second")]
    with served(runs) as (port, _):
        page = new_page()
        page.goto(f"http://127.0.0.1:{port}/{TOKEN}/")
        slider = page.get_by_role("slider", name="Epoch", exact=True)
        expect(page, "#epoch-told", "20, the newest")
        slider.focus()
        page.keyboard.press("ArrowLeft")
        expect(page, "#epoch-told", "10 of 20")
        assert slider.get_attribute("aria-valuetext") == "epoch 10 of 20"
        before, after, other = (page.locator("#cards .shot img").nth(place) for place in range(3))
        sync_api.expect(after).to_have_attribute("src", _starts("runs/0/pictures/10/0/0"))
        sync_api.expect(other).to_have_attribute("src", _starts("runs/1/pictures/10/0/0"))
        sync_api.expect(before).to_have_attribute("alt", _starts("a red disc, number 0 <&>; first, before, score 0."))
        page.wait_for_function("document.querySelector('#cards .shot img').naturalWidth === 16")
        expect(page, "#prompts-told", "Of first, at epoch 10, beside epoch 0")
        page.keyboard.press("Home")
        expect(page, "#epoch-told", "0 of 20")

        chart = page.locator("#heldout .plot")
        chart.focus()
        page.keyboard.press("ArrowLeft")
        assert chart.get_attribute("aria-valuetext").startswith("epoch 10; first 0.")
        assert chart.get_attribute("aria-valuenow") == "1"
        expect(page, "#heldout .readout", "epoch 10; first 0.")
        assert "; second: from " in chart.get_attribute("aria-label")

        page.get_by_role("button", name="second").focus()
        page.keyboard.press("Enter")
        expect(page, "#headline", "second")
        assert page.evaluate("document.activeElement.textContent") == "second"
        page.get_by_label("compare first").focus()
        page.keyboard.press("Space")
        sync_api.expect(page.locator("#cards .shot img").nth(0)).to_have_attribute(
            "src", _starts("runs/1/pictures/0/0/0")
        )
        sync_api.expect(page.get_by_label("compare first")).to_be_focused()
        unnamed = (
            "[...document.querySelectorAll('img:not([alt]), button:empty, input:not([aria-label]):not([id])')].length"
        )
        assert page.evaluate(unnamed) == 0 and page.locator("html").get_attribute("lang") == "en"


def test_on_a_phone_in_the_dark_and_with_prompts_of_strangers(new_page: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / f"run{ATTACK[:40].replace('/', '')}", epochs=4, evaluations=[])
    texts = (ATTACK, "w" * 300, "plain")
    for epoch in (0, 4):
        prompts = PromptBatch(0, 0, texts, ({"category": ATTACK}, {}, {}))
        images = disc_images(3, 200)
        scores = np.array([0.1, 0.2 + epoch, 0.3])
        save_evaluation(folder, epoch, prompts, 1, scores, {ATTACK: scores}, images)
    (folder / "evaluations" / "epoch_00004" / "grid" / "002_0.png").unlink()
    (folder / "evaluations" / "epoch_00004" / "grid" / "001_0.png").write_bytes(b"no picture")
    (folder / "progress.log").write_text(f"2027-01-15 08:00:00  WARNING {ATTACK}\n")
    update_status(folder, cluster={"actors": [{"name": ATTACK}], "last_fault": {"text": ATTACK}})
    with served([folder, make_run(tmp_path / "other", epochs=2)]) as (port, _):
        page = new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
        page.goto(f"http://127.0.0.1:{port}/{TOKEN}/")
        expect(page, "#cards .card >> nth=0", ATTACK)
        expect(page, "#headline", f"Last fault: {ATTACK}")
        expect(page, "#machines", f"WARNING {ATTACK}")
        expect(page, "#cards .card >> nth=1", "no picture")
        expect(page, "#cards .card >> nth=2", "no picture")
        page.locator("#more-details summary").click()
        sync_api.expect(page.locator("#more figure").first).to_be_visible()
        assert page.evaluate("window.attacked") is None
        wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        assert page.evaluate(wide) == [360, 360]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 20, 27)"
        page.emulate_media(color_scheme="light")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"


def test_a_wrong_token_is_refused(new_page: Any, tmp_path: Path) -> None:
    with served([make_run(tmp_path / "run", epochs=1, evaluations=[])]) as (port, _):
        page = new_page()
        answer = page.goto(f"http://127.0.0.1:{port}/{TOKEN.upper()}/")
        assert answer.status == 403 and "lacks the token" in page.content() and "epoch" not in page.content()

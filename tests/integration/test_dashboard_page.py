"""The dashboard in a real browser: it follows a mesh, and nobody takes it over."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from shoal.node.config import load_settings
from tests.integration.processes import Process, run_node, status, wait_until
from tests.node.fake_node import example_reply, fake_node
from tests.node.mesh import found_mesh
from tests.node.test_dashboard import dashboard

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("processes")]

EVIL = "<img src=x onerror=document.title='owned'>"
# What a person is promised is 5 s from the kill to the red square.
RED_S = 5.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium as the system has it; Playwright downloads none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        assert not os.environ.get("CI"), ".ci/run installs chromium, and it is not here"
        pytest.skip("THE PAGE WAS NOT TESTED: there is no chromium; apt-get install chromium")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        yield launched
        launched.close()


class Watched:
    """A page, and everything that the browser had to say against it."""

    def __init__(self, browser: Browser, address: str, **options: object) -> None:
        self.page: Page = browser.new_page(**options)  # type: ignore[arg-type]
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"http://{address}/", wait_until="domcontentloaded")

    def done(self, address: str) -> None:
        """Nothing was wrong and nobody else was asked."""
        assert self.complaints == []
        assert all(url.startswith(f"http://{address}/") for url in self.requests)
        self.page.close()


def test_the_page_follows_a_mesh_through_a_checkpoint_and_a_death(
    tmp_path: Path, browser: Browser
) -> None:
    directories = found_mesh(tmp_path / "mesh", local_steps=150, rounds_per_checkpoint=2)
    # One that trains is enough for checkpoints, and spares a busy machine the other three.
    processes = [run_node(directories[0])]
    processes += [run_node(each, "train.enabled=false") for each in directories[1:]]
    try:
        addresses = [load_settings(each).node.inspect_listen for each in directories]
        wait_until(lambda: all(status(each) for each in addresses), processes)
        with dashboard(str(directories[0])) as server:
            watched = Watched(browser, server.address)
            page = watched.page
            expect(page.locator("#graph .member.alive")).to_have_count(4, timeout=60_000)
            expect(page.locator("#graph .link:not(.down)")).to_have_count(6, timeout=60_000)
            page.evaluate("document.body.dataset.loaded = 'once'")

            rows = page.locator("#checkpoints tbody tr")
            expect(rows.first).to_be_visible(timeout=120_000)
            height = int(rows.first.locator("th").inner_text())
            newer = page.locator("#checkpoints tbody th", has_text=str(height + 1))
            expect(newer.first).to_be_visible(timeout=120_000)
            signed_by = rows.first.locator("td").last.inner_text().split(", ")
            assert len(signed_by) >= 3 and set(signed_by) <= {f"node{i}" for i in range(4)}
            expect(page.locator("#loss .line.shared")).to_have_count(1, timeout=60_000)

            _one_is_killed(processes[-1], page)
            expect(page.locator("body")).to_have_attribute("data-loaded", "once")
            watched.done(server.address)
    finally:
        for process in processes:
            process.kill()


def _one_is_killed(victim: Process, page: Page) -> None:
    victim.kill()
    since = time.monotonic()
    dead = page.locator("#graph .member.dead")
    expect(dead.locator(".name")).to_have_text("node3", timeout=60_000)
    assert time.monotonic() - since < RED_S
    colour = "node => getComputedStyle(node.querySelector('path')).stroke"
    red, green, blue = numbers_of(str(dead.evaluate(colour)))
    assert red > 2 * green and red > 2 * blue
    expect(dead.locator("text").first).to_have_text("✕")
    # The same in words, for whoever does not see it.
    expect(page.locator("#members tr", has_text="node3").locator(".state")).to_have_text("dead")
    expect(page.locator("#news li.bad").first).to_contain_text("node3 is dead")
    expect(page.locator("#news")).to_have_attribute("aria-live", "polite")
    expect(page.locator("#graph .link.down")).to_have_count(3, timeout=30_000)


def numbers_of(text: str) -> tuple[int, ...]:
    """The numbers of "rgb(1, 2, 3)"."""
    return tuple(int(number) for number in text.removeprefix("rgb(").rstrip(")").split(","))


def test_what_a_peer_calls_itself_is_shown_and_never_run(browser: Browser) -> None:
    reply = example_reply(node=EVIL)
    reply.peers[1].liveness, reply.peers[1].why = "dead", EVIL
    reply.sent_bytes[EVIL] = 5
    reply.checkpoints[-1].root = EVIL
    reply.checkpoints[-1].signers.append(EVIL)
    with fake_node(reply, lasting=True) as address, dashboard(address) as server:
        watched = Watched(browser, server.address)
        page = watched.page
        expect(page.locator("#members tbody th").filter(has_text=EVIL)).to_have_count(1)
        expect(page.get_by_role("listitem", name=EVIL)).to_have_count(1)
        expect(page.locator("#members .words").filter(has_text=EVIL)).to_have_count(1)
        assert page.locator("main img").count() == 0
        assert page.title() == "Shoal"
        refused = page.evaluate(
            """() => {
                try { document.body.innerHTML = "<b>x</b>"; return ""; }
                catch (error) { return error.name; }
            }"""
        )
        assert refused == "TypeError", "the browser itself refuses markup"
        watched.complaints = [line for line in watched.complaints if "TrustedHTML" not in line]
        watched.done(server.address)


def test_the_page_can_be_used_with_a_keyboard_and_on_a_phone(browser: Browser) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    reply = example_reply()
    reply.peers[0].liveness, reply.peers[1].liveness = "alive", "dead"
    with fake_node(reply, lasting=True) as address, dashboard(address) as server:
        watched = Watched(browser, server.address, **phone)
        page = watched.page
        expect(page.locator("#graph .member")).to_have_count(3)
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.evaluate(wide), "nothing sticks out to the side"
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        for index in range(3):
            page.keyboard.press("Tab")
            member = page.locator("#graph .member").nth(index)
            expect(member).to_be_focused()
            expect(member).to_have_attribute(
                "aria-label", re.compile(r": (alive|dead|2 checkpoints behind), ")
            )
        page.keyboard.press("Tab")
        expect(page.locator("#members .scroll")).to_be_focused()
        page.locator(".skip").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#members")).to_be_focused()
        watched.done(server.address)

"""What people do on the pages, in a real browser: nothing they chose or sent is lost, and nothing stale is shown."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, FilePayload, Request, Response, Route, expect

from shared.records.runs import RunState
from tests.e2e.browser.test_pages import REFRESH
from tests.support.browser import Visit
from tests.support.builders.archives import zipped
from tests.support.dashboard_app import Site, open_site, served
from tests.support.services import eventually
from tests.unit.dashboard.pages.helpers import jpeg

pytestmark = pytest.mark.browser
TOKEN = "correct horse"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("site"), started=True, token=TOKEN) as site:
        sha256 = site.builder.dataset(150)
        for i in range(2):
            site.builder.model(sha256, f"run-{i + 1:012d}")
        site.parts.client.promote(2, "first")
        yield site


@pytest.fixture
def visit(base: str, browser: Browser) -> Iterator[Visit]:
    visit = Visit(browser, base)
    visit.page.goto(f"{base}/login")
    visit.page.get_by_label("Access token").fill(TOKEN)
    visit.page.get_by_role("button", name="Log in").click()
    visit.page.wait_for_url(f"{base}/")
    yield visit
    visit.close()


def archive() -> FilePayload:
    return FilePayload(name="faces.zip", mimeType="application/zip", buffer=zipped([("30_1_0.jpg", b"face" * 1000)]))


def test_seven_windows_share_one_stream_and_all_of_them_load(site: Site, base: str, visit: Visit) -> None:
    pages = [visit.context.new_page() for _ in range(7)]
    for page in pages:
        page.goto(f"{base}/runs")
        expect(page.locator(".link-state")).to_have_text("Live")
    assert site.parts.event_hub.streams == 1

    run_id = site.builder.run("run-0000000000aa", name="news")
    site.broker.emit("run.queued", {"run_id": run_id})
    for page in pages:
        page.bring_to_front()
        expect(page.get_by_text("news")).to_be_visible()
    visit.check()


def test_what_was_ticked_stays_ticked_when_the_list_is_renewed(site: Site, visit: Visit) -> None:
    visit.go("/runs")
    for i in (1, 2):
        visit.page.locator(f"[value=run-{i:012d}]").check()
    run_id = site.builder.run("run-0000000000ab", name="another")
    site.broker.emit("run.queued", {"run_id": run_id})
    expect(visit.page.get_by_text("another")).to_be_visible()

    expect(visit.page.locator("[name=run]:checked")).to_have_count(2)
    visit.page.get_by_role("button", name="Compare selected").click()
    expect(visit.page.locator("thead th")).to_have_count(3)
    visit.check()


def test_a_stage_that_begins_takes_the_place_of_the_last_ones_progress(site: Site, visit: Visit) -> None:
    run_id = site.builder.run("run-0000000000ac", name="late", state=RunState.TRAINING, epochs=4)
    visit.go(f"/runs/{run_id}")
    training = {"stage": "training", "done": 98, "total": 100, "epoch": 4, "epochs": 4, "eta_s": 1}
    site.broker.emit("run.progress", {"run_id": run_id, "progress": training})
    stage, left = visit.page.locator("#state [data-show=stage]"), visit.page.locator("#state [data-show=eta]")
    expect(left).to_have_text("1 s left")

    site.builder.runs.update(run_id, state=RunState.EVALUATING)
    site.broker.emit("run.evaluating", {"run_id": run_id})
    expect(stage).to_have_text("Evaluating")
    site.broker.emit("run.progress", {"run_id": run_id, "progress": training})  # one that came late
    site.broker.emit("run.epoch", {"run_id": run_id, "row": site.builder.epoch(5).as_dict()})
    expect(visit.page.locator("[data-series=loss]")).to_have_attribute("data-points", "5")

    expect(stage).to_have_text("Evaluating")
    expect(left).to_have_text("")
    site.builder.runs.update(run_id, state=RunState.CANCELLED)


def test_epochs_that_were_lost_with_their_trainer_are_marked(site: Site, visit: Visit) -> None:
    run_id = site.builder.run("run-0000000000ad", name="resumed", state=RunState.TRAINING, epochs=5)
    visit.go(f"/runs/{run_id}")
    chart = visit.page.locator("[data-series=loss]")
    expect(chart).to_have_attribute("data-points", "5")

    again = site.builder.epoch(3).model_copy(update={"train_loss": 0.4321})
    # As a trainer does it: the page may read the rows anew at any time.
    site.builder.runs.write_history(run_id, [site.builder.epoch(1), site.builder.epoch(2), again])
    site.broker.emit("run.epoch", {"run_id": run_id, "row": again.as_dict()})

    expect(chart).to_have_attribute("data-lost", "3")
    expect(chart).to_have_attribute("data-points", "3")
    site.builder.runs.update(run_id, state=RunState.CANCELLED)


def test_an_arrow_key_in_a_filter_shows_its_faces_and_keeps_the_focus(site: Site, visit: Visit) -> None:
    (sha256,) = site.store.children("datasets")
    visit.go(f"/datasets/{sha256}")
    visit.page.locator("#f-sort").focus()
    visit.page.keyboard.press("ArrowDown")
    visit.page.wait_for_url("**sort=suspects**")
    expect(visit.page.locator("#f-sort")).to_be_focused()

    facet = visit.page.locator("#facet-gender-male")
    facet.focus()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**gender=male**")
    assert "sort=suspects" in visit.page.url
    expect(facet).to_be_focused()
    expect(facet).to_have_attribute("aria-current", "true")
    males = int((site.parts.store_cache.dataset(sha256).gender == 0).sum())
    expect(visit.page.locator("#found header")).to_contain_text(f"{males} of 150")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#found header")).to_contain_text("150 of 150")
    visit.check()


def test_the_threshold_stands_in_the_address_and_moves_every_link(site: Site, visit: Visit) -> None:
    visit.go("/runs/run-000000000001")
    visit.page.locator("#threshold[data-ready]").wait_for()
    visit.page.locator("#threshold").fill("0.705")
    visit.page.wait_for_url("**threshold=0.705**")
    expect(visit.page.locator("#threshold-value")).to_have_text("0.705")
    expect(visit.page.locator("#groups")).to_contain_text("at a threshold of 0.705")
    visit.page.reload()
    visit.page.locator("#threshold[data-ready]").wait_for()
    expect(visit.page.locator("#threshold-value")).to_have_text("0.705")

    cell = visit.page.locator("[data-cell=male-male]")
    count = cell.locator("strong").inner_text()
    cell.click()
    expect(visit.page.locator("#found header")).to_contain_text(f"{count} of 150")
    visit.page.go_back()
    visit.page.locator("#threshold[data-ready]").wait_for()
    visit.page.get_by_role("link", name="Best accuracy").click()
    expect(visit.page.locator("#threshold-words")).to_contain_text("Accuracy")
    visit.check()


def test_an_upload_whose_end_was_missed_shows_its_state(site: Site, visit: Visit) -> None:
    visit.go("/datasets")
    visit.page.locator("input[type=file]").set_input_files(archive())
    task = visit.page.locator(".uploads .task")
    expect(task.locator("[data-show=stage]")).to_have_text("Queued (0 ahead)")
    error = {"code": "too_few_faces", "message": "found 1 face, expected at least 50"}
    site.builder.runs.update(str(task.get_attribute("data-run")), state=RunState.REJECTED, error=error)

    visit.page.evaluate(REFRESH)

    expect(task.locator("[data-show=share]")).to_have_text("rejected")
    expect(task.locator("[data-show=stage]")).to_have_text("found 1 face, expected at least 50")
    with site.broker.consume([site.broker.topology.datasets], 10) as consumer:
        consumer.settle(consumer.receive(10, 1.0), [])


def test_an_archive_that_is_only_looked_at_ends_as_ingested(site: Site, visit: Visit) -> None:
    visit.go("/datasets")
    visit.page.get_by_label("Look at the faces first, train later").check()
    visit.page.locator("input[type=file]").set_input_files(archive())
    task = visit.page.locator(".uploads .task")
    expect(task.locator("[data-show=stage]")).to_have_text("Queued (0 ahead)")
    run_id = str(task.get_attribute("data-run"))
    assert not site.parts.client.runs.get(run_id).train
    progress = {"stage": "ingesting", "done": 10, "total": 10, "rate": 50.0, "eta_s": 0}
    site.broker.emit("run.progress", {"run_id": run_id, "progress": progress})
    expect(task.locator("[data-show=share]")).to_have_text("100 %")

    run = site.builder.runs.update(run_id, state=RunState.INGESTED)
    site.broker.emit("run.ingested", run.reply())

    expect(task.locator("[data-show=share]")).to_have_text("ingested")
    visit.page.evaluate(REFRESH)
    expect(task.locator("[data-show=share]")).to_have_text("ingested")
    with site.broker.consume([site.broker.topology.datasets], 10) as consumer:
        consumer.settle(consumer.receive(10, 1.0), [])


def test_leaving_in_mid_upload_is_asked_about(base: str, visit: Visit) -> None:
    visit.go("/datasets")
    visit.page.route("**/api/v1/uploads/*", lambda _: None)  # it never gets through
    visit.page.locator("input[type=file]").set_input_files(archive())
    expect(visit.page.locator(".uploads .task")).to_have_count(1)
    asked: list[str] = []

    def accept(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    visit.page.on("dialog", accept)
    visit.page.goto(f"{base}/runs")

    assert asked == ["beforeunload"]


def test_a_proxys_limit_on_uploads_is_explained(visit: Visit) -> None:
    visit.go("/datasets")
    visit.page.route("**/api/v1/uploads/*", lambda route: route.fulfill(status=413, body="<html>too large</html>"))
    visit.page.locator("input[type=file]").set_input_files(archive())

    expect(visit.page.locator(".uploads .alert")).to_contain_text("client_max_body_size")


def large_archive(size: int) -> FilePayload:
    content = random.Random(1).randbytes(size)
    return {"name": "large.zip", "mimeType": "application/zip", "buffer": zipped([("30_1_0.jpg", content)])}


def test_a_proxy_that_takes_no_more_than_1_mb_gets_smaller_parts(site: Site, visit: Visit) -> None:
    visit.go("/datasets")
    file = large_archive(2_500_000)

    def refuse_large(route: Route) -> None:
        if len(route.request.post_data_buffer or b"") > 10**6:
            route.fulfill(status=413, body="<html>too large</html>")
        else:
            route.continue_()

    visit.page.route("**/api/v1/uploads/*", refuse_large)
    visit.page.locator("input[type=file]").set_input_files([file])

    expect(visit.page.locator(".uploads a")).to_be_visible(timeout=30_000)
    assert hashlib.sha256(file["buffer"]).hexdigest() in site.store.children("datasets")


def test_a_cut_line_costs_the_part_that_was_on_its_way(site: Site, visit: Visit) -> None:
    visit.go("/datasets")
    file = large_archive(11_000_000)
    offsets: list[str | None] = []

    def cut_the_second(route: Route) -> None:
        if route.request.method == "PATCH":
            offsets.append(route.request.header_value("upload-offset"))
        if len(offsets) == 2 and route.request.method == "PATCH":
            route.abort("connectionreset")
        else:
            route.continue_()

    visit.page.route("**/api/v1/uploads/*", cut_the_second)
    visit.page.locator("input[type=file]").set_input_files([file])

    expect(visit.page.locator(".uploads [data-show=stage]")).to_contain_text("lost. Trying again")
    expect(visit.page.locator(".uploads a")).to_be_visible(timeout=30_000)
    assert offsets == ["0", str(8 * 2**20), str(8 * 2**20)]
    assert hashlib.sha256(file["buffer"]).hexdigest() in site.store.children("datasets")


BAD_GATEWAY = "<html><h1>502 Bad Gateway</h1></html>"


def test_a_proxys_502_is_told_in_words_and_the_upload_goes_on(site: Site, visit: Visit) -> None:
    visit.go("/datasets")
    file = large_archive(1_500_000)
    answers = 0

    def fail_once(route: Route) -> None:
        nonlocal answers
        answers += 1
        if answers == 1:
            route.fulfill(status=502, body=BAD_GATEWAY)
        else:
            route.continue_()

    visit.page.route("**/api/v1/uploads/*", fail_once)
    visit.page.locator("input[type=file]").set_input_files([file])
    stage = visit.page.locator(".uploads [data-show=stage]")
    expect(stage).to_have_text("The dashboard does not answer (502). Trying again…")
    expect(visit.page.locator(".uploads a")).to_be_visible(timeout=30_000)
    assert hashlib.sha256(file["buffer"]).hexdigest() in site.store.children("datasets")

    visit.page.route("**/api/v1/datasets?*", lambda route: route.fulfill(status=502, body=BAD_GATEWAY))
    visit.page.locator("input[type=file]").set_input_files(archive())
    expect(visit.page.locator(".uploads .alert")).to_have_text(
        "The dashboard does not answer; the proxy in front of it says 502. Try again in a moment. "
        "What was sent is kept for a day: drop the file again."
    )


def test_a_proxys_502_is_told_in_words_where_an_image_is_predicted(visit: Visit) -> None:
    visit.page.route("**/predict/image?*", lambda route: route.fulfill(status=502, body=BAD_GATEWAY))
    visit.go("/predict")

    expect(visit.page.locator("[data-error]").first).to_have_text(
        "The dashboard does not answer; the proxy in front of it says 502. Try again in a moment."
    )


def test_a_login_that_expires_in_mid_upload_is_renewed_and_the_file_is_kept(site: Site, visit: Visit) -> None:
    visit.go("/datasets")
    file = large_archive(11_500_000)
    sent: list[tuple[str, int]] = []
    patches: list[Route] = []
    held: list[Route] = []

    def hold_the_second(route: Route) -> None:
        if route.request.method == "PATCH":
            patches.append(route)
        if patches[1:] == [route]:
            held.append(route)
        else:
            route.continue_()

    def note(response: Response) -> None:
        if response.request.method == "PATCH":
            sent.append((str(response.request.header_value("upload-offset")), response.status))

    visit.page.on("response", note)
    visit.page.route("**/api/v1/uploads/*", hold_the_second)
    visit.page.locator("input[type=file]").set_input_files([file])
    eventually(lambda: visit.page.evaluate("true") and held, 20, "the second part is on its way")
    visit.context.clear_cookies(name=site.app.config["SESSION_COOKIE_NAME"])
    held[0].continue_()

    expect(visit.page.locator(".uploads [data-show=stage]")).to_have_text("Waiting for you to log in")
    dialog = visit.page.locator("#login-dialog")
    dialog.get_by_label("Access token").fill(TOKEN)
    dialog.get_by_role("button", name="Log in").click()
    expect(visit.page.locator(".uploads a")).to_be_visible(timeout=30_000)
    eight = str(8 * 2**20)
    assert sent == [("0", 204), (eight, 401), (eight, 204)]  # what was there stays
    assert hashlib.sha256(file["buffer"]).hexdigest() in site.store.children("datasets")


def test_only_what_was_changed_in_the_form_is_sent(visit: Visit) -> None:
    visit.go("/datasets")
    sent: list[str] = []
    visit.page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
    visit.page.get_by_text("Training parameters").click()
    visit.page.locator("[data-param=epochs]").fill("9")
    visit.page.locator("[data-param=augment]").select_option("false")
    visit.page.locator("input[type=file]").set_input_files(archive())
    expect(visit.page.locator(".uploads a")).to_be_visible()

    assert "params=%7B%22epochs%22%3A9%2C%22augment%22%3Afalse%7D&upload=" in sent[-1]


def test_what_cannot_be_undone_asks_first(site: Site, visit: Visit) -> None:
    visit.go("/models/1")
    asked: list[str] = []

    def refuse(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    visit.page.on("dialog", refuse)
    visit.page.get_by_label("Reason").fill("by mistake")
    visit.page.get_by_role("button", name="Promote model 1").click()

    assert asked == ["Promote model 1? It will answer all predictions from now on."]
    assert site.builder.registry.aliases().champion == 2


def test_a_login_that_expired_is_renewed_on_the_page_and_the_file_is_kept(site: Site, visit: Visit) -> None:
    on_their_way: set[Request] = set()
    visit.page.on("request", lambda request: on_their_way.add(request))  # noqa: PLW0108 - it takes no built-in method
    visit.page.on("response", lambda response: on_their_way.discard(response.request))
    visit.page.on("requestfailed", lambda request: on_their_way.discard(request))  # noqa: PLW0108
    with site.worker():
        visit.go("/predict")
        expect(visit.page.locator("[data-took]")).to_contain_text("including the queue")
        logged_in = site.app.config["SESSION_COOKIE_NAME"]

        def log_out() -> bool:  # an answer that is still on its way sets the cookie anew
            visit.context.clear_cookies(name=logged_in)
            status: int = visit.page.evaluate("async () => (await fetch('/api/v1/status')).status")
            return status == 401 and all("/events" in request.url for request in on_their_way)

        eventually(log_out, 10, "the login is gone")
        mine = FilePayload(name="24_1_0.jpg", mimeType="image/jpeg", buffer=jpeg())
        visit.page.locator("#own").set_input_files([mine])
        dialog = visit.page.locator("#login-dialog")
        expect(dialog).to_be_visible()
        expect(dialog).to_contain_text("Your login has expired.")
        dialog.get_by_label("Access token").fill("wrong wrong")
        dialog.get_by_role("button", name="Log in").click()
        expect(dialog.locator("[data-wrong]")).to_have_text("Wrong token. Check it and try again.")
        dialog.get_by_label("Access token").fill(TOKEN)
        dialog.get_by_role("button", name="Log in").click()

        expect(visit.page.locator("#results section", has_text="24_1_0.jpg").locator("[data-took]")).to_contain_text(
            "including the queue"
        )
    expect(dialog).to_be_hidden()


RETRIES = """new Promise((done) => {
  let seen = 0;
  const count = () => (seen += 1) === 2 && done();
  new MutationObserver(count).observe(document.querySelector(".link-state [data-text]"), { childList: true });
})"""


def test_a_login_that_ends_while_nobody_does_anything_is_asked_for_once(tmp_path: Path, browser: Browser) -> None:
    with open_site(tmp_path, started=True, token=TOKEN) as site, served(site) as base:
        visits = [Visit(browser, base) for _ in range(2)]
        for visit in visits:
            visit.page.goto(f"{base}/login?next=/runs")
            visit.page.get_by_label("Access token").fill(TOKEN)
            visit.page.get_by_role("button", name="Log in").click()
            expect(visit.page.locator(".link-state")).to_have_text("Live")
    with (
        open_site(tmp_path, started=True, token="another token") as site,
        served(site, port=int(base.rpartition(":")[2])),
    ):
        willing, unwilling = visits
        dialog = willing.page.locator("#login-dialog")
        expect(dialog).to_be_visible()
        dialog.get_by_label("Access token").fill("another token")
        dialog.get_by_role("button", name="Log in").click()
        expect(willing.page.locator(".link-state")).to_have_text("Live")
        expect(dialog).to_be_hidden()

        dialog = unwilling.page.locator("#login-dialog")
        dialog.get_by_role("button", name="Cancel").click()
        expect(unwilling.page.locator(".toast")).to_have_text("Your login has expired. Log in, then try again.")
        unwilling.page.evaluate(RETRIES)
        expect(dialog).to_be_hidden()
        for visit in visits:
            visit.close()

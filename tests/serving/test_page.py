"""The page on `/` in a real browser: a form made from the features, and a score that moves when a value is changed."""

import shutil

import pytest
from server_process import serving

from torchrec_models import Bundle

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def server(click_bundles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "token").write_text("a-token-for-this-test")
    with serving(folder, f"click={click_bundles[0]}", "--token-file", folder / "token") as served:
        yield served


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.set_default_timeout(20_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.get_by_label("bearer token").fill("a-token-for-this-test")
    page.get_by_label("bearer token").press("Tab")
    page.wait_for_selector("output[name=click]")
    yield page
    assert problems == []
    page.close()


def test_the_sample_request_gets_the_bundles_score(page, click_bundles):
    bundle = Bundle(click_bundles[0])
    sample = bundle.examples["model"]["rows"][0]
    assert page.locator("output[name=click]").inner_text() == f"{float(bundle.predict([sample])[0, 0]):#.6g}"
    assert page.locator("#form input").count() == 8
    assert bundle.version in page.locator("#version").inner_text()


def test_a_changed_value_moves_the_score(page, click_bundles):
    before = page.locator("output[name=click]").inner_text()
    page.locator("input[name=price]").fill("250")
    page.wait_for_function("text => document.querySelector('output[name=click]').textContent !== text", arg=before)
    assert page.locator(".task span.up, .task span.down").count() == 2
    sent = page.evaluate("() => JSON.parse(document.getElementById('request').textContent)")
    assert sent["price"] == 250 and isinstance(sent["history"], list)
    expected = float(Bundle(click_bundles[0]).predict([sent])[0, 0])
    assert page.locator("output[name=click]").inner_text() == f"{expected:#.6g}"


def test_a_refused_value_is_explained(page):
    page.locator("input[name=price]").fill("dear")
    page.wait_for_function("() => document.getElementById('error').textContent.includes('dear')")
    assert "feature 'price'" in page.locator("#error").inner_text()


def test_a_page_without_its_token_says_so_and_shows_no_link_that_fails(browser, server):
    page = browser.new_page()
    page.set_default_timeout(20_000)
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.get_by_text("This server asks for a token").wait_for()
    assert page.get_by_role("link").count() == 0 and page.locator("#error").inner_text() == ""
    page.get_by_label("bearer token").fill("not-this-servers-token")
    page.get_by_label("bearer token").press("Enter")
    page.get_by_text("a valid bearer token is needed").wait_for()
    assert page.get_by_role("link").count() == 0
    page.get_by_label("bearer token").fill("a-token-for-this-test")
    page.get_by_label("bearer token").press("Enter")
    page.wait_for_selector("output[name=click]")
    assert page.get_by_role("link").all_inner_texts() == ["API", "metrics"]
    assert page.locator("#error").inner_text() == "" and not page.locator("#locked").is_visible()
    page.close()


def test_links_carry_the_token_that_was_typed_in(page, server):
    address = page.url
    page.get_by_role("link", name="metrics").click()
    page.wait_for_function("() => document.getElementById('shown').textContent.includes('trm_requests_total')")
    page.get_by_role("link", name="API", exact=True).click()
    page.locator("#shown h2 code", has_text="POST /models/click/predict").wait_for()
    page.get_by_role("link", name="openapi.json").click()
    page.wait_for_function("() => document.getElementById('shown').textContent.includes('\"openapi\": \"3.1.0\"')")
    assert page.url == address
    assert page.locator("#error").inner_text() == ""


def test_links_without_a_token_are_links(browser, click_bundles, tmp_path):
    with serving(tmp_path, f"click={click_bundles[0]}") as served:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        for name, said in (("metrics", "trm_requests_total"), ("API", "POST /predict")):
            page.goto(f"http://127.0.0.1:{served.port}/")
            page.wait_for_selector("output[name=click]")
            assert not page.get_by_label("bearer token").is_visible() and not page.locator("#locked").is_visible()
            page.get_by_role("link", name=name, exact=True).click()
            page.get_by_text(said).first.wait_for()
            assert page.url.endswith({"metrics": "/metrics", "API": "/docs"}[name])
        page.close()


def test_the_api_page_lists_every_path(browser, server):
    page = browser.new_page(extra_http_headers={"Authorization": "Bearer a-token-for-this-test"})
    page.goto(f"http://127.0.0.1:{server.port}/docs")
    listed = page.locator("h2 code").all_inner_texts()
    assert {"POST /predict", "POST /models/click/predict", "POST /v2/models/{name}/infer", "GET /metrics"} <= set(listed)
    page.close()

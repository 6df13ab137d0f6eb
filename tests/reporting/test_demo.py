"""The search page: what it answers, what it refuses, and what a person sees of it in a browser."""

import shutil
import socket
import struct
import zlib
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import pytest

from catalign.errors import CatalignError

pytest.importorskip("gradio", reason="pip install 'catalign[demo]'")

from catalign.reporting import demo


@pytest.fixture(scope="module")
def shop(tiny_run):
    return demo.Shop(tiny_run)


@pytest.fixture(scope="module")
def page(shop, tmp_path_factory):
    page = demo.open_page(shop, tmp_path_factory.mktemp("uploads"))
    yield page
    page.close()


def photo_of(shop, row):
    return shop.retriever.catalogue.thumbnail(row)


def bomb():
    """A PNG of a few bytes that says it has 100 million pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_words_photo_both_and_neither(shop, tmp_path):
    photo = tmp_path / "query.png"
    photo.write_bytes(photo_of(shop, 3))
    search = shop.retriever.search
    assert shop.find("red dress", None, 0.5, {}).ids == search("red dress", k=demo.SHOWN).ids
    assert shop.find("  ", photo, 0.5, {}).ids == search(image=photo, k=demo.SHOWN).ids
    assert shop.find("red dress", photo, 1.0, {}).ids == search(image=photo, k=demo.SHOWN).ids
    assert shop.find("red dress", photo, 0.0, {}).ids == search("red dress", k=demo.SHOWN).ids
    assert shop.find("", None, 0.5, {}).ids == shop.retriever.index.ids[: demo.SHOWN]


def test_filters_hold_for_every_way_to_find(shop):
    colour = shop.values["colour"][0]
    filters = {"colour": [colour], "category": []}
    for found in (
        shop.find("", None, 0.5, filters),
        shop.find("dress", None, 0.5, filters),
        shop.like("S000003", filters),
    ):
        assert {hit.attributes["colour"] for hit in found} == {colour}


def test_recommendations_follow_the_history(shop):
    assert not shop.recommend([])
    history = ["S000003", "S000017"]
    assert shop.recommend(history).ids == shop.retriever.recommend(history, k=demo.SHOWN).ids


@pytest.mark.parametrize(
    ("upload", "reason"),
    [
        (b"", "zero bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not one of JPEG"),
        (bomb(), "10000 x 10000, the limit is 64 million pixels"),
    ],
    ids=["empty", "svg", "bomb"],
)
def test_what_is_no_usable_photo_is_refused_in_words(shop, tmp_path, upload, reason):
    photo = tmp_path / "upload.png"
    photo.write_bytes(upload)
    with pytest.raises(CatalignError, match=reason) as refusal:
        shop.find("", photo, 0.5, {})
    assert str(tmp_path) not in str(refusal.value)


def test_titles_cannot_put_markup_into_the_page(shop, monkeypatch):
    monkeypatch.setattr(shop.retriever.catalogue, "text", lambda: ["<script>alert(1)</script>"] * 10)
    assert "<script" not in shop.about(shop.retriever.catalogue.ids[0])


def test_without_behaviour_there_is_no_tab_to_recommend(shop, monkeypatch):
    def tabs():
        blocks = demo.build_page(shop).blocks.values()
        return [block.label for block in blocks if type(block).__name__ == "Tab"]

    assert tabs() == ["Search", "Recommend", "Map"]
    monkeypatch.setattr(shop, "modalities", {"text", "image"})
    monkeypatch.setattr(shop, "photo_share", None)  # as where the fusion takes no weights
    assert tabs() == ["Search", "Map"]


def test_a_product_that_the_catalogue_lacks_is_shown_all_the_same(shop):
    """An index may hold products that were added after the catalogue was prepared."""
    assert "later" in shop.about("later")
    assert shop.picture("later").size


def test_a_taken_port_is_an_error_with_a_remedy(tiny_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CatalignError, match=rf"127.0.0.1:{port}.*\n.*--port"):
            demo.serve(tiny_run, port=port)


def status(request):
    try:
        with urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_files_are_not_served(page, tiny_run, tmp_path):
    """Neither the run's, nor those of the folder that the server was started in, nor the system's."""
    for path in (tiny_run.path / "config.json", "setup.py", "/etc/passwd", tmp_path):
        code, _ = status(f"{page.local_url}gradio_api/file={quote(str(path))}")
        assert code in (403, 404), path


def test_an_upload_above_the_limit_is_refused_while_it_arrives(page):
    def upload(size):
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + bytes(size)
        return status(
            Request(
                f"{page.local_url}gradio_api/upload",
                data=body + b"\r\n--x--\r\n",
                headers={"Content-Type": "multipart/form-data; boundary=x"},
            )
        )

    assert upload(1000)[0] == 200
    code, message = upload(11_000_000)
    assert code == 413
    assert "exceeded maximum allowed size" in message


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, page):
    tab = browser.new_page()
    tab.set_default_timeout(60_000)
    yield tab
    tab.close()


def test_a_person_searches_browses_and_is_recommended_products(page, tab, shop):
    hosts = set()
    tab.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    tab.goto(page.local_url)
    first = tab.locator(".thumbnail-item").first
    first.wait_for()

    tab.get_by_label("Words", exact=True).fill("red striped dress")
    tab.get_by_role("button", name="Search", exact=True).click()
    tab.get_by_text('"red striped dress"').wait_for()
    id = shop.find("red striped dress", None, 0.5, {}).ids[0]
    first.click()
    tab.get_by_text(id).wait_for()
    tab.get_by_role("button", name="More like this").click()
    tab.get_by_text(f"like product {id}").wait_for()

    tab.get_by_role("button", name="Add to history").click()
    tab.get_by_role("tab", name="Recommend").click()
    tab.get_by_text(f"after {id}", exact=True).wait_for()
    tab.locator(".thumbnail-item:visible").nth(1).click()  # the first is the history
    tab.get_by_text(f"after {id}, {shop.recommend([id]).ids[0]}").wait_for()
    tab.get_by_role("tab", name="Map").click()
    tab.locator("svg[role=img]").wait_for()
    assert {host for host in hosts if host} == {"127.0.0.1"}, "the page needs no network"


def test_a_person_is_told_why_a_photo_is_refused(page, tab, tmp_path):
    tab.goto(page.local_url)
    tab.locator(".thumbnail-item").first.wait_for()
    upload, (large, many) = tab.locator("input[type=file]"), (tmp_path / "large.png", tmp_path / "many.png")
    large.write_bytes(bytes(11_000_000))
    many.write_bytes(bomb())
    upload.set_input_files(large)
    tab.get_by_text('exceed the maximum allowed size of 10.0 Mb: "large.png"').first.wait_for()
    upload.set_input_files(many)
    tab.locator("img[src*='many.png']").wait_for(state="attached")
    tab.get_by_role("button", name="Search", exact=True).click()
    tab.get_by_text("the limit is 64 million pixels").first.wait_for()

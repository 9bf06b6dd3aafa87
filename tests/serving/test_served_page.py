"""The search page in a browser."""

import pytest
from browser import CHROMIUM, Browser
from serving_tools import running

from sugar_hf import SugarIndex
from sugar_hf.serving import Engine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
QUERY = "on a grey background there is a large broom in the top left corner."
HOSTILE = '<img src=x onerror="document.title=\'hit\'"><script>document.title="hit"</script>'
LOADED = "[...document.querySelectorAll('#list img')].every((image) => image.complete && image.naturalWidth)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()


@pytest.fixture
def page(browser, served):
    browser.messages.clear()
    browser.open(served.url)
    browser.wait("document.getElementById('about').textContent")
    return browser


def texts(page, selector):
    return page.evaluate(f"[...document.querySelectorAll({selector!r})].map((found) => found.textContent)")


def test_a_search_by_keyboard(page, served, tmp_path):
    assert "mini-sugar · 24 documents" in texts(page, "#about")
    page.write(QUERY)  # the field has the focus
    page.press("Enter", modifiers=2)
    page.wait("document.querySelectorAll('#list > li').length === 10")
    expected = served.post("/v1/search", query=QUERY, top_k=10).json()["data"]
    assert texts(page, "#list .id") == [hit["id"] for hit in expected]
    assert texts(page, "#list .score") == [f"{hit['score']:.3f}" for hit in expected]
    page.wait(LOADED)
    assert len(texts(page, "#list img")) == sum(part["type"] == "image" for hit in expected for part in hit["parts"])
    for _ in range(4):  # past the pictures, the buttons, to the first "Why?"
        page.press("Tab")
    page.wait("document.activeElement.className === 'why'")
    page.press("Enter", text="\r")
    page.wait("document.querySelector('#list td.path')")
    assert texts(page, "#list th[scope=row]") == [QUERY]
    assert page.complaints() == []


def test_a_picture_and_an_answer(page, served, pictures, tmp_path):
    pictures[0].save(tmp_path / "a.png")
    page.choose("#files", tmp_path / "a.png")
    page.wait("document.querySelector('#pictures img')")
    page.write("what comes?")
    page.evaluate("document.getElementById('ask').click()")
    page.wait("!document.getElementById('answer').hidden && document.getElementById('stop').hidden")
    from serving_tools import image_part

    query = [image_part(pictures[0]), {"type": "text", "text": "what comes?"}]
    expected = served.post("/v1/answer", query=query).json()
    assert texts(page, "#words") == [expected["answer"]]
    assert texts(page, "#list .id") == [hit["id"] for hit in expected["documents"]]
    page.evaluate("document.querySelector('#list .why').click()")
    page.wait("document.querySelector('#list th[scope=row] img')")
    page.wait(LOADED)
    page.evaluate("document.querySelector('#pictures button').click()")
    assert texts(page, "#pictures img") == []
    assert page.complaints() == []


def test_pictures_are_dropped_and_pasted(page):
    script = """(async () => {
      const canvas = Object.assign(document.createElement("canvas"), {width: 8, height: 8});
      const blob = await new Promise((done) => canvas.toBlob(done));
      const data = new DataTransfer();
      data.items.add(new File([blob], "a.png", {type: "image/png"}));
      data.items.add(new File(["no picture"], "a.txt", {type: "text/plain"}));
      document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
      document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
    })()"""
    page.evaluate(script)
    page.wait("document.querySelectorAll('#pictures img').length === 2")


def test_what_comes_from_elsewhere_is_text(browser, mini, tmp_path):
    index = SugarIndex.build(tmp_path / "i", [{"id": HOSTILE, "text": HOSTILE}], mini, show_progress=False)
    with running(Engine(mini, SugarIndex.load(index.folder))) as server:
        browser.messages.clear()
        browser.open(f"{server.url}/?q=%3Cb%3E")
        browser.wait("document.querySelector('#list li')")
        browser.evaluate("document.querySelector('#list .why').click()")
        browser.wait("document.querySelector('#list td.path')")
        assert texts(browser, "#list .id") == [HOSTILE]
        assert texts(browser, "#list .parts p") == [HOSTILE]
        assert texts(browser, "#list th[scope=row]") == ["<b>"]
        assert browser.evaluate("document.title") == "Sugar"
        assert browser.complaints() == []
        # the policy keeps out what the page itself would never do
        browser.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'document.title=1'}))"
        )
        assert browser.evaluate("document.title") == "Sugar"


def test_a_key_is_asked_for(browser, mini):
    with running(Engine(mini), api_key="sesame") as server:
        browser.open(server.url)
        browser.wait("!document.getElementById('key-row').hidden")
        browser.write("sesame")
        browser.press("Tab")
        browser.wait("document.getElementById('about').textContent.includes('no index')")
        browser.evaluate("document.getElementById('text').focus()")
        browser.write("which colour is the background?")
        browser.press("Enter", modifiers=2)  # without an index the model itself is asked
        browser.wait("document.getElementById('words').textContent")


def test_errors_are_said(page, served):
    page.evaluate("document.getElementById('find').click()")
    page.wait("document.getElementById('status').textContent.startsWith('Write something')")
    page.evaluate("document.getElementById('text').value = 'so many words '.repeat(2000)")
    page.evaluate("document.getElementById('find').click()")
    page.wait("document.getElementById('status').className === 'error'")
    assert "max_length" in texts(page, "#status")[0]

"""Images on the model's own path: the same as in the readers, and no address is fetched unless that is asked for."""

import base64
import io
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sugar_hf.data import BadSampleError, load_image
from sugar_hf.model import images_sugar
from sugar_hf.model.images_sugar import BadImageError, fetch_image
from sugar_hf.model.samples_sugar import parse_sample

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def encode(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def loaded(part):
    return parse_sample([part], "sample 3")[0].parts[0].load()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(NOISE, "JPEG", exif=exif)


def palette():
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 40, 50, 60])
    return encode(image, transparency=0)


FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
GOOD = {
    "plain": encode(NOISE),
    "grey": encode(NOISE.convert("L")),
    "turned": turned(),
    "transparent": encode(Image.new("RGBA", (4, 4), (255, 0, 0, 60))),
    "palette": palette(),
    "animated": encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "cmyk": encode(Image.new("CMYK", (8, 8), (0, 90, 0, 0)), "JPEG"),
    "16 bit": encode(Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))),
    "webp": encode(NOISE, "WEBP"),
}


def test_an_image_is_the_same_on_every_way(tmp_path, subtests):
    for name in GOOD:
        with subtests.test(name=name):
            data = GOOD[name]
            path = tmp_path / "image.bin"  # what a file is called does not matter
            path.write_bytes(data)
            expected = np.asarray(load_image(data))
            text = base64.b64encode(data).decode()
            parts = [
                path,
                Image.open(path),
                {"type": "image", "image": str(path)},
                {"type": "image", "path": str(path)},
                {"type": "image", "base64": text},
                {"type": "image", "base64": f"data:image/png;base64,{text}"},
                {"type": "image", "image": f"data:image/png;base64,{text}"},
                {"type": "image", "url": f"data:image/png;base64,{text}"},
                {"type": "image", "image": text},
            ]
            for part in parts:
                image = loaded(part)
                assert image.mode == "RGB"
                np.testing.assert_array_equal(np.asarray(image), expected)


def test_what_the_kinds_become():
    def first(name):
        return load_image(GOOD[name]).getpixel((0, 0))

    assert load_image(GOOD["turned"]).size == (48, 64)
    assert first("transparent") == (255, 195, 195)
    assert first("palette") == (255, 255, 255)
    assert first("animated") == (255, 0, 0)
    assert load_image(GOOD["16 bit"]).getpixel((1, 0)) == (128, 128, 128)


BAD = {
    "empty": (b"", "not an image of a supported type"),
    "text": (b"hello", "not an image of a supported type"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a supported type"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a supported type"),
    "truncated": (GOOD["plain"][:4000], "truncated or corrupt"),
    "flipped": (GOOD["plain"][:4000] + b"\0" + GOOD["plain"][4001:], "truncated or corrupt"),
}


def test_the_same_is_refused_on_every_way(tmp_path, subtests):
    for name in BAD:
        with subtests.test(name=name):
            data, reason = BAD[name]
            path = tmp_path / "image.png"
            path.write_bytes(data)
            text = base64.b64encode(data).decode()
            parts = [
                path,
                {"type": "image", "path": str(path)},
                *([{"type": "image", "base64": text}] if text else []),
            ]
            for part in parts:
                with pytest.raises(
                    ValueError, match=rf"^sample 3, part 0: cannot use the image: .*{reason}.*\. Replace"
                ):
                    loaded(part)
            with pytest.raises(BadSampleError, match=reason):
                load_image(data)


def test_sources_that_are_refused(subtests):
    for part, reason in [
        (Image.new("F", (2, 2)), "mode 'F'"),
        (Image.new("RGB", (0, 3)), "has 0 x 3 pixels"),
        (Path("/dev/zero"), "no file '/dev/zero'"),
        (Path("/"), "no file '/'"),
        ({"type": "image", "path": "bad\0name"}, "no file"),
        ({"type": "image", "path": "x" * 5000}, "no file"),
        ({"type": "image", "base64": "a$b"}, "damaged"),
        ({"type": "image", "image": "QUJD" * 30}, "of 90 bytes is not an image"),
        ({"type": "image", "url": "/etc/hostname"}, "no http or https address"),
        ({"type": "image", "url": "file:///etc/hostname"}, "no http or https address"),
        ({"type": "image", "url": "ftp://127.0.0.1/a.png"}, "no http or https address"),
        ({"type": "image", "image": "file:///etc/hostname"}, "is an address"),
        ({"type": "image", "path": "s3://bucket/a.png"}, "is an address"),
        ({"type": "image", "url": "http://127.0.0.1:x/a.png"}, "cannot fetch"),
        ({"type": "image", "url": "http://127.0.0.1:9/a.png"}, "cannot fetch"),
    ]:
        match = f"sample 3, part 0: cannot use the image: .*{reason}"
        with subtests.test(reason=reason), pytest.raises(ValueError, match=match):
            loaded(part)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="no file"):  # opening it would wait for a writer for ever
        loaded(tmp_path / "pipe.png")


def test_the_pixel_limit_holds(monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(Image.new("L", (100, 200))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # Pillow itself refuses from twice that on
    with pytest.raises(ValueError, match=r"part 0: .*decompression bomb"):
        loaded(tmp_path / "a.png")


def test_the_callers_image_is_not_shared():
    image = Image.new("RGB", (4, 4), "red")
    loaded(image).putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == (255, 0, 0)


@contextmanager
def server():
    """A web server on this machine that counts what it is asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/a.png")
            elif self.path == "/file":
                self.send_response(302)
                self.send_header("Location", "file:///etc/hostname")
            else:
                self.send_response(200 if self.path.startswith("/a") else 404)
            self.end_headers()
            if self.path == "/a.png":
                self.wfile.write(GOOD["plain"])

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}", asked
        finally:
            web.shutdown()
            thread.join()


def test_an_address_is_fetched_only_under_url(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with server() as (address, asked):
        for key in ("image", "path"):
            with pytest.raises(ValueError, match=r"part 0: .*is an address.*ask with .*\"url\""):
                loaded({"type": "image", key: f"{address}/a.png"})
        with pytest.raises(ValueError, match="no file"):
            loaded(Path(f"{address}/a.png"))
        assert parse_sample(f"{address}/a.png", "a text")[0].parts[0].text.endswith("a.png")
        parse_sample([{"type": "image", "url": f"{address}/a.png"}], "not loaded yet")
        assert asked == []
        for name in ("/a.png", "/moved"):
            assert np.array_equal(loaded({"type": "image", "url": address + name}), NOISE)
        assert asked == ["/a.png", "/moved", "/a.png"]


def test_what_is_fetched_is_bounded(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with server() as (address, _):
        with pytest.raises(BadImageError, match=r"cannot fetch .*404"):
            fetch_image(f"{address}/gone.png")
        with pytest.raises(BadImageError, match="cannot fetch"):
            fetch_image(f"{address}/file")  # a redirect must not lead to a file of this machine
        monkeypatch.setattr(images_sugar, "MAX_DOWNLOAD_BYTES", 100)
        with pytest.raises(BadImageError, match="more than 100 bytes"):
            fetch_image(f"{address}/a.png")

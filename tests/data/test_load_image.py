"""The safe image loader: what it accepts, what it makes of it, and what it refuses."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image, ImageFile

from sugar_hf.data import BadSampleError, load_image, resolve_image

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def test_every_source_gives_the_same_rgb_image(tmp_path):
    data = encode(Image.fromarray(NOISE), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    opened = Image.open(path)
    sources = [data, bytearray(data), memoryview(data), path, str(path), opened, Image.fromarray(NOISE)]
    sources += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, {"bytes": data, "path": "gone.png"}]
    for source in sources:
        image = load_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), NOISE)


def test_a_pil_source_is_copied():
    source = Image.new("RGB", (4, 4), "red")
    image = load_image(source)
    image.putpixel((0, 0), (0, 0, 0))
    assert source.getpixel((0, 0)) == (255, 0, 0)


def test_formats(subtests):
    for image_format in ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]:
        with subtests.test(image_format=image_format):
            assert load_image(encode(Image.fromarray(NOISE), image_format)).size == (64, 48)


def test_transparency_is_laid_on_white():
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 255, 255))
    assert [load_image(half).getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 255)]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert load_image(encode(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_palette_with_and_without_transparency():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert load_image(encode(palette, "PNG")).getpixel((1, 0)) == (40, 50, 60)
    transparent = load_image(encode(palette, "PNG", transparency=1))
    assert [transparent.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for image_format in ("GIF", "WEBP", "PNG"):
        data = encode(frames[0], image_format, save_all=True, append_images=frames[1:])
        red, green, blue = load_image(data).getpixel((4, 4))
        assert red > 240
        assert green < 15
        assert blue < 15


def test_cmyk_and_sixteen_bit_grey():
    white = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert min(load_image(encode(white, "JPEG")).getpixel((4, 4))) > 250
    deep = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    assert [load_image(encode(deep, "PNG")).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored left column is the top row
    data = encode(Image.fromarray(NOISE), "JPEG", exif=exif)
    image = load_image(data)
    assert image.size == (48, 64)
    assert load_image(image).size == (48, 64)  # not turned again


def test_truncated_file(subtests):
    for image_format in ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]:
        with subtests.test(image_format=image_format):
            data = encode(Image.fromarray(NOISE), image_format)
            with pytest.raises(BadSampleError, match=r"images\[1\]: .*(truncated|corrupt|not an image)"):
                load_image(data[: len(data) // 2], field="images[1]")


def test_a_truncated_file_is_refused_whatever_other_libraries_tell_pillow(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval does when it is imported
    data = encode(Image.fromarray(NOISE), "JPEG")
    with pytest.raises(BadSampleError, match="truncated or corrupt"):
        load_image(data[: len(data) // 2])
    assert load_image(data).size == (64, 48)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_corrupt_checksum():
    data = bytearray(encode(Image.fromarray(NOISE), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadSampleError, match="truncated or corrupt"):
        load_image(bytes(data))


def test_not_an_image(subtests):
    for data in [b"", b"hello", b"<html></html>", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n"]:
        with subtests.test(data=data), pytest.raises(BadSampleError, match="not an image of a supported type"):
            load_image(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "side", [20, 30]
)  # above the limit (Pillow only warns), above twice the limit (Pillow raises)
def test_decompression_bomb(monkeypatch, side):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(BadSampleError, match="decompression bomb"):
        load_image(encode(Image.new("L", (side, side)), "PNG"))
    with pytest.raises(BadSampleError, match="decompression bomb"):
        load_image(Image.new("L", (side, side)))
    assert load_image(encode(Image.new("L", (10, 30)), "PNG")).size == (10, 30)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_bomb_warning_turned_into_an_error_by_the_caller(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(BadSampleError, match="decompression bomb"):
        load_image(encode(Image.new("L", (20, 20)), "PNG"))


def test_unknown_pixel_range_and_types():
    with pytest.raises(BadSampleError, match="mode 'F'"):
        load_image(Image.new("F", (2, 2)))
    for source in (3, None, ["a.png"], np.zeros((2, 2, 3))):
        with pytest.raises(BadSampleError, match="cannot come from"):
            load_image(source)
    with pytest.raises(BadSampleError, match="neither bytes nor a path"):
        load_image({"bytes": None, "path": None})


def test_paths_that_are_no_files(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path, "bad\0name.png", ""):
        with pytest.raises(BadSampleError):
            load_image(path)
    fifo = tmp_path / "pipe.png"
    os.mkfifo(fifo)
    with pytest.raises(BadSampleError, match="no file"):  # opening it would wait for a writer for ever
        load_image(fifo)


def test_threads_share_no_state(monkeypatch):
    data, failures = encode(Image.fromarray(NOISE), "JPEG"), []

    def work():
        for _ in range(20):
            if load_image(data).size != (64, 48):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_resolve_image(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").touch()
    (tmp_path / "secret.png").touch()
    (tmp_path / "images2").mkdir()
    (tmp_path / "images2" / "b.png").touch()
    inside = str(root / "sub" / "a.png")
    assert resolve_image("sub/a.png", root) == inside
    assert resolve_image("sub/../sub/a.png", root) == inside
    assert resolve_image(inside, root) == inside
    for name in ("../secret.png", str(tmp_path / "secret.png"), "../images2/b.png", "sub/../../secret.png"):
        with pytest.raises(BadSampleError, match="outside the image root"):
            resolve_image(name, root)
        assert os.path.isfile(resolve_image(name, root, allow_outside_root=True))
    for name, reason in (("gone.png", "no file"), ("", "empty"), ("a\0b", "NUL"), ("https://x.org/a.png", "URL")):
        with pytest.raises(BadSampleError, match=reason):
            resolve_image(name, root)


def test_links_inside_the_root_are_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "coco").symlink_to(tmp_path / "disk")
    assert resolve_image("coco/a.png", tmp_path / "images").endswith("images/coco/a.png")

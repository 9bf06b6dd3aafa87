"""What an image file says besides its pixels decides nothing but how the picture is turned."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from sugar_hf.model.images_sugar import BadImageError, read_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8))
HUGE = zlib.compress(b"a" * (2**20 + 1))  # more than Pillow takes of a text


def encode(image_format, image=NOISE, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(name, data, checksum=None):
    checksum = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def segment(marker, data):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def tiff_with(entry):
    """A TIFF one of whose fields, a text of its maker, is another one."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[271] = "maker"
    data = bytearray(encode("TIFF", tiffinfo=tags))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    places = [start + 2 + 12 * i for i in range(count)]
    [place] = [place for place in places if struct.unpack_from("<H", data, place)[0] == 271]
    struct.pack_into("<HHII", data, place, *entry)
    return bytes(data)


PNG_CHUNKS = {
    "EXIF without a header": chunk(b"eXIf", b"garbage"),
    "empty EXIF": chunk(b"eXIf", b""),
    "EXIF in a text": chunk(b"tEXt", b"Raw profile type exif\0no\nhex\nat\nall"),
    "a wrong checksum": chunk(b"tEXt", b"a\0b", 5),
    "a huge text": chunk(b"zTXt", b"a\0\0" + HUGE),
    "a huge international text": chunk(b"iTXt", b"a\0\x01\0\0\0" + HUGE),
    "a huge colour profile": chunk(b"iCCP", b"a\0\0" + HUGE),
    "an empty colour profile": chunk(b"iCCP", b""),
    "a short resolution": chunk(b"pHYs", b"1"),
    "a short gamma": chunk(b"gAMA", b""),
    "an animation of no frames": chunk(b"acTL", struct.pack(">II", 0, 0)),
    "a broken frame": chunk(b"fcTL", b"12"),
}
JPEG_SEGMENTS = {
    "EXIF without a header": segment(0xE1, b"Exif\0\0garbage"),
    "EXIF that points nowhere": segment(0xE1, b"Exif\0\0MM\0*\0\0\xff\xff"),
    "a cut colour profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a cut list of pictures": segment(0xE2, b"MPF\0"),
    "a cut Photoshop block": segment(0xED, b"Photoshop 3.0\x008BIM\x04"),
    "a cut JFIF block": segment(0xE0, b"JFIF\0"),
    "XMP that is no text": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<"),
}
TIFF_FIELDS = {
    "EXIF outside of the file": (34665, 4, 1, 0xFFFFFF),
    "a colour profile that is too long": (34675, 7, 2**31, 8),
    "XMP outside of the file": (700, 1, 2**30, 2**30),
    "several orientations": (274, 3, 5, 99999),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of metadata
def test_png(subtests):
    for name in PNG_CHUNKS:
        for place in [33, -12]:
            with subtests.test(place=place, name=name):
                data = encode("PNG")
                data = data[:place] + PNG_CHUNKS[name] + data[place:]
                np.testing.assert_array_equal(np.asarray(read_image(data)), np.asarray(NOISE))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_jpeg(subtests):
    for name in JPEG_SEGMENTS:
        with subtests.test(name=name):
            data = encode("JPEG")
            found = read_image(data[:2] + JPEG_SEGMENTS[name] + data[2:])
            np.testing.assert_array_equal(np.asarray(found), np.asarray(read_image(data)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tiff(tmp_path, subtests):
    for name in TIFF_FIELDS:
        with subtests.test(name=name):
            (tmp_path / "a.tif").write_bytes(tiff_with(TIFF_FIELDS[name]))
            np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.tif")), np.asarray(NOISE))


def test_webp():
    found = read_image(encode("WEBP", lossless=True, exif=b"Exif\0\0junk", xmp=b"\xff", icc_profile=b"bad"))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(NOISE))


def test_the_orientation_is_kept_where_something_else_is_broken():
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode("PNG", exif=exif)
    assert read_image(whole).size == (16, 20)
    assert read_image(whole[:33] + PNG_CHUNKS["a huge text"] + whole[33:]).size == (16, 20)
    jpeg = encode("JPEG", exif=exif)
    assert read_image(jpeg[:2] + JPEG_SEGMENTS["a cut JFIF block"] + jpeg[2:]).size == (16, 20)
    assert read_image(jpeg).info == {}  # nothing that would turn it once more


def test_an_orientation_that_is_none(subtests):
    for value in [0, 9, 300]:
        with subtests.test(value=value):
            exif = Image.Exif()
            exif[0x0112] = value
            image = NOISE.copy()
            image.info["exif"] = exif.tobytes()
            assert read_image(image).size == (20, 16)


def test_broken_pixels_stay_broken():
    data = encode("PNG")
    for broken in (data[: len(data) // 2], data[:60] + b"\0\0\0" + data[63:], data[:33] + data[33:][: len(data) // 3]):
        with pytest.raises(BadImageError, match="truncated or corrupt"):
            read_image(broken)
    jpeg = encode("JPEG")
    with pytest.raises(BadImageError, match="truncated or corrupt"):
        read_image(jpeg[:2] + JPEG_SEGMENTS["EXIF without a header"] + jpeg[2 : len(jpeg) // 2])


# ---- Modes ----


def test_every_mode_of_pillow_is_read(subtests):
    for mode in ["1", "L", "P", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBa", "La"]:
        with subtests.test(mode=mode):
            assert read_image(Image.new(mode, (3, 2))).mode == "RGB"


def test_modes_whose_range_is_unknown_are_refused(subtests):
    for mode in ["I", "F", "LAB"]:
        with (
            subtests.test(mode=mode),
            pytest.raises(BadImageError, match=f"pixels of mode '{mode}', whose range is unknown"),
        ):
            read_image(Image.new(mode, (3, 2)))


def test_greys_of_32_bits_do_not_become_black(tmp_path):
    grey = Image.linear_gradient("L").resize((16, 16)).convert("I")  # 0 to 255
    grey.save(tmp_path / "a.tif")
    for source in (grey, tmp_path / "a.tif"):
        with pytest.raises(BadImageError, match="mode 'I'"):
            read_image(source)


def test_greys_of_16_bits_are_scaled(subtests):
    for mode in ["I;16", "I;16L", "I;16B"]:
        with subtests.test(mode=mode):
            assert read_image(Image.new(mode, (2, 1), 40000)).getpixel((1, 0)) == (156, 156, 156)


def test_a_file_says_what_white_is(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 1000\n" + struct.pack(">HH", 500, 1000))
    assert [read_image(tmp_path / "a.pgm").getpixel((x, 0))[0] for x in range(2)] == [128, 255]


def test_premultiplied_transparency():
    plain = Image.new("LA", (1, 1), (100, 128))
    assert read_image(plain.convert("La")).getpixel((0, 0)) == read_image(plain).getpixel((0, 0)) == (177, 177, 177)


def test_a_transparent_grey_of_16_bits_is_white():
    grey = Image.fromarray(np.array([[0, 32768]], dtype=np.uint16))
    data = encode("PNG", grey)
    data = data[:33] + chunk(b"tRNS", struct.pack(">H", 0)) + data[33:]
    assert [read_image(data).getpixel((x, 0))[0] for x in range(2)] == [255, 128]

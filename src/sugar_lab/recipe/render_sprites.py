"""Render the sprite sheet from the Noto Color Emoji font (Debian package fonts-noto-color-emoji, OFL 1.1).

    python -m sugar_lab.recipe.render_sprites --font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

Needed only to change the set of concepts: the sheet is part of the package.
"""

import argparse
import unicodedata

from PIL import Image, ImageDraw, ImageFont

from sugar_hf.picturebook.glyphs import CONCEPTS, SHEET_COLUMNS, SPRITE_PIXELS, SPRITE_SHEET, UNICODE_NAMES

FONT_PIXELS = 109  # the one bitmap size the font has
CANVAS = 136


def draw_glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """One glyph, cropped to its ink, centred on a square and scaled to `SPRITE_PIXELS`."""
    canvas = Image.new("RGBA", (CANVAS * 2, CANVAS * 2))
    ImageDraw.Draw(canvas).text((CANVAS // 2, CANVAS // 2), character, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font draws nothing for {unicodedata.name(character)}")
    glyph = canvas.crop(box)
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square.resize((SPRITE_PIXELS, SPRITE_PIXELS), Image.Resampling.LANCZOS)


def main() -> None:
    """Draw the sheet from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--font", default="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    font = ImageFont.truetype(parser.parse_args().font, FONT_PIXELS)
    rows = -(-len(CONCEPTS) // SHEET_COLUMNS)
    sheet = Image.new("RGBA", (SHEET_COLUMNS * SPRITE_PIXELS, rows * SPRITE_PIXELS))
    for index, name in enumerate(CONCEPTS):
        character = unicodedata.lookup(UNICODE_NAMES.get(name, name.upper()))
        corner = (index % SHEET_COLUMNS * SPRITE_PIXELS, index // SHEET_COLUMNS * SPRITE_PIXELS)
        sheet.paste(draw_glyph(font, character), corner)
    sheet.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(SPRITE_SHEET, optimize=True)
    print(f"{SPRITE_SHEET}: {len(CONCEPTS)} concepts, {SPRITE_SHEET.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()

"""Signs: plates with two characters, for questions that want something read."""

import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: No character that looks like another one at this size.
CHARACTERS = "ACEFHKLMNPRTUXY3479"
SIGN = "sign"
SIGN_PIXELS = 30
LENGTH = 2


def draw_text(rng: random.Random) -> str:
    """Draw what a sign says."""
    return "".join(rng.choice(CHARACTERS) for _ in range(LENGTH))


@lru_cache(maxsize=1024)
def plate(text: str) -> np.ndarray:
    """A sign as float32 RGBA of shape (30, 30, 4), colours in 0..255 and alpha in 0..1.

    Raises:
        ValueError: if the text is not made of two of `CHARACTERS`.
    """
    if len(text) != LENGTH or not set(text) <= set(CHARACTERS):
        raise ValueError(f"a sign says {LENGTH} of {CHARACTERS}, not {text!r}")
    image = Image.new("RGBA", (SIGN_PIXELS, SIGN_PIXELS))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 4, SIGN_PIXELS - 1, SIGN_PIXELS - 5), 3, fill="#fdf6d8", outline="#40351a", width=1)
    font = ImageFont.load_default(size=17)  # the one that comes with Pillow
    for character, centre in zip(text, (8, 22), strict=True):
        draw.text((centre, SIGN_PIXELS // 2), character, font=font, fill="#201808", anchor="mm")
    pixels = np.asarray(image).astype(np.float32)
    pixels[..., 3] /= 255.0
    return pixels

"""The concepts of the picturebook: everyday things, each drawn as one glyph of the Noto Color Emoji font.

The glyphs are rendered once to a sprite sheet (`python -m sugar_lab.recipe.render_sprites`), so that nothing here
needs the font. Names are the Unicode names of the characters, in lower case.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

ASSETS = Path(__file__).parent / "assets"
SPRITE_SHEET = ASSETS / "sprites.png"
SPRITE_PIXELS = 64
SHEET_COLUMNS = 20

GROUPS = {
    "animals": """
        ant badger bat beaver beetle bird bison blowfish boar butterfly cat chicken chipmunk cow crab cricket
        crocodile deer dodo dog dolphin dragon duck eagle elephant fish flamingo fly goat gorilla hedgehog
        hippopotamus honeybee horse kangaroo koala leopard lizard llama lobster mammoth monkey mosquito mouse
        octopus orangutan otter owl ox parrot peacock penguin pig poodle rabbit raccoon rat rhinoceros rooster
        sauropod scorpion seal shark sheep shrimp skunk sloth snail snake spider squid swan tiger turkey turtle
        whale worm
    """,
    "food": """
        aubergine avocado bacon bagel banana blueberries bread broccoli burrito butter candy carrot cherries
        chestnut coconut cookie croissant cucumber cupcake custard doughnut dumpling egg falafel fondue garlic
        grapes hamburger kiwifruit lemon lollipop mango melon mushroom olive onion oyster pancakes peach peanuts
        pear pie pineapple popcorn potato pretzel sandwich shortcake spaghetti strawberry sushi taco tamale
        tangerine tomato waffle watermelon teapot
    """,
    "nature": """
        blossom bouquet cactus cloud comet coral cyclone desert feather fire herb hibiscus lotus mountain
        rainbow rock rose seedling shamrock snowflake snowman sunflower sunrise tulip volcano wood
    """,
    "travel": """
        airplane ambulance anchor automobile bicycle bus canoe church factory ferry fountain helicopter hospital
        hotel hut minibus monorail rocket sailboat satellite scooter ship skateboard sled speedboat stadium taxi
        tent tractor train tram trolleybus wheel parachute
    """,
    "things": """
        abacus accordion amphora axe balloon banjo baseball basket bathtub battery bed bell bikini bomb bone
        books boomerang brain brick briefcase broom bucket calendar camera candle chair clipboard coat coffin
        coin compass crown door dress envelope eyeglasses gear ghost gloves goggles guitar hammer handbag
        headphone jar jeans joystick key kimono kite knot label ladder lipstick lock luggage magnet memo
        microphone microscope mirror necktie newspaper notebook package paperclip pencil pill plunger postbox
        printer purse pushpin radio razor receipt ribbon ring robot saxophone scales scarf screwdriver scroll
        shield shorts skull socks spoon stethoscope syringe telescope television thermometer ticket toilet
        toolbox tooth toothbrush trophy trumpet umbrella violin volleyball wrench
    """,
}

UNICODE_NAMES = {"robot": "ROBOT FACE"}  # the one word above that is no whole Unicode name

CONCEPTS: tuple[str, ...] = tuple(sorted(name for names in GROUPS.values() for name in names.split()))


@lru_cache(maxsize=1)
def sprite_sheet() -> np.ndarray:
    """All sprites, uint8 RGBA of shape (concepts, 64, 64, 4), in the order of `CONCEPTS`."""
    with Image.open(SPRITE_SHEET) as sheet:
        pixels = np.asarray(sheet.convert("RGBA"))
    rows, columns = pixels.shape[0] // SPRITE_PIXELS, SHEET_COLUMNS
    tiles = pixels.reshape(rows, SPRITE_PIXELS, columns, SPRITE_PIXELS, 4).swapaxes(1, 2)
    return tiles.reshape(-1, SPRITE_PIXELS, SPRITE_PIXELS, 4)[: len(CONCEPTS)]


@lru_cache(maxsize=8)
def sprites(pixels: int) -> np.ndarray:
    """All sprites resized, float32 RGBA in [0, 255] (alpha in [0, 1]), of shape (concepts, pixels, pixels, 4)."""
    size = (pixels, pixels)
    resized = np.stack(
        [np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.LANCZOS)) for tile in sprite_sheet()]
    )
    resized = resized.astype(np.float32)
    resized[..., 3] /= 255.0
    return resized


def sprite(name: str) -> Image.Image:
    """The 64 pixel RGBA picture of one concept.

    Raises:
        KeyError: if there is no such concept.
    """
    if name not in CONCEPTS:
        raise KeyError(f"no concept named {name!r}; sugar_hf.picturebook.CONCEPTS lists the {len(CONCEPTS)} there are")
    return Image.fromarray(sprite_sheet()[CONCEPTS.index(name)])

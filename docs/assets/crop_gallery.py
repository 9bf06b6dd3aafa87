"""Make gallery.png of one section of the lab's gallery: `python docs/assets/crop_gallery.py`. Needs Chromium."""

import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

HERE = Path(__file__).parent
SECTION = "Retrieval and dialog"


def main() -> None:
    """Write the page with this section alone, photograph it, and cut the margins off."""
    page = (HERE.parent / "lab" / "gallery.html").read_text(encoding="utf-8")
    head = page[: page.index("<body")]
    start = page.index(f"<h2>{SECTION}")
    section = page[start : page.index("<h2>", start + 1)]
    with tempfile.TemporaryDirectory() as name:
        alone, shot = Path(name, "page.html"), Path(name, "page.png")
        alone.write_text(f'{head}<body style="background: white">{section}</body></html>', encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1100,900"]
        subprocess.run(["chromium", *options, f"--screenshot={shot}", alone.as_uri()], check=True, capture_output=True)
        picture = Image.open(shot).convert("RGB")
    content = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    picture.crop((content[0] - 12, content[1] - 12, content[2] + 12, content[3] + 12)).quantize(128).save(
        HERE / "gallery.png", optimize=True
    )


if __name__ == "__main__":
    main()

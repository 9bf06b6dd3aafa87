"""Questions with exact short answers, which stand in a section of the test pages and are no general knowledge."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from .manuals import Manual, slices_of, text_of


@dataclass(frozen=True)
class ShortQuestion:
    """A question.

    Attributes:
        section: The id of the section that holds the answer; the id of the item is `section@ask`.
        question: What is asked.
        answers: What counts as right, the way that the manual says it first.
        elsewhere: Whether another section answers it, too.
    """

    section: str
    question: str
    answers: tuple[str, ...]
    elsewhere: bool = False

    @property
    def item(self) -> str:
        """Its id, the same in all runs."""
        return f"{self.section}@ask"


def normalised(text: str) -> str:
    """A text as answers are compared: no case, no quotes, no full stop at the end of a word, single spaces.

    >>> normalised("It is “Untitled.png”.")
    'it is untitled.png'
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("°", " degrees ")
    text = re.sub(r"[()\[\]]", "", text)
    text = re.sub(r"[\"'`“”‘’«»*?!,:;]", " ", text)
    text = re.sub(r"\.(?=\s|$)", " ", text)
    return " ".join(re.sub(r"\s+\+\s*", "+", text).split())


def is_right(question: ShortQuestion, said: str) -> bool:
    """Whether what was said holds one of the answers, as whole words.

    >>> is_right(QUESTIONS[0], "GIMP comes with 56 brushes.")
    True
    >>> is_right(QUESTIONS[0], "There are 156.")
    False
    """
    text = f" {normalised(said)} "
    return any(f" {normalised(answer)} " in text for answer in question.answers)


def is_exact(question: ShortQuestion, said: str) -> bool:
    """Whether what was said is one of the answers, and nothing else."""
    return normalised(said) in {normalised(answer) for answer in question.answers}


def check_questions(questions: Iterable[ShortQuestion], manuals: Iterable[Manual]) -> None:
    """See that each question's section is there, is one of the test pages, and holds the answer.

    Raises:
        ValueError: It is not; another version of the manual may say it differently.
    """
    sections = {section.id: section for manual in manuals for section in manual.split("test")}
    for question in questions:
        if question.section not in sections:
            raise ValueError(f"{question.section!r} is no section of the test pages: the manual has changed.")
        if not is_right(question, text_of(slices_of(sections[question.section]))):
            raise ValueError(f"{question.section!r} does not hold {question.answers[0]!r}: the manual has changed.")


def _of(manual: str, *rows: tuple[str, str, str | tuple[str, ...], bool]) -> tuple[ShortQuestion, ...]:
    return tuple(
        ShortQuestion(f"{manual}/{section}", question, (answers,) if isinstance(answers, str) else answers, elsewhere)
        for section, question, answers, elsewhere in rows
    )


QUESTIONS = _of(
    "gimp",
    ("gimp-brush-dialog.html#gimp-brush-dialog", "How many brushes does GIMP come with?", "56", False),
    (
        "gimp-edit-redo.html#gimp-edit-redo",
        "Which keyboard shortcut executes Strong Redo in GIMP?",
        ("Ctrl+Shift+Y", "Shift+Ctrl+Y"),
        False,
    ),
    (
        "gimp-export-dialog.html#idm22020",
        "What is the default file name in GIMP's Export Image dialog?",
        ("Untitled.png", "Untitled"),
        False,
    ),
    (
        "gimp-filter-antialias.html#idm36550",
        "Which edge-extrapolation algorithm does GIMP's Antialias filter use?",
        "Scale3X",
        False,
    ),
    (
        "gimp-filter-engrave.html#idm37488",
        "Up to which value can the height of the engraving lines in GIMP's Engrave filter be set?",
        "16",
        False,
    ),
    (
        "gimp-filter-bump-map.html#idm45233",
        "Which radius of Gaussian blur, in pixels, is used when GIMP's manual embosses an image with a text?",
        "1.5",
        False,
    ),
    (
        "gimp-filter-fractal-trace.html#idm45540",
        "Besides Mandelbrot, which fractal type does GIMP's Fractal Trace filter offer?",
        "Julia",
        False,
    ),
    (
        "gimp-filter-deinterlace.html#idm36597",
        "How many images of half vertical resolution do cameras record per second, says GIMP's page on Deinterlace?",
        "50",
        False,
    ),
    (
        "gimp-filter-oilify.html#idm42718",
        "What is the default number of intensities of GIMP's Oilify filter?",
        "128",
        False,
    ),
    (
        "gimp-filter-motion-blur-linear.html#idm36339",
        "By steps of how many degrees does the Ctrl key change the direction of GIMP's Linear Motion Blur?",
        ("15", "15°"),
        False,
    ),
    (
        "gimp-filter-reinhard-2005.html#idm33603",
        "Who wrote the paper on the tone mapping of GIMP's Reinhard 2005 filter together with Reinhard?",
        ("Devlin", "Devlin, K.", "K. Devlin"),
        False,
    ),
    (
        "gimp-filter-supernova.html#idm39276",
        "According to which function of the distance r does the light of GIMP's Supernova filter decrease?",
        "1/r",
        False,
    ),
    (
        "gimp-gradient-dialog.html#gimp-gradient-dialog-activate",
        "Which keyboard shortcut opens GIMP's Gradients dialog?",
        "Ctrl+G",
        True,
    ),
    (
        "gimp-image-crop.html#crop-image-to-content",
        "What was GIMP's command Crop to Content called before version 2.10?",
        "Autocrop image",
        False,
    ),
    (
        "gimp-image-scale.html#gimp-image-scale",
        "What is the default of the Maximum new image size in GIMP's preferences?",
        ("128 Mb", "128"),
        False,
    ),
    (
        "gimp-introduction-history-1-0.html#gimp-introduction-history-1-0",
        "On which day was GIMP version 1.0 released?",
        ("June 5, 1998", "5 June 1998", "June 5th, 1998"),
        False,
    ),
    (
        "gimp-introduction-history-2-8.html#gimp-introduction-history-2-8-part-4",
        "Of which programme's students in 2010 is GIMP's Cage Transform a result?",
        "Google Summer of Code",
        False,
    ),
    (
        "gimp-introduction-history-2-8.html#gimp-introduction-history-2-8-part-6",
        "To what has GIMP's license been changed in version 2.8?",
        ("(L)GPLv3+", "LGPLv3+", "GPLv3+", "GPLv3", "LGPLv3", "GPL v3"),
        False,
    ),
    (
        "gimp-scripting.html#idm9483",
        "Which command installs a plugin for GIMP that is a single .c file?",
        ("gimptool-2.0 --install", "gimptool-2.0", "gimptool"),
        False,
    ),
    (
        "gimp-tools-selection.html#gimp-tool-select-options-part-2",
        "What is the default radius, in pixels, of Feather Edges in GIMP's selection tools?",
        ("10", "10 pixels"),
        False,
    ),
    (
        "gimp-tool-transform-3d.html#idm15676",
        "Which keyboard shortcut activates GIMP's 3D Transform tool?",
        "Shift+W",
        True,
    ),
    (
        "gimp-tool-mypaint-brush.html#gimp-tool-mypaint-brush",
        "In which year was Libmypaint modified so that GIMP can use its brushes?",
        "2016",
        False,
    ),
    (
        "gimp-tool-rect-select.html#tool-rect-select-manip-part-3",
        "By how many pixels do the moving keys with Shift move a rectangle selection in GIMP?",
        ("25", "25 pixels", "25 pixel"),
        False,
    ),
    (
        "gimp-tool-scale.html#idm15494",
        "Since which version of GIMP does the Scale tool have the Readjust button?",
        ("2.10.10", "GIMP 2.10.10"),
        True,
    ),
    (
        "gimp-using-image-browser.html#gimp-using-image-browser",
        "Which image browser for Linux does GIMP's manual name, from which images can be dragged to the toolbox?",
        "gThumb",
        False,
    ),
    (
        "gimp-tutorial-quickie-jpeg.html#gimp-tutorial-quickie-jpeg-part-3",
        "How many KiloBytes has the picture at quality 40 in GIMP's tutorial on compressing images?",
        "9.3",
        False,
    ),
    (
        "gimp-using-script-fu-tutorial-extending-text-box.html#idm10280",
        "Which function begins a group of actions that a Script-Fu of GIMP undoes together?",
        ("gimp-undo-push-group-start", "gimp-image-undo-group-start"),
        False,
    ),
    (
        "gimp-tool-smudge.html#gimp-tool-smudge",
        "Of which option of GIMP's Smudge tool does it depend whether it paints with the foreground color?",
        "Flow",
        True,
    ),
    (
        "gimp-filter-color-exchange.html#idm33078",
        "Which red threshold was used in the example of GIMP's Color Exchange filter?",
        "0.106",
        False,
    ),
    (
        "gimp-filter-panorama-projection.html#idm45827",
        "Who made the picture of the Parc de Belleville in GIMP's manual?",
        ("Alexandre Duret-Lutz", "Duret-Lutz"),
        False,
    ),
    (
        "gimp-concepts-gradients.html#gimp-concepts-gradients-part-2",
        "Which gradient does GIMP's manual show in four ways of using it?",
        "Tropical Colors",
        False,
    ),
    (
        "gimp-filter-displace.html#gimp-filter-displace-calculation-part-2",
        "Which displacement causes the black area in the closer look at GIMP's displacement example?",
        ("-4.12", "4.12"),
        False,
    ),
    (
        "gimp-display-filter-dialog.html#idm25892",
        "Of which eye disease does GIMP's Contrast display filter give an impression?",
        ("cataracts", "cataract"),
        True,
    ),
    (
        "gimp-display-filter-dialog.html#idm25912",
        "What does GIMP's Clip Warning filter call pixels that are not a number?",
        "bogus",
        False,
    ),
    (
        "gimp-filter-softglow.html#idm42944",
        "What is the effect called that the glow radius of GIMP's Softglow filter gives?",
        ("vaseline-on-the-lens", "vaseline on the lens"),
        True,
    ),
    (
        "filters-blur.html#filters-blur-introduction-part-2",
        "Which president's name has the effect that GIMP's Pixelize filter produces?",
        ("Abraham Lincoln", "Lincoln"),
        True,
    ),
    (
        "gimp-device-status-dialog.html#gimp-device-status-dialog",
        "What is the mouse named in GIMP's Device Status dialog?",
        "Core pointer",
        False,
    ),
    (
        "customize-splashscreen.html#customize-splashscreen",
        "What is the folder called that holds your own splash-screens for GIMP?",
        "splashes",
        False,
    ),
    (
        "gimp-filter-vignette.html#idm40276",
        "Which version of GIMP brought on-canvas controls to the Vignette filter?",
        ("2.10.20", "GIMP-2.10.20"),
        False,
    ),
    (
        "gimp-dialogs-structure.html#gimp-layer-dialog-using-part-7",
        "Before which version of GIMP was the button Merge layers permanently for anchoring?",
        ("2.10.18", "GIMP-2.10.18"),
        False,
    ),
)

MORE_QUESTIONS = _of(
    "grass",
    ("r.composite.html#notes", "What is the default number of intensity levels of r.composite?", "32", False),
    ("d.erase.html#description", "Which color does d.erase use by default?", "black", False),
    ("r3.stats.html#description", "What is the default number of subranges of r3.stats?", "20", False),
    ("db.connect.html#description", "What is the default database backend in GRASS GIS 7?", "SQLite", True),
    (
        "r.null.html#null-data-compression",
        "Which environment variable turns the compression of NULL files on in GRASS?",
        ("GRASS_COMPRESS_NULLS", "GRASS_COMPRESS_NULLS=1"),
        True,
    ),
    ("r.in.xyz.html#memory-use", "What is the default map type of r.in.xyz?", "FCELL", False),
    (
        "g.gui.datacatalog.html#notes",
        "Which button of GRASS's Data Catalog lets you change data outside of the current mapset?",
        ("Unlock", "Unlock button"),
        False,
    ),
    (
        "r3.support.html#notes",
        "What is the maximum line length of the history of r3.support, in characters?",
        ("78", "78 characters"),
        False,
    ),
    (
        "r.out.mpeg.html#known-issues",
        "To how many pixels must MPEG images of r.out.mpeg be aligned?",
        ("16", "16-pixel", "16 pixels"),
        False,
    ),
    ("i.ifft.html#description", "Whose algorithm of 1998 is i.ifft based on?", ("Frigo", "Frigo et al"), False),
    (
        "i.pca.html#notes",
        "In which country lies the burned region that Richards (1986) analysed, says i.pca?",
        "Australia",
        False,
    ),
    (
        "r.ros.html#notes",
        "In which units does r.ros give the base and maximum rate of spread?",
        ("cm/minute", "cm/min", "centimeters per minute"),
        True,
    ),
    (
        "r.watershed.html#notes-part-3",
        "Of which type is the map that r.watershed writes for slope length and steepness?",
        "DCELL",
        False,
    ),
    (
        "v.in.ogr.html#defining-the-key-column",
        "In which column does v.in.ogr store category numbers if no key is given?",
        "cat",
        True,
    ),
    (
        "t.rast.accumulate.html#example",
        "Of which animal are reproduction cycles detected in the example of t.rast.accumulate?",
        ("grass hopper", "grasshopper", "grass hoppers", "grasshoppers"),
        False,
    ),
    (
        "v.overlay.html#polygons-overlaid-with-polygons-part-2",
        "With which snapping threshold, in meters, is the union of urban areas and Census 2000 areas clean?",
        ("0.1", "0.1 m"),
        False,
    ),
)

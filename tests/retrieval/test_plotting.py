"""Pictures of alignments: what is in them, that nothing reaches over the edge, and what is refused."""

import builtins
import math
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from builders import picture
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from sugar_hf.retrieval import Alignment, Explanation, plot_alignment
from sugar_hf.retrieval.plotting import BLUE

LONG = "An extraordinarily long text about $x_1 and $ on a mat, which goes on and on until nobody knows how it began. "


def explanation(query, document, with_teacher=False):
    m, n = len(query), len(document)
    steps = max(m, n)
    path = tuple((i * m // steps, i * n // steps) for i in range(steps))
    visits = np.zeros((m, n), np.float32)
    for pair in path:
        visits[pair] = 1
    similarity = np.linspace(-0.001, 1, m * n, dtype=np.float32).reshape(m, n)
    alignment = Alignment(similarity, visits, path, math.sqrt(0.1))
    teacher = (alignment, 0.25, "calibrated") if with_teacher else ()
    return Explanation(tuple(query), tuple(document), 0.5, "slice", alignment, *teacher)


CASES = {
    "1 against 1": ([LONG * 3], [LONG * 3]),
    "1 against 10": ([LONG], ["a text", picture(0)] * 5),
    "10 against 10": ([picture(1), LONG] * 5, [LONG, picture(2)] * 5),
    "12 against 3": ([LONG, picture(0)] * 6, [picture(0), "one", LONG]),
    "images only": ([picture(0).resize((300, 20)), picture(1)], [picture(2).resize((20, 300)), picture(3)]),
    "one word": (["x" * 500], ["y" * 500]),
    "scripts": (["猫坐在垫子上。" * 9, "Кошка", "नमस्ते 🐱", "a\x1b[31mb\x00"], ["قطة", "ไทย\ufffe"]),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_reaches_over_the_edge_or_into_another_slice(case, tmp_path):
    path = tmp_path / "alignment.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # missing glyphs, layouts that do not fit
        figure = plot_alignment(explanation(*CASES[case]), path)
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels[0].min(), pixels[-1].min(), pixels[:, 0].min(), pixels[:, -1].min()) == 255
    axes = figure.axes[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    grid = axes.get_window_extent(renderer)
    inside = figure.bbox.padded(-1)
    labels = [text for text in axes.texts if text.get_text() and not grid.contains(*_middle(text, renderer))]
    boxes = [item.get_window_extent(renderer) for item in (*labels, *axes.artists, *figure.texts)]
    assert len(boxes) == sum(map(len, CASES[case])) + 1  # the heading
    for box in boxes:
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
        assert inside.y0 <= box.y0 <= box.y1 <= inside.y1
    for number, box in enumerate(boxes):
        assert not any(box.padded(-1).overlaps(other) for other in boxes[:number])


def _middle(text, renderer):
    box = text.get_window_extent(renderer)
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def test_the_path_its_arrows_and_the_dashed_lines():
    found = explanation(["a", "b", "c"], ["d", "e", "f"])
    axes = plot_alignment(found).axes[0]
    assert len(axes.lines) == 6  # each slice is connected with what it matches
    assert {(line.get_color(), line.is_dashed()) for line in axes.lines} == {(BLUE, True)}
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in axes.lines]
    assert set(ends) == {(0, 0), (1, 1), (2, 2)}
    arrows = [(text.xyann, text.xy) for text in axes.texts if not text.get_text()]
    assert arrows == [((0, 0), (1, 1)), ((1, 1), (2, 2))]
    values = [text.get_text() for text in axes.texts if text.get_text() in ("0.00", "1.00")]
    assert values == ["0.00", "1.00"]  # not "-0.00"


def test_headings_and_whose_alignment():
    found = explanation(["a"], ["b"], with_teacher=True)
    assert _heading(plot_alignment(found)) == "score 0.50; alignment by the model's slice embeddings"
    assert _heading(plot_alignment(found, which="teacher")).startswith("label 0.25; alignment by the teachers'")
    assert _heading(plot_alignment(found, title="costs $5 and $6")) == "costs $5 and $6"


def _heading(figure):
    return " ".join(figure.texts[0].get_text().split())


def test_svg_is_the_same_each_time(tmp_path):
    found = explanation(["A & <b>", picture(0)], ["c"])
    for name in ("a.svg", "b.SVG"):
        plot_alignment(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.SVG").read_bytes()
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_what_is_refused(tmp_path):
    found = explanation(["a"], ["b"])
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        plot_alignment(found, tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="give 'model' or 'teacher'"):
        plot_alignment(found, which="both")
    with pytest.raises(ValueError, match="knows no teachers"):
        plot_alignment(found, which="teacher")
    with pytest.raises(ValueError, match="65 against 1 slices: at most 64"):
        plot_alignment(explanation(["a"] * 65, ["b"]))


def test_without_matplotlib(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "sugar-hf\[demo\]"'):
        plot_alignment(explanation(["a"], ["b"]))

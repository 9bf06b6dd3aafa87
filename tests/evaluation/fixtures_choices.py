"""Tiny data sets of the tasks with options, yes/no answers and judges, in the official formats and as on the Hub."""

import base64
import csv
import io
import json
from pathlib import Path

from benchmark_tools import scene, write_image, write_json, write_rows

# ---- ScienceQA ----


def _problem(question, choices, answer, hint="", image="image.png", subject="natural science", grade="grade4", **more):
    row = {"question": question, "choices": choices, "answer": answer, "hint": hint, "image": image}
    row |= {"task": "closed choice", "grade": grade, "subject": subject, "topic": "physics", "category": "Colours"}
    return {**row, "skill": "Look", "lecture": "", "solution": "One sees it.", "split": "test", **more}


PROBLEMS = {
    "4": _problem("Which is brighter?", ["day", "night"], 0),
    "7": _problem("What is two plus two?", ["3", "4"], 1, image=None),
    "9": _problem("What is drawn?", ["a map", "a picture", "a word"], 1, hint="It has colours.", grade="grade2"),
    "12": _problem("Who is it?", ["nobody", "somebody"], 0, subject="social science"),
    "15": _problem("Is it art?", ["no", "yes"], 1, subject="language science", split="val"),
}


def scienceqa_raw(folder):
    """`problems.json`, `pid_splits.json` and `images`; problem 7 has no image."""
    folder = Path(folder)
    write_json(folder / "problems.json", PROBLEMS)
    splits = {"train": [], "val": ["15"], "test": ["4", "7", "9", "12"], "minitest": ["9"]}
    write_json(folder / "pid_splits.json", splits)
    for number, (id, row) in enumerate(PROBLEMS.items()):
        if row["image"]:
            write_image(folder / "images" / row["split"] / id / "image.png", scene(number)[0])


def scienceqa_hub(folder):
    """Rows with an image, as `lmms-lab/ScienceQA` has them in the configuration ScienceQA-IMG."""
    for split, found in (("test", "test"), ("validation", "val")):
        rows = [
            {**{key: value for key, value in row.items() if key != "split"}, "image": scene(number)[0]}
            for number, row in enumerate(PROBLEMS.values())
            if row["image"] and row["split"] == found
        ]
        write_rows(folder, rows, "ScienceQA-IMG", split)


# ---- MMBench ----

_MMB = [  # question, hint, options, answer
    ("What is shown?", "It is drawn.", ["a scene", "a text", "a map", "a chart"], "A", "image_scene", "coarse"),
    ("How many pictures are there?", None, ["1", "2"], "A", "counting", "fine"),
    ("Which one is it?", None, ["a train", "a boat", "a tree"], "C", "counting", "fine"),
]


def _mmbench_rows():
    """Each question with all rotations of its options: the base rows first, as in the official table."""
    rows = []
    for turn in range(4):
        for number, (question, hint, texts, answer, category, group) in enumerate(_MMB):
            if turn >= len(texts):
                continue
            turned = texts[turn:] + texts[:turn]
            letter = "ABCD"[turned.index(texts["ABCD".index(answer)])]
            row = {"index": number + 10 + turn * 10**6, "question": question, "hint": hint, "answer": letter}
            row |= dict(zip("ABCD", turned + [None] * 4, strict=False))
            row |= {"category": category, "l2-category": group, "source": "drawn", "comment": None, "split": "dev"}
            rows.append({**row, "number": number})
    return rows


def _base64(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def mmbench_raw(folder):
    """`mmbench_dev_20230712.tsv` and the test table without answers; later rows name the image of the base row."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("dev", "test"):
        names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source"]
        names += ["l2-category", "comment", "split"]
        names.remove("answer") if split == "test" else None
        with (folder / f"mmbench_{split}_20230712.tsv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t")
            table.writerow(names)
            for row in _mmbench_rows():
                number = row["number"]
                image = _base64(scene(number)[0]) if row["index"] < 10**6 else row["index"] % 10**6
                values = {**row, "image": image, "split": split}
                table.writerow(["" if values[name] is None else values[name] for name in names])


def mmbench_hub(folder):
    """Rows as `lmms-lab/MMBench` has them in the configuration en; empty cells are `nan`, hidden answers too."""
    for split in ("dev", "test"):
        rows = []
        for row in _mmbench_rows():
            row = {key: "nan" if value is None else value for key, value in row.items()}
            row |= {"L2-category": row.pop("l2-category"), "image": scene(row.pop("number"))[0], "split": split}
            rows.append(row | ({"answer": "nan"} if split == "test" else {}))
        write_rows(folder, rows, "en", split)


# ---- POPE ----

POPE = {
    "adversarial": [("Is there a train in the image?", "yes"), ("Is there a cloud in the image?", "no")],
    "popular": [("Is there a train in the image?", "yes"), ("Is there a person in the image?", "no")],
    "random": [("Is there a train in the image?", "yes"), ("Is there a fork in the image?", "no")],
}


def pope_raw(folder):
    """`coco_pope_{split}.json`, which are JSON lines, and `val2014`."""
    folder = Path(folder)
    for split, questions in POPE.items():
        lines = [
            {"question_id": number, "image": f"COCO_val2014_{number:012d}.jpg", "text": text, "label": label}
            for number, (text, label) in enumerate(questions, start=1)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        written = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"coco_pope_{split}.json").write_text(written, encoding="utf-8")
    for number in (1, 2):
        write_image(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg", scene(number)[0])


def pope_hub(folder):
    """Rows as `lmms-lab/POPE` has them in its default configuration."""
    rows = []
    for split, questions in POPE.items():
        for number, (text, label) in enumerate(questions, start=1):
            row = {"id": str(len(rows)), "question_id": str(number), "question": text, "answer": label}
            row |= {"image_source": f"COCO_val2014_{number:012d}", "image": scene(number)[0], "category": split}
            rows.append(row)
    write_rows(folder, rows)


# ---- MME ----

_MME = {
    "existence": ("0001.jpg", "Is there a train in this image?", "Is there a spoon in this image?"),
    "count": ("0002.jpg", "Is there one picture?", "Are there nine pictures?"),
    "posters": ("tt01.png", "Is this a drawing?", "Is this a photograph?"),
    "code_reasoning": ("0003.png", "Is it code?", "Is it prose?"),
}
_ASKED = " Please answer yes or no."


def mme_raw(folder):
    """The official release: `posters` with images and questions in folders of their own, others with both in one."""
    for number, (category, (image, right, wrong)) in enumerate(_MME.items()):
        place = Path(folder) / "MME_Benchmark_release_version" / category
        images, texts = place, place
        if category == "posters":
            images, texts = place / "images", place / "questions_answers_YN"
        write_image(images / image, scene(number)[0])
        texts.mkdir(exist_ok=True)
        lines = [f"{right}{_ASKED}\tYes", f"{wrong}{_ASKED}\tNo"]
        (texts / f"{Path(image).stem}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def mme_hub(folder):
    """Rows as `lmms-lab/MME` has them."""
    rows = [
        {
            "question_id": f"{category}/{image}",
            "image": scene(number)[0],
            "question": question + _ASKED,
            "answer": answer,
            "category": category,
        }
        for number, (category, (image, right, wrong)) in enumerate(_MME.items())
        for question, answer in ((right, "Yes"), (wrong, "No"))
    ]
    write_rows(folder, rows)


# ---- LLaVA-Bench ----

LLAVA_W = [  # question, category, GPT-4's answer
    ("What is the name of this place?", "conv", "It has no name."),
    ("Describe the picture in detail.", "detail", "A drawn scene with several things."),
    ("Why would one draw this?", "complex", "To try a model without a download."),
]


def _write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def llava_w_raw(folder):
    """`questions.jsonl`, `context.jsonl`, `answers_gpt4.jsonl` and `images`."""
    folder = Path(folder)
    numbers = range(len(LLAVA_W))
    questions = [
        {"question_id": number, "image": f"{number + 1:03d}.jpg", "category": category, "text": text}
        for number, (text, category, _) in enumerate(LLAVA_W)
    ]
    _write_lines(folder / "questions.jsonl", questions)
    context = [{"id": f"{n + 1:03d}", "image": f"{n + 1:03d}.jpg", "caption": scene(n)[1]} for n in numbers]
    _write_lines(folder / "context.jsonl", context)
    answers = [{"question_id": n, "text": LLAVA_W[n][2], "model_id": "gpt-4"} for n in numbers]
    _write_lines(folder / "answers_gpt4.jsonl", answers)
    for number in numbers:
        write_image(folder / "images" / f"{number + 1:03d}.jpg", scene(number)[0])


def llava_w_hub(folder):
    """Rows as `lmms-lab/llava-bench-in-the-wild` has them."""
    rows = []
    for number, (text, category, answer) in enumerate(LLAVA_W):
        image, caption = scene(number)
        row = {"question_id": number, "question": text, "image": image, "caption": caption, "gpt_answer": answer}
        rows.append({**row, "category": category, "image_id": f"{number + 1:03d}.jpg"})
    write_rows(folder, rows, split="train")


# ---- MM-Vet ----

MM_VET = {
    "v1_0": ("What is x in the equation?", "-1<AND>-5", ["ocr", "math"]),
    "v1_1": ("Which animal is shown?", "dog<OR>hound", ["rec"]),
    "v1_2": ("What does it say, and what does it mean?", "nothing", ["ocr", "rec", "know"]),
}


def mm_vet_raw(folder):
    """`mm-vet.json` and `images`."""
    folder = Path(folder)
    rows = {
        id: {"imagename": f"{id}.png", "question": question, "answer": answer, "capability": capability}
        for id, (question, answer, capability) in MM_VET.items()
    }
    write_json(folder / "mm-vet.json", rows)
    for number, id in enumerate(rows):
        write_image(folder / "images" / f"{id}.png", scene(number)[0])


def mm_vet_hub(folder):
    """Rows as `lmms-lab/MMVet` has them."""
    rows = []
    for number, (id, (question, answer, capability)) in enumerate(MM_VET.items()):
        row = {"question_id": id, "question": question, "image": scene(number)[0], "image_source": "drawn"}
        rows.append({**row, "answer": answer, "capability": ",".join(capability)})
    write_rows(folder, rows)


RAW = {
    "scienceqa": scienceqa_raw,
    "mmbench": mmbench_raw,
    "pope": pope_raw,
    "mme": mme_raw,
    "llava-w": llava_w_raw,
    "mm-vet": mm_vet_raw,
}
HUB = {
    "scienceqa": scienceqa_hub,
    "mmbench": mmbench_hub,
    "pope": pope_hub,
    "mme": mme_hub,
    "llava-w": llava_w_hub,
    "mm-vet": mm_vet_hub,
}

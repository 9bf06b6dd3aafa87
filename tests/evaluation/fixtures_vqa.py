"""VQAv2, GQA, VizWiz and TextVQA in their official files, and as on the Hub."""

from benchmark_tools import scene, write_image, write_json, write_rows

QUESTIONS = ["What colour is the background?", "Is there a cat?", "How many things are there?", "What is on the left?"]
ANSWERS = [
    ["blue"] * 10,
    ["yes"] * 7 + ["no"] * 3,
    ["2"] * 3 + ["two"] * 2 + ["a pair"] * 5,
    ["the cat"] * 2 + ["cat"] * 2 + ["dog"] * 6,
]
KINDS = ["other", "yes/no", "number", "other"]


def _annotated(answers):
    return [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i, answer in enumerate(answers)]


# ---- Official files ----


def raw_vqav2(folder):
    for part, images in (("val2014", "val2014"), ("test-dev2015", "test2015"), ("test2015", "test2015")):
        questions = [
            {"image_id": 42 + i // 2, "question": text, "question_id": 420 + i} for i, text in enumerate(QUESTIONS)
        ]
        write_json(folder / f"v2_OpenEnded_mscoco_{part}_questions.json", {"questions": questions})
        for i in range(2):
            write_image(folder / images / f"COCO_{images}_{42 + i:012d}.jpg", scene(i)[0])
    annotations = [
        {
            "question_type": "what",
            "multiple_choice_answer": answers[0],
            "answers": _annotated(answers),
            "image_id": 42 + i // 2,
            "answer_type": kind,
            "question_id": 420 + i,
        }
        for i, (answers, kind) in enumerate(zip(ANSWERS, KINDS, strict=True))
    ]
    write_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def _gqa():
    for i, text in enumerate(QUESTIONS):
        kind = "verify" if i == 1 else "query"
        yield {
            "id": f"20{i}",
            "imageId": f"n{i // 2}",
            "question": text,
            "answer": ANSWERS[i][0],
            "fullAnswer": f"It is {ANSWERS[i][0]}.",
            "isBalanced": True,
            "types": {"structural": kind, "semantic": "attr", "detailed": "colour"},
        }


def raw_gqa(folder):
    rows = {row.pop("id"): row for row in _gqa()}
    rows["999"] = {**rows["200"], "isBalanced": False}
    write_json(folder / "testdev_balanced_questions.json", rows)
    for i in range(2):
        write_image(folder / "images" / f"n{i}.jpg", scene(i)[0])


def raw_vizwiz(folder):
    rows = []
    for i, (text, answers) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        name = f"VizWiz_val_{i:08d}.jpg"
        kind = {"answer_type": KINDS[i], "answerable": 1}
        rows.append({"image": name, "question": text, "answers": _annotated(answers), **kind})
        write_image(folder / "val" / name, scene(i)[0])
        write_image(folder / "test" / name.replace("val", "test"), scene(i)[0])
    write_json(folder / "Annotations" / "val.json", rows)
    hidden = [{"image": row["image"].replace("val", "test"), "question": row["question"]} for row in rows]
    write_json(folder / "Annotations" / "test.json", hidden)


def raw_textvqa(folder):
    for part, images in (("val", "train_images"), ("test", "test_images")):
        rows = [
            {"question": text, "image_id": f"im{i}", "question_id": 34602 + i, "set_name": part}
            for i, text in enumerate(QUESTIONS)
        ]
        if part == "val":
            rows = [{**row, "answers": answers} for row, answers in zip(rows, ANSWERS, strict=True)]
        write_json(folder / f"TextVQA_0.5.1_{part}.json", {"data": rows})
        words = [{"image_id": f"im{i}", "ocr_tokens": ["stop", f"no {i}"][: i % 3]} for i in range(4)]
        write_json(folder / f"TextVQA_Rosetta_OCR_v0.2_{part}.json", {"data": words})
        for i in range(4):
            write_image(folder / images / f"im{i}.jpg", scene(i)[0])


# ---- Rows of the Hub ----


def hub_vqav2(folder):
    rows = []
    for i, (text, answers) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        row = {"question_type": "what", "multiple_choice_answer": answers[0], "answers": _annotated(answers)}
        row |= {"image_id": 42, "answer_type": KINDS[i], "question_id": 420 + i, "question": text}
        rows.append({**row, "image": scene(i // 2)[0]})
    features = write_rows(folder, rows, split="validation")
    hidden = {"answers": [], "answer_type": None, "multiple_choice_answer": None}
    write_rows(folder, [{**row, **hidden} for row in rows], split="testdev", features=features)


def hub_gqa(folder):
    rows = [{**row, "types": dict(row["types"])} for row in _gqa()]
    write_rows(folder, rows, "testdev_balanced_instructions", "testdev")
    images = [{"id": f"n{i}", "image": scene(i)[0]} for i in range(2)]
    write_rows(folder, images, "testdev_balanced_images", "testdev")


def hub_vizwiz(folder):
    rows = [
        {"question_id": f"VizWiz_val_{i:08d}.jpg", "question": text, "answers": ANSWERS[i], "category": KINDS[i]}
        for i, text in enumerate(QUESTIONS)
    ]
    write_rows(folder, [{**row, "image": scene(i)[0]} for i, row in enumerate(rows)], split="val")


def hub_textvqa(folder):
    rows = [
        {
            "image_id": f"im{i}",
            "question_id": 34602 + i,
            "question": text,
            "answers": ANSWERS[i],
            "ocr_tokens": ["stop", f"no {i}"][: i % 3],
            "set_name": "val",
            "image": scene(i)[0],
        }
        for i, text in enumerate(QUESTIONS)
    ]
    write_rows(folder, rows, split="validation")


RAW = {"vqav2": raw_vqav2, "gqa": raw_gqa, "vizwiz": raw_vizwiz, "textvqa": raw_textvqa}
HUB = {"vqav2": hub_vqav2, "gqa": hub_gqa, "vizwiz": hub_vizwiz, "textvqa": hub_textvqa}

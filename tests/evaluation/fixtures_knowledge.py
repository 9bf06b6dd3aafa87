"""FVQA, WebQA, and the data of retrieved examples in their official files; some of the latter as on the Hub."""

import base64
import io

from benchmark_tools import scene, write_image, write_json, write_rows
from fixtures_vqa import hub_vizwiz, raw_vizwiz

# ---- FVQA ----

#: Question, answer, where the answer is, fact; of scenes 0 to 4, which show the things.
FVQA = [
    ("What is the animal used for?", "riding", "kb", "[[a horse]] is used for [[riding]]"),
    ("Where does the ape live?", "forest", "kb", "[[an orangutan]] lives in the [[forest]]"),
    ("What is the machine used for?", "flying", "kb", "[[a helicopter]] is used for [[flying]]"),
    ("What is the thing in space made of?", "ice", "kb", "[[a comet]] is made of [[ice]]"),
    ("Which of these can be eaten?", "sandwich", "image", "[[a sandwich]] is a kind of [[food]]"),
]


def raw_fvqa(folder):
    release = folder / "new_dataset_release"
    questions, facts = {}, {}
    for i, (question, answer, source, surface) in enumerate(FVQA):
        facts[f"conceptnet/e/{i}"] = {"KB": "conceptnet", "e1": "x", "r": "/r/IsA", "e2": "y", "surface": surface}
        questions[str(100 + i)] = {
            "question_id": str(100 + i),
            "question": question,
            "answer": answer,
            "img_file": f"ILSVRC2012_test_{i:08d}.png",
            "fact": [f"conceptnet/e/{i}"],
            "fact_surface": surface,
            "ans_source": source,
            "kb_source": "conceptnet",
            "visual_concept": "obj",
        }
        write_image(release / "images" / f"ILSVRC2012_test_{i:08d}.png", scene(i)[0])
    facts["webchild/e/9"] = {"KB": "webchild", "surface": "[[a handbag]] is a kind of [[bag]]"}
    write_json(release / "all_qs_dict_release.json", questions)
    write_json(release / "all_fact_triples_release.json", facts)
    for number in range(5):
        tests = {number % 4, (number + 1) % 4, 4}
        for part, members in (("test", tests), ("train", set(range(5)) - tests)):
            path = folder / "Name_Lists" / f"{part}_list_{number}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"ILSVRC2012_test_{i:08d}.png\n" for i in sorted(members)))


# ---- WebQA ----

IMAGES = 10
THINGS = ["horse", "orangutan", "helicopter", "comet", "shamrock", "handbag", "rocket", "balloon", "whale", "blossom"]
#: Question, answer, category, numbers of the relevant images.
WEBQA = [
    ("Is the horse near a spider?", "Yes, the horse is near a spider.", "YesNo", [0]),
    ("Is the comet on a white background?", "No, the comet is on black.", "YesNo", [3]),
    ("What colour is behind the orangutan?", "The background is red.", "color", [1]),
    ("How many things are with the shamrock?", "There are two things.", "number", [4]),
    ("Which is larger, the rocket or the balloon?", "The balloon is larger.", "choose", [6, 7]),
    ("What shape is the handbag?", "The handbag is square.", "shape", [5]),
    ("What is beside the whale?", "A turkey is beside the whale.", "Others", [8]),
    ("Is the helicopter large?", "Yes, it is not small.", "YesNo", [2]),
]


def _fact(i):
    return {"image_id": 30_000_000 + i, "title": THINGS[i], "caption": f"A {THINGS[i]} seen in 19{i}0", "url": "x"}


def webqa_rows():
    rows = {}
    for number, (question, answer, category, relevant) in enumerate(WEBQA):
        count = 4 if "helicopter" in question else 7
        others = [(relevant[-1] + 1 + i) % IMAGES for i in range(count)]
        rows[f"guid{number}"] = {
            "Guid": f"guid{number}",
            "Q": f'"{question}"',
            "A": [f'"{answer}"'],
            "topic": "things",
            "split": "val",
            "Qcate": category,
            "img_posFacts": [_fact(i) for i in relevant],
            "img_negFacts": [_fact(i) for i in others],
            "txt_posFacts": [],
            "txt_negFacts": [{"snippet_id": "t1", "title": "x", "fact": "Horses run.", "url": "x"}],
        }
    train = {**rows["guid0"], "Guid": "guid90", "split": "train"}
    text = {**rows["guid2"], "Guid": "guid91", "Qcate": "text", "img_posFacts": [], "img_negFacts": []}
    return {**rows, "guid90": train, "guid91": text}


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_images(folder, files):
    """`imgs.tsv` with its index."""
    offsets, place = [], 0
    with (folder / "imgs.tsv").open("wb") as table:
        for i, data in enumerate(files):
            offsets.append(place)
            place += table.write(f"{30_000_000 + i}\t".encode() + base64.b64encode(data) + b"\n")
    (folder / "imgs.lineidx").write_text("".join(f"{offset}\n" for offset in offsets))


def raw_webqa(folder):
    write_json(folder / "WebQA_train_val.json", webqa_rows())
    write_images(folder, [encoded(scene(i)[0]) for i in range(IMAGES)])


# ---- Retrieved examples ----

#: Question, answer, number of the scene. The last shows what a question of the validation data shows.
VIZWIZ_TRAIN = [("What animal is this?", "horse", 10), ("Is there a cat?", "no", 11), ("Is there a cat?", "yes", 1)]
SCIENCE = {  # number of the scene: split, question, choices, answer
    "11": ("train", "Which is an animal?", ["rock", "horse"], 1, 12),
    "12": ("train", "Which is a fruit?", ["apple", "chair", "dog"], 0, 13),
    "13": ("train", "No image here?", ["yes", "no"], 0, None),
    "14": ("test", "Which of these is an animal?", ["comet", "spider"], 1, 0),
    "15": ("test", "Which of these is a fruit?", ["pear", "ribbon"], 0, 1),
}


def raw_vizwiz_train(folder):
    rows = []
    for i, (question, answer, number) in enumerate(VIZWIZ_TRAIN):
        name = f"VizWiz_train_{i:08d}.png"
        answers = [{"answer": text, "answer_confidence": "yes"} for text in ["other"] * 3 + [answer] * 7]
        rows.append({"image": name, "question": question, "answers": answers, "answer_type": "other", "answerable": 1})
        write_image(folder / "train" / name, scene(number)[0])
    write_json(folder / "Annotations" / "train.json", rows)


def raw_science(folder):
    problems, splits = {}, {"train": [], "val": [], "test": []}
    for id, (split, question, choices, answer, number) in SCIENCE.items():
        image = None if number is None else "image.png"
        row = {"question": question, "choices": choices, "answer": answer, "hint": "", "image": image}
        problems[id] = {**row, "subject": "natural science", "grade": "grade2", "split": split}
        splits[split].append(id)
        if number is not None:
            write_image(folder / "images" / split / id / "image.png", scene(number)[0])
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", splits)


def hub_science(folder):
    for wanted in ("train", "test"):
        rows = []
        for split, question, choices, answer, number in SCIENCE.values():
            if split == wanted and number is not None:
                row = {"question": question, "choices": choices, "answer": answer, "hint": ""}
                rows.append({**row, "subject": "natural science", "grade": "grade2", "image": scene(number)[0]})
        write_rows(folder, rows, "ScienceQA-IMG", wanted)


def sft_file(folder):
    short = "\nAnswer the question using a single word or phrase."
    rows = []
    for i, (question, answer) in enumerate([("How many things are there?", "3"), ("What is on the left?", "a dog")]):
        turns = [("human", f"<image>\n{question}{short}"), ("gpt", answer), ("human", "Sure?"), ("gpt", "Yes")]
        row = {"id": f"00{i}", "image": f"coco/train2017/{i}.png"}
        rows.append({**row, "conversations": [{"from": who, "value": text} for who, text in turns]})
        write_image(folder / "coco" / "train2017" / f"{i}.png", scene(14 + i)[0])
    text_only = [{"from": "human", "value": "Write a poem."}, {"from": "gpt", "value": "No."}]
    write_json(folder / "llava_v1_5_mix665k.json", [*rows, {"id": "t0", "conversations": text_only}])


def raw_rag(folder):
    raw_vizwiz(folder / "vizwiz")
    raw_vizwiz_train(folder / "vizwiz")
    raw_science(folder / "scienceqa")
    sft_file(folder)


def hub_rag(folder):
    (folder / "vizwiz").mkdir(parents=True)
    (folder / "scienceqa").mkdir()
    hub_vizwiz(folder / "vizwiz")
    raw_vizwiz_train(folder / "vizwiz")
    hub_science(folder / "scienceqa")
    sft_file(folder)


RAW = {
    "fvqa": raw_fvqa,
    "webqa": raw_webqa,
    "webqa-position": raw_webqa,
    "rag-vizwiz": raw_rag,
    "rag-scienceqa": raw_rag,
}
HUB = {"rag-vizwiz": hub_rag, "rag-scienceqa": hub_rag}

"""MSCOCO, VIST, Winoground and MMVP-VLM in small, in the official formats."""

import csv
import json

from benchmark_tools import scene, write_image, write_json, write_rows

MMVP_TYPES = (
    "Orientation and Direction",
    "Presence of Specific Features",
    "State and Condition",
    "Quantity and Count",
    "Positional and Relational Context",
    "Color and Appearance",
    "Structural Characteristics",
    "Texts",
    "Viewpoint and Perspective",
)
#: Scenes of each story. The target of the third stands in it before; the photo of scene 8 is missing.
STORIES = {"45530": (0, 1, 2, 3, 4), "45531": (4, 3, 5, 6, 7), "45532": (2, 5, 6, 7, 2), "45533": (0, 1, 2, 3, 8)}


def coco_images():
    """Entries of `dataset_coco.json`: six images of the test split, one with six captions, and one of val."""
    entries = []
    for n in range(7):
        caption, split = scene(n)[1], "test" if n < 6 else "val"
        forms = ("{} ", "a drawing: {}", "{} in a book", "here: {}", "look, {}", "once more: {}")[: 6 if n == 1 else 5]
        ids = [100 * n + i for i in range(len(forms))]
        sentences = [
            {"tokens": caption.split(), "raw": form.format(caption), "imgid": n, "sentid": id}
            for id, form in zip(ids, forms, strict=True)
        ]
        entry = {"filepath": "val2014", "filename": f"COCO_val2014_{391895 + n:012d}.jpg", "imgid": n}
        entries.append({**entry, "sentids": ids, "split": split, "sentences": sentences, "cocoid": 391895 + n})
    return entries


def write_coco_images(folder):
    """`val2014`."""
    for n, entry in enumerate(coco_images()):
        write_image(folder / "val2014" / entry["filename"], scene(n)[0])


def write_coco(folder):
    """Karpathy's file and COCO's images."""
    write_json(folder / "dataset_coco.json", {"images": coco_images(), "dataset": "coco"})
    write_coco_images(folder)


def write_coco_hub(folder):
    """Rows as yerevann/coco-karpathy has them, without pixels, and the images beside them."""
    for split in ("test", "validation"):
        entries = [entry for entry in coco_images() if entry["split"] == split[: len(entry["split"])]]
        rows = [
            {**entry, "sentences": [one["raw"] for one in entry["sentences"]], "url": f"http://{entry['filename']}"}
            for entry in entries
        ]
        write_rows(folder, rows, split=split, images=())
    write_coco_images(folder)


def write_vist(folder):
    """Three stories with all their images, and one that lacks one."""
    annotations, order = [], 0
    for story, scenes in STORIES.items():
        for place, n in enumerate(scenes):
            text = scene(n)[1]
            row = {"original_text": text, "album_id": "44277", "photo_flickr_id": str(1000 + n), "setting": "first-2"}
            row |= {"worker_id": "FJR", "story_id": story, "tier": "story-in-sequence", "text": text}
            annotations.append([{**row, "worker_arranged_photo_order": place, "storylet_id": str(order)}])
            order += 1
    images = [{"id": str(1000 + n), "url_o": f"http://{n}.jpg", "title": "", "album_id": "44277"} for n in range(9)]
    write_json(folder / "sis" / "val.story-in-sequence.json", {"images": images, "annotations": annotations})
    for n in range(8):
        write_image(folder / "images" / f"{1000 + n}.{'png' if n % 2 else 'jpg'}", scene(n)[0])


def winoground_rows():
    """Three items of two scenes each."""
    return [
        {
            "id": i,
            "caption_0": scene(2 * i)[1],
            "caption_1": scene(2 * i + 1)[1],
            "tag": "Adjective-Color",
            "secondary_tag": "",
            "num_main_preds": 1,
            "collapsed_tag": "Object",
        }
        for i in range(3)
    ]


def write_winoground(folder):
    """`examples.jsonl` and the images, whose names it has without suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, row in enumerate(winoground_rows()):
        names = {f"image_{k}": f"ex_{i}_img_{k}" for k in (0, 1)}
        lines.append(json.dumps({**row, **names}))
        for k, name in enumerate(names.values()):
            write_image(folder / "images" / f"{name}.png", scene(2 * i + k)[0])
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_winoground_hub(folder):
    """Rows as facebook/winoground has them."""
    rows = [
        {**row, "image_0": scene(2 * i)[0], "image_1": scene(2 * i + 1)[0]} for i, row in enumerate(winoground_rows())
    ]
    write_rows(folder, rows, images=("image_0", "image_1"))


def write_mmvp(folder):
    """A pair of each of the nine types."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "Questions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Question ID", "Type", "Statement"])
        for number, kind in enumerate(MMVP_TYPES):
            for side in (0, 1):
                id, n = 2 * number + side + 1, number % 6 + 6 * side
                table.writerow([id, kind, scene(n)[1]])
                write_image(folder / "MLLM_VLM Images" / kind / f"{id}.jpg", scene(n)[0])


RAW = {
    "coco": write_coco,
    "vist": write_vist,
    "winoground": write_winoground,
    "mmvp": write_mmvp,
    "mmvp-embed": write_mmvp,
}
HUB = {"coco": write_coco_hub, "winoground": write_winoground_hub}

"""DEMON-Core in small, in the official format: one or two samples of each task."""

from benchmark_tools import scene, write_image, write_json

from sugar_hf.evaluation.benchmarks.tasks.demon_tasks import ALL, IMAGE_CHOICE, OPEN, question_type

#: Tasks with two samples.
DOUBLE = ("MMCoQA", "COMICS_Panel", "TQA")


def demon_sample(task, number):
    """A sample: open-ended, with a choice of texts, or with a choice of images in the context."""
    caption, other = scene(number)[1], scene(number + 2)[1]
    kind = question_type(task)
    instance = {"images_path": [f"{number}.jpg", f"{number + 1}.jpg"]}
    if kind == OPEN:
        instance["context"] = "First: {image#1} {table#2}\nQuestion: what is there?"
        response = caption
    elif task in IMAGE_CHOICE:
        instance["context"] = "Choice List:['Image A: {image#1}', 'Image B: {image#2}']. Your answer is:"
        response = "Image B"
    else:
        instance["context"] = "Look at {image#1} and {image#2}. Which is it?"
        instance["choice_list"] = [other, caption]
        response = caption
    if task == "Fashion200K":
        instance["choice_list"], response = ["10", "25"], 25
    return {"sample_id": number, "task_instruction_id": number, "task_instance": instance, "response": response}


def write_demon(folder, tasks=ALL):
    """`core.json` and images of each task."""
    for task in tasks:
        numbers = (0, 1) if task in DOUBLE else (0,)
        metadata = {
            "dataset": task,
            "split": "core",
            "num_sample": len(numbers),
            "task_instruction": ["Do as you are told. ", "Look and say. "],
            "question_type": "" if task == "ALFRED" else question_type(task),
        }
        data = [demon_sample(task, number) for number in numbers]
        write_json(folder / task / "core" / "core.json", {"metadata": metadata, "data": data})
        for number in range(len(numbers) + 1):
            write_image(folder / task / "core" / "images" / f"{number}.jpg", scene(number)[0])


RAW = {"demon": write_demon}
HUB = {}

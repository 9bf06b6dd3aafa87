from PIL import Image

from sugar_hf.picturebook.retrieval_tasks import retrieval_tasks


def test_four_tasks_of_one_size_whose_targets_fit():
    tasks = {task.name: task for task in retrieval_tasks(size=5)}
    assert list(tasks) == ["text to image", "image to text", "5 captions", "5 captions + 4 images"]
    for task in tasks.values():
        assert len(task.queries) == len(task.candidates) == 5
        assert task.targets == [0, 1, 2, 3, 4]
    assert tasks["text to image"].queries == tasks["image to text"].candidates
    interleaved, sentences = tasks["5 captions + 4 images"], tasks["5 captions"]
    for with_images, alone, (last,) in zip(
        interleaved.queries, sentences.queries, interleaved.candidates, strict=True
    ):
        assert [isinstance(part, Image.Image) for part in with_images] == [False, True] * 4 + [False]
        assert with_images[::2] == alone
        assert last not in with_images

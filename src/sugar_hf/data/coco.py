"""The captions of COCO, which stand apart from the images that they describe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from .errors import BadSampleError

#: What a row is: an image with its captions as texts or as metadata, or a caption with the image that it looks for.
CocoForm = Literal["texts", "metadata", "pairs"]
_SCALARS = (str, int, float)


def is_coco(value: Any) -> bool:
    """Whether a JSON object is a file of COCO: a list of images, and one of annotations.

    >>> is_coco({"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}), is_coco({"images": ["1.jpg"]})
    (True, False)
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("annotations"), list):
        return False
    images = value.get("images")
    return isinstance(images, list) and all(isinstance(image, Mapping) for image in images[:1])


def coco_rows(value: Mapping[str, Any], form: CocoForm = "texts") -> Iterator[dict[str, Any] | BadSampleError]:
    """Bring the images of a file of captions together with these.

    Args:
        value: The file: `images` with `id` and `file_name`, `annotations` with `image_id` and `caption`.
        form: What a row is.

    Yields:
        With `"texts"`: `{"id", "image", "text"}` for each image, `text` a list of its captions in their order, with
        what else is known of the image. With `"metadata"`: the same with `captions` in the place of `text`. With
        `"pairs"`: `{"id", "query", "positives"}` for each caption. Or why an image or annotation cannot be used.

    Raises:
        BadSampleError: The annotations are no captions but boxes, masks or keypoints.
    """
    captions: dict[Any, list[tuple[Any, Any]]] = {}
    for image in value["images"]:
        if isinstance(image, Mapping) and isinstance(image.get("id"), int | str):
            captions.setdefault(image["id"], [])
    for number, annotation in enumerate(value["annotations"]):
        where = f"annotations[{number}]"
        if not isinstance(annotation, Mapping) or "caption" not in annotation:
            mend = "Of COCO's files, captions_*.json are read"
            raise BadSampleError("the annotation has no caption", field=where, mend=mend)
        name = annotation.get("image_id")
        if not isinstance(name, int | str) or name not in captions:
            yield BadSampleError(f"no image has the id {name!r}", field=f"{where}.image_id")
            continue
        captions[name].append((annotation.get("id", number), annotation["caption"]))
    seen = set()
    for number, image in enumerate(value["images"]):
        where = f"images[{number}]"
        if not isinstance(image, Mapping) or not isinstance(image.get("id"), int | str):
            yield BadSampleError("the image has no id", field=where)
        elif image["id"] in seen:
            yield BadSampleError(f"two images have the id {image['id']!r}", field=f"{where}.id")
        else:
            seen.add(image["id"])
            file, texts = image.get("file_name"), captions[image["id"]]
            if form == "pairs":
                for name, text in texts:
                    yield {"id": f"{image['id']}-{name}", "query": text, "positives": [{"image": file}]}
                continue
            others = {key: each for key, each in image.items() if isinstance(each, _SCALARS) and key != "file_name"}
            row = {**others, "id": image["id"], "image": file}
            key = "text" if form == "texts" else "captions"
            yield row | ({key: [text for _, text in texts]} if texts else {})

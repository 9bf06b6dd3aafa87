"""Measure the mini checkpoints on held-out test scenes, beside chance.

python -m sugar_lab.recipe.checkpoint_report
python -m sugar_lab.recipe.checkpoint_report --size 200 --checkpoints FOLDER
"""

import argparse
import random
from pathlib import Path

import torch
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import (
    AutoTokenizer,
    BertModel,
    CLIPModel,
    Dinov2Model,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from sugar_hf.picturebook import CHECKPOINTS
from sugar_hf.picturebook.scenes import BACKGROUNDS, Scene, caption, questions, random_scene, render, render_array

from .loop import pixel_values
from .teacher_recipes import tokenize
from .vlm_recipe import DESCRIBE

CHANCE = {
    "what": 1 / 300,
    "how many": 1 / 3,
    "where": 1 / 9,
    "background": 1 / len(BACKGROUNDS),
    "size": 0.5,
    "yes/no": 0.5,
}
BATCH = 100


@torch.inference_mode()
def answer(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: list[Scene], prompts: list[str]
) -> list[str]:
    """Greedy answers to one prompt for each scene."""
    processor.tokenizer.padding_side = "left"
    replies = []
    for start in tqdm(range(0, len(scenes), BATCH), desc="answering", leave=False):
        texts = [f"USER: <image>\n{prompt} ASSISTANT:" for prompt in prompts[start : start + BATCH]]
        images = [render(scene) for scene in scenes[start : start + BATCH]]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False)
        replies += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [reply.strip() for reply in replies]


def report_vlm(folder: Path, scenes: list[Scene]) -> None:
    """Print how many questions about scenes the mini VLM answers, by kind."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaProcessor.from_pretrained(folder)
    rng = random.Random(1)
    asked = [(scene, *turn) for scene in scenes for turn in questions(scene, rng)]
    replies = answer(model, processor, [row[0] for row in asked], [row[2] for row in asked])
    print("mini-vlm: exact answers, % (chance)")
    right = [reply == row[3] for row, reply in zip(asked, replies, strict=True)]
    for kind, chance in CHANCE.items():
        of_kind = [hit for row, hit in zip(asked, right, strict=True) if row[1] == kind]
        print(f"  {kind:<12}{100 * sum(of_kind) / len(of_kind):6.1f} ({100 * chance:.1f})")
    print(f"  {'all':<12}{100 * sum(right) / len(right):6.1f} ({100 * sum(CHANCE.values()) / len(CHANCE):.1f})")

    captions = answer(model, processor, scenes, [DESCRIBE["full"][0]] * len(scenes))
    things = [(item, words) for scene, words in zip(scenes, captions, strict=True) for item in scene.items]
    named = sum(item.concept in words for item, words in things) / len(things)
    sized = sum(f"{item.size} {item.concept}" in words for item, words in things) / len(things)
    coloured = sum(scene.background in words for scene, words in zip(scenes, captions, strict=True)) / len(scenes)
    print(f"mini-vlm: captions name {100 * named:.1f} % of the things ({100 * 2 / 300:.1f}),", end=" ")
    chance = 100 / len(BACKGROUNDS)
    print(f"with the right size {100 * sized:.1f} %, the background {100 * coloured:.1f} % ({chance:.1f})")
    print(f"  for example: {captions[0]}")


def recall(a: torch.Tensor, b: torch.Tensor) -> str:
    """Write recall at 1 and 5 of row i of `b` by row i of `a`."""
    ranks = (normalize(a, dim=-1) @ normalize(b, dim=-1).T).argsort(dim=1, descending=True)
    places = (ranks == torch.arange(len(a))[:, None]).int().argmax(dim=1)
    return f"R@1 {100 * (places < 1).float().mean():.1f}, R@5 {100 * (places < 5).float().mean():.1f} %"


@torch.inference_mode()
def report_teachers(folder: Path, scenes: list[Scene]) -> None:
    """Print what the three teachers find."""
    rng = random.Random(2)
    words, other_words = ([caption(scene, rng) for scene in scenes] for _ in range(2))
    pictures = pixel_values([render_array(scene) for scene in scenes])
    looks = [Scene(scene.items, scene.background, scene.look + 1) for scene in scenes]
    clip, tokenizer = (
        CLIPModel.from_pretrained(folder / "mini-clip"),
        AutoTokenizer.from_pretrained(folder / "mini-clip"),
    )
    image = clip.get_image_features(pixel_values=pictures).pooler_output
    text = clip.get_text_features(**tokenize(tokenizer, words)).pooler_output
    print(f"of {len(scenes)} held-out scenes (chance {100 / len(scenes):.1f} %)")
    print(f"  mini-clip, caption to picture: {recall(text, image)}; picture to caption: {recall(image, text)}")
    dino = Dinov2Model.from_pretrained(folder / "mini-dino")
    first, second = (
        dino(pixel_values=values).last_hidden_state[:, 0]
        for values in (pictures, pixel_values([render_array(scene) for scene in looks]))
    )
    print(f"  mini-dino, picture to another drawing of the scene: {recall(first, second)}")
    bert, tokenizer = (
        BertModel.from_pretrained(folder / "mini-bert"),
        AutoTokenizer.from_pretrained(folder / "mini-bert"),
    )
    first, second = (bert(**tokenize(tokenizer, texts)).last_hidden_state[:, 0] for texts in (words, other_words))
    print(f"  mini-bert, caption to another wording: {recall(first, second)}")


def main() -> None:
    """Print the report from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    parser.add_argument("--size", type=int, default=500, help="number of test scenes")
    arguments = parser.parse_args()
    rng = random.Random(0)
    scenes = [random_scene(rng, "test") for _ in range(arguments.size)]
    report_teachers(arguments.checkpoints, scenes)
    report_vlm(arguments.checkpoints / "mini-vlm", scenes)


if __name__ == "__main__":
    main()

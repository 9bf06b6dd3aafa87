"""The six kinds of example of the paper's page, from the picturebook: pink is retrieved, blue is generated.

The examples are the first ones that a fixed seed draws of the test split, right or wrong.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from sugar_hf.evaluation import Block, Card, Section, write_gallery
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.pipeline_sugar import SugarGenerationPipeline, SugarRetrievalPipeline
from sugar_hf.picturebook import Item, Scene, caption, draw_story, random_scene, render
from sugar_hf.picturebook.names import GROUP_NOUN, GROUP_OF, SYNONYMS
from sugar_hf.picturebook.stories import free_place, next_frame

SEED = 0
EXAMPLES = 3
POOL = 60
TOKENS = 24
FRAMES = 4


class Studio:
    """A model's two pipelines, and a pool of pictures to search."""

    def __init__(self, model: SugarForConditionalGeneration, processor: SugarProcessor, pool: int) -> None:
        self.retrieve = SugarRetrievalPipeline(model=model, processor=processor)
        self.generate = SugarGenerationPipeline(model=model, processor=processor)
        self.pool = [random_scene(_rng("pool", number), "test") for number in range(pool)]

    def find(self, query: Sequence[Any], scenes: Sequence[Scene], right: int, top: int = 1) -> list[Block]:
        """Retrieve among pictures of scenes, and say whether each is the right one."""
        candidates = [[render(scene)] for scene in scenes]
        found = self.retrieve({"query": list(query)}, candidates=candidates, top_k=top)
        return [_retrieved(result, right, len(scenes)) for result in found]

    def ask(self, parts: Sequence[Any], label: str) -> Block:
        """Let the model answer a prompt."""
        reply = self.generate({"query": list(parts)}, max_new_tokens=TOKENS)[0]["generated_text"]
        return Block("generated", [reply], label)


def make_gallery(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    path: str | Path,
    examples: int = EXAMPLES,
    pool: int = POOL,
) -> Path:
    """Write the page.

    Args:
        model: a Sugar model that knows the picturebook.
        processor: its processor.
        path: the HTML file.
        examples: examples of each kind.
        pool: other pictures among which each search has to find the right one.

    Returns:
        The file written.
    """
    studio = Studio(model.eval(), processor, pool)
    rule = (
        f"The first {examples} of each kind that seed {SEED} draws, failures included. Unless another number is said, "
        f"searches are among {pool} further pictures of held-out combinations."
    )
    kinds = (
        ("Sensitivity with detailed semantics", details),
        ("World knowledge", knowledge),
        ("Fine-grained image discrimination", discrimination),
        ("Multimodal concept composition", composition),
        ("Retrieval and dialog", dialog),
        ("Retrieval at different places", places),
    )
    sections = [Section("How these were chosen", rule)]
    for title, draw in kinds:
        note = (draw.__doc__ or "").partition("\n")[0]
        cards = [draw(studio, _rng(title, number)) for number in range(examples)]
        sections.append(Section(title, note, cards=cards))
    return write_gallery(path, "Sugar in the lab", sections)


def details(studio: Studio, rng: random.Random) -> Card:
    """Two descriptions that differ in one place, and the picture that is found for each."""
    scenes = _moved(rng)
    wording = rng.getrandbits(31)
    blocks = []
    for right, scene in enumerate(scenes):
        words = caption(scene, random.Random(wording))
        blocks += [Block("given", [words]), *studio.find([words], [*scenes, *studio.pool], right)]
    return Card(blocks)


def knowledge(studio: Studio, rng: random.Random) -> Card:
    """A thing called by its other name is found; then it is asked what kind of thing it is."""
    concept = rng.choice(sorted(SYNONYMS))
    scene = Scene((Item(concept, "large", rng.randrange(9)),), "white", rng.getrandbits(31))
    name = SYNONYMS[concept]
    query = f"a picture of {'an' if name[0] in 'aeiou' else 'a'} {name}."
    question = f"is the {name} {GROUP_NOUN[GROUP_OF[concept]]}?"
    found = studio.find([query], [scene, *studio.pool], 0)
    return Card([Block("given", [query]), *found, studio.ask([render(scene), question], f"{question} (yes)")])


def discrimination(studio: Studio, rng: random.Random) -> Card:
    """Two pictures that differ in one place: which is described, by similarity and in words."""
    scenes = _moved(rng)
    wording = rng.getrandbits(31)
    words = [caption(scene, random.Random(wording)) for scene in scenes]
    pictures = [render(scene) for scene in scenes]
    question = f"which choice meets the first image:\nA.{words[0]}\nB.{words[1]}\n.please answer in A or B"
    return Card(
        [
            Block("given", [*pictures, words[0]]),
            *studio.find([words[0]], scenes, 0),
            studio.ask([pictures[0], question], f"{question} (A)"),
        ]
    )


def composition(studio: Studio, rng: random.Random) -> Card:
    """A picture and words for what changes: the picture that they make together. What was given is a candidate."""
    start = random_scene(rng, "test", 2)
    result, words = next_frame(start, rng)
    query: list[str | Image.Image] = [render(start), words]
    return Card([Block("given", query), *studio.find(query, [start, result, *studio.pool], 1, top=2)])


def dialog(studio: Studio, rng: random.Random) -> Card:
    """A picture is found, and talked about: the answers are to be right about what was found, right or wrong."""
    scene = random_scene(rng, "test")
    words = caption(scene, rng)
    blocks = studio.find([words], [scene, *studio.pool], 0)
    picture = blocks[0].parts[0]
    first, second = "how many things are there?", "which colour is the background?"
    turns: list[dict[str, Any]] = [_turn("user", picture, first)]
    answer = studio.generate(turns, max_new_tokens=TOKENS)[0]["generated_text"]
    turns += [_turn("assistant", answer), _turn("user", second)]
    reply = studio.generate(turns, max_new_tokens=TOKENS)[0]["generated_text"]
    asked = [Block("generated", [answer], first), Block("generated", [reply], second)]
    return Card([Block("given", [words]), *blocks, *asked])


def places(studio: Studio, rng: random.Random) -> Card:
    """One pass over a story, a search after each of its slices for its last picture."""
    story = draw_story(rng, "test", FRAMES)
    query: list[str | Image.Image] = []
    for sentence, frame in zip(story.sentences, story.frames, strict=True):
        query += [sentence, render(frame)]
    query.pop()  # the last picture is what is searched for
    scenes = [story.frames[-1], *studio.pool]
    found = studio.retrieve(
        {"query": query}, candidates=[[render(scene)] for scene in scenes], top_k=1, return_positions=True
    )
    blocks = []
    for part, results in zip(query, found, strict=True):
        blocks += [Block("given", [part]), _retrieved(results[0], 0, len(scenes))]
    return Card(blocks)


def _moved(rng: random.Random) -> tuple[Scene, Scene]:
    scene = random_scene(rng, "test", 2)
    item = scene.items[0]
    other = replace(item, place=free_place(scene, rng))
    return scene, replace(scene, items=(other, *scene.items[1:]))


def _retrieved(result: dict[str, Any], right: int, size: int) -> Block:
    verdict = "right" if result["index"] == right else "wrong"
    return Block("retrieved", result["candidate"], f"of {size}, score {result['score']:.2f} · {verdict}")


def _turn(role: str, *parts: str | Image.Image) -> dict[str, Any]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return {"role": role, "content": content}


def _rng(name: str, number: int) -> random.Random:
    return random.Random(f"gallery/{name}/{SEED}/{number}")

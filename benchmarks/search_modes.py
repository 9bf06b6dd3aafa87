"""Which documents each way of searching finds: stories of the picturebook, by parts of them, with the mini model.

    python benchmarks/search_modes.py              # 300 stories, 150 queries of each kind, four minutes on 2 cores

An index has an embedding for each slice of a story, sentences and pictures in turn. A query is a part of one, and that
story is to be found. The figures are the mean reciprocal rank among the first ten, and the share that is found first.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from sugar_hf import SugarEmbedder, SugarIndex, picturebook
from sugar_hf.data import to_sample
from sugar_hf.picturebook.world import load

WAYS = {
    "vector": {},
    "text": {"mode": "text"},
    "hybrid": {"mode": "hybrid"},
    "vector, late interaction": {"late_interaction": 50},
    "hybrid, late interaction": {"mode": "hybrid", "late_interaction": 50},
}
#: Queries: parts of a story that begins with a sentence, followed by its picture.
PARTS = {
    "the first two frames": lambda story: story[:4],
    "all but the first frame": lambda story: story[2:],
    "its sentences": lambda story: story[::2],
    "its pictures": lambda story: story[1::2],
    "its second sentence": lambda story: story[2:3],
    "its last sentence and picture": lambda story: story[-2:],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=300, help="number of stories")
    parser.add_argument("--queries", type=int, default=150, help="number of queries of each kind")
    arguments = parser.parse_args()
    rows = load("test", kind="story", size=arguments.size, seed=0, words_first=True, frames=5)
    stories = [to_sample(row) for row in rows]
    embedder = SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar"), positions="all", batch_size=32)
    with tempfile.TemporaryDirectory() as place:
        documents = ({"id": str(i), "document": story} for i, story in enumerate(stories))
        index = SugarIndex.build(Path(place) / "stories.index", documents, embedder, show_progress=False)
        print(f"| query | {' | '.join(WAYS)} |")
        print("|---|" + "---|" * len(WAYS))
        for name, part in PARTS.items():
            cells = []
            queries = [{"query": part(story)} for story in stories[: arguments.queries]]
            slices = SugarEmbedder.encode_slices(embedder, [query["query"] for query in queries], show_progress=False)
            embedder.encode_slices = lambda *_, found=slices, **__: found  # once for all ways
            embedder.encode = lambda *_, found=slices, **__: np.stack([each[-1] for each in found])
            for way, options in WAYS.items():
                if way == "text" and name == "its pictures":
                    cells.append("no words")
                    continue
                found = [[int(hit.id) for hit in hits] for hits in index.search(queries, 10, **options)]
                ranks = np.array([ids.index(i) + 1 if i in ids else np.inf for i, ids in enumerate(found)])
                cells.append(f"{(1 / ranks).mean():.3f} ({(ranks == 1).mean():.0%})")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

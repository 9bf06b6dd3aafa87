"""Runs under torchrun: commands of `sugar-hf`, one after the other. Not a test by itself.

torchrun --nproc_per_node 2 tests/retrieval/embedding_worker.py COMMANDS.json OUTPUT
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from sugar_cli import main
from sugar_hf.retrieval.embedder import SugarEmbedder

ends = []
embedded = []
embed_documents = SugarEmbedder.embed_documents


def recorded(self, documents, **options):
    embedded.extend(document.id for document in documents)
    return embed_documents(self, documents, **options)


SugarEmbedder.embed_documents = recorded
for command in json.loads(Path(sys.argv[1]).read_text()):
    out, err, code = io.StringIO(), io.StringIO(), None
    embedded.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(command)
        except SystemExit as ended:
            code = ended.code
    ends.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "embedded": list(embedded)})
Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(json.dumps(ends))

"""Print the lower bounds of a pyproject.toml as constraints of pip: `python .ci/lowest.py pyproject.toml`."""

import re
import sys
import tomllib
from itertools import chain
from pathlib import Path


def lower_bounds(text: str) -> list[str]:
    """Return a line `name==version` for each requirement `name>=version,...` of a project, its extras' too."""
    project = tomllib.loads(text)["project"]
    requirements = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    ours = [line for line in requirements if not line.startswith(project["name"])]
    found = {line: re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line) for line in ours}
    without = [line for line, match in found.items() if match is None]
    if without:
        sys.exit(f"no lower bound: {', '.join(without)}")
    return sorted({f"{match[1]}=={match[2]}" for match in found.values() if match})


if __name__ == "__main__":
    print("\n".join(lower_bounds(Path(sys.argv[1]).read_text(encoding="utf-8"))))

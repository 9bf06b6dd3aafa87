"""Write a Sugar model as a folder for the Hub, with a card made from measured figures.

    python examples/demo.py --json demo.json
    python examples/export_for_hub.py sugar --name you/sugar-mini --figures demo.json --output export
    hf upload you/sugar-mini export

The folder works with `trust_remote_code=True` where sugar-hf is not installed.
"""

import argparse
import json
import shutil
from pathlib import Path

from transformers import AutoModel, AutoProcessor

from sugar_hf.model import export_for_hub


def figures_table(file: Path) -> str:
    """The figures that `demo.py --json` wrote, as a Markdown table."""
    figures = json.loads(file.read_text())
    settings = figures["settings"]
    lines = [
        f"After {settings['steps']} steps of `examples/demo.py` (seed {settings['seed']}), on held-out combinations,",
        f"pools of {settings['pool']} candidates, in %:",
        "",
        "| | before | after |",
        "|---|---|---|",
    ]
    for name, value in figures["after"].items():
        if "recall" in name or "accuracy" in name:
            lines.append(f"| {name} | {figures['before'][name]:.1f} | {value:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--output", type=Path, required=True, help="folder for the Hub")
    parser.add_argument("--name", help="name on the Hub")
    parser.add_argument("--figures", type=Path, help="the file that demo.py --json wrote")
    parser.add_argument("--description", default="")
    parser.add_argument("--card", type=Path, help="also copy the card to this file")
    args = parser.parse_args()
    export_for_hub(
        AutoModel.from_pretrained(args.model),
        AutoProcessor.from_pretrained(args.model),
        args.output,
        metrics=figures_table(args.figures) if args.figures else None,
        description=args.description,
        name=args.name,
        card_data={"license": "apache-2.0"},
    )
    if args.card:
        args.card.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.output / "README.md", args.card)


if __name__ == "__main__":
    main()

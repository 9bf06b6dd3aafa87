"""Write a Sugar model as a folder for the Hub, with a card made from measured figures: the same as `sugar-hf export`.

    python examples/demo.py --json demo.json
    python examples/export_for_hub.py sugar --name you/sugar-mini --figures demo.json --output export
    hf upload you/sugar-mini export

The folder works with `trust_remote_code=True` where sugar-hf is not installed.
"""

import sys

from sugar_cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])

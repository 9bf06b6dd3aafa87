"""Fine-tune a vision-language model so that it retrieves as well as it generates: the same as `sugar-hf train`.

A file of its own for launchers that want one:

    python examples/train_sugar.py examples/recipes/llava15_7b.yaml
    torchrun --nproc_per_node 8 examples/train_sugar.py examples/recipes/llava15_7b.yaml
    accelerate launch --config_file examples/accelerate/ddp.yaml examples/train_sugar.py RECIPE.yaml

`--help` lists every option; what it does is in `sugar_cli/train_command.py`. Needs: pip install sugar-hf.
"""

from sugar_cli.train_command import main

if __name__ == "__main__":
    main()

"""`sugar-hf evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .loading import find_model, quiet_libraries
from .options import BatchSize, Device, Dtype
from .output import emit, interruptible, say, show

if TYPE_CHECKING:
    from sugar_hf.evaluation.benchmarks.tasks import Task

_SHOWN = 5  # failed samples that are named


def evaluate(
    task: Annotated[
        list[str] | None, typer.Option(help="Task, or several with commas or by repeating the option; `all`.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder with the official files or with a copy of the rows, or a name on the Hub. Where it has a "
            "folder of the task's name, that one. Default: the task's name on the Hub."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub name: a Sugar model, any image-text-to-text model, or for retrieval CLIP, SigLIP "
            "or BLIP-2. Default: ./sugar, else the mini model."
        ),
    ] = None,
    retriever: Annotated[
        str | None, typer.Option(help="Model that retrieves for --model, where a task does both. Default: itself.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="Of a retriever: average, image or text (CLIP and its kin); itc or multimodal (BLIP-2)."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data. Default: the task's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first samples only: a look, not a score.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Further option of a task; --list names them.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Marks free answers: folder or Hub name of a language model, or an OpenAI-compatible endpoint as "
            "https://host/v1#model. Its key is taken from the environment: OPENAI_API_KEY."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for results and predictions.")] = Path("results"),
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: made of model and options.")] = None,
    batch_size: BatchSize = 8,
    seed: Annotated[int, typer.Option(help="For what a task draws.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    attn_implementation: Annotated[str | None, typer.Option(help="Such as sdpa or flash_attention_2.")] = None,
    list_tasks: Annotated[bool, typer.Option("--list", help="Name the tasks and their options, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write each result as JSON to the standard output.")] = False,
) -> None:
    """Measure a model on benchmarks; an interrupted run resumes.

    \b
      sugar-hf evaluate --list
      sugar-hf evaluate --task vist --data ~/vist --model sugar
      sugar-hf evaluate --task coco,winoground --data ~/data --model openai/clip-vit-large-patch14 --mode average
      sugar-hf evaluate --task fvqa --data ~/fvqa --model llava-hf/llava-1.5-7b-hf \\
          --retriever openai/clip-vit-large-patch14-336 --option view=image
      sugar-hf report results
    """
    from sugar_hf.evaluation.benchmarks.tasks import all_tasks

    known = all_tasks()
    if list_tasks:
        _list(known)
        return
    names = [part.strip() for item in task or [] for part in item.split(",") if part.strip()]
    names = list(known) if names == ["all"] else names
    if not names:
        raise typer.BadParameter("name one; --list shows them", param_hint="--task")
    if unknown := [each for each in names if each not in known]:
        raise typer.BadParameter(f"no task {', '.join(unknown)}; --list shows them", param_hint="--task")
    options = _options(option or [], [known[each] for each in names])
    quiet_libraries()
    from sugar_hf.evaluation.benchmarks.runner import Models, run_task
    from sugar_hf.evaluation.benchmarks.sources import Source

    models = Models(
        find_model(model),
        retriever=retriever,
        mode=mode,
        device=device,
        dtype=dtype,
        **({} if attn_implementation is None else {"attn_implementation": attn_implementation}),
    )
    opened = None
    if judge is not None:
        from sugar_hf.evaluation.benchmarks.judges import open_judge

        opened = open_judge(judge)
    broken: list[str] = []
    with interruptible("the same command goes on"):
        for each in names:
            place = data
            for folder in (each, known[each].folder):
                if data is not None and folder and Path(data, folder).is_dir():
                    place = str(Path(data, folder))
                    break
            mine = {key: value for key, value in options.items() if key in known[each].options}
            source = Source(each, place, split, limit, seed, mine, opened)
            try:
                result = run_task(known[each], source, models, output, name=name, batch_size=batch_size)
            except (ValueError, OSError) as error:
                if len(names) == 1:
                    raise
                say(f"{each}: {error}")  # the others shall be run
                broken.append(each)
                continue
            emit(result) if as_json else _show(result, Path(output, each, f"{result['run']}.json"))
    if broken:
        raise ValueError(f"could not run {', '.join(broken)}, see above")


def _options(items: list[str], tasks: "list[Task]") -> dict[str, str]:
    found: dict[str, str] = {}
    known = {name for task in tasks for name in task.options}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or key not in known:
            said = f"there are {', '.join(sorted(known))}" if known else "the task has none"
            raise typer.BadParameter(f"{item!r}: write KEY=VALUE; {said}", param_hint="--option")
        found[key] = value
    return found


def _list(tasks: "dict[str, Task]") -> None:
    for task in tasks.values():
        show(f"{task.name:18} {task.title} ({task.hub_id or 'from a folder'}, {task.split})")
        for key, meaning in task.options.items():
            show(f"{'':18}   --option {key}=: {meaning}")


def _show(result: dict[str, Any], path: Path) -> None:
    show(f"{result['title']}: {result['model']}, n = {result['n']}")
    for key, value in result["metrics"].items():
        mark = "  <" if key == result["primary_metric"] else ""
        show(f"  {key:32} {value:10.2f}{mark}" if isinstance(value, float) else f"  {key:32} {value!s:>10}{mark}")
    failed = result["failed"]
    for failure in failed[:_SHOWN]:
        say(f"  failed: {failure['id']}: {failure['error']}")
    if failed:
        say(f"  {len(failed)} of {result['n']} failed and count as wrong; {path} lists them")
    if "reason" in result:
        say(f"  {result['reason']}")
    if skipped := result.get("skipped"):
        say(f"  {len(skipped)} documents could not be embedded; {path} lists them")
    if "server" in result and result["primary_metric"] is None:
        say(f"  for {result['server']}: {result['submission']}")
    say(f"  {path}")

"""`sugar-hf serve`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .ask_command import template_of
from .loading import load_embedder
from .options import Device, Dtype
from .output import say

KEY = "SUGAR_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIB = 2**20


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="Folder or Hub name of the model. Default: the index's, else ./sugar, else the mini model.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Folder of an index, to be searched and answered from.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of the machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=KEY, help="Key that requests have to give. In the environment, no other user sees it."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model. Default: its own name.")] = None,
    generate_with: Annotated[
        Literal["model", "base"], typer.Option(help="Answer with the model, or with its base: adapters off.")
    ] = "model",
    dimensions: Annotated[
        list[int] | None,
        typer.Option(
            help="Another width of vectors that requests may ask for, of a model trained with matryoshka_dims; may be "
            "given several times."
        ),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch images from public addresses that requests name.")
    ] = False,
    max_body_mib: Annotated[int, typer.Option(min=1, help="The largest request, in MiB.")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of all images of a request.")] = 100_000_000,
    max_inputs: Annotated[int, typer.Option(min=1, help="Inputs of a request.")] = 2048,
    max_slices: Annotated[int, typer.Option(min=1, help="Texts and images of an input.")] = 256,
    max_input_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an input or prompt. Default: what the model takes.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 2048,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of inputs that are embedded together.")] = 16_384,
    batch_wait_ms: Annotated[
        float, typer.Option(min=0, help="How long a batch waits for as many requests as the last one had.")
    ] = 2.0,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests in progress; more get 429.")] = 256,
    queue: Annotated[int, typer.Option(min=1, help="Generations that may wait; more get 429.")] = 32,
    together: Annotated[int, typer.Option(min=1, help="Answers to chats that are generated together.")] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Documents that an answer looks for.")] = 5,
    min_score: Annotated[float | None, typer.Option(help="Answers leave out documents below this cosine.")] = None,
    rerank: Annotated[
        int | None,
        typer.Option(min=1, help="Of how many documents that it finds an answer takes the best by judgement."),
    ] = None,
    max_context_tokens: Annotated[int, typer.Option(min=1, help="Tokens of documents in a prompt.")] = 2048,
    template: Annotated[
        str, typer.Option(help="Words of the prompt with documents, as for `ask`.")
    ] = "documents-first",
    refresh_seconds: Annotated[
        float, typer.Option(min=0.1, help="How often to look whether the index on disk has changed.")
    ] = 2.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="How long requests in progress may take after a signal to end.")
    ] = 30.0,
    access_log: Annotated[bool, typer.Option("--access-log", help="Write a line for each request.")] = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Serve a model over HTTP: chats, embeddings and ranks as in the OpenAI API; with an index, search and answers.

    \b
      sugar-hf serve sugar
      sugar-hf serve sugar --index photos.index --port 8080
      SUGAR_API_KEY=... sugar-hf serve sugar --index photos.index --host 0.0.0.0
      sugar-hf serve adapters --generate-with base
    """
    words = template_of(template)
    try:
        from sugar_hf.serving import Engine, Limits, ServingOptions, create_app, run_server
    except ModuleNotFoundError as error:
        raise ImportError(f'{error.name} is missing: pip install "sugar-hf[serve]"') from error
    from sugar_hf.retrieval.index import SugarIndex

    if api_key == "":
        raise typer.BadParameter(f"the key is empty; leave {KEY} unset for none", param_hint="--api-key")
    opened = None if index is None else SugarIndex.load(index)
    embedder = load_embedder(model, device, dtype, 8, settings=None if opened is None else opened.info()["settings"])
    limits = Limits(
        body_bytes=max_body_mib * MIB,
        pixels=max_pixels,
        samples=max_inputs,
        slices=max_slices,
        input_tokens=max_input_tokens,
        new_tokens=max_new_tokens,
        allow_urls=allow_urls,
    )
    options: dict[str, Any] = {"template": words, "top_k": top_k, "min_score": min_score, "rerank": rerank}
    engine = Engine(
        embedder,
        opened,
        ServingOptions(
            name=name,
            limits=limits,
            dimensions=tuple(dimensions or ()),
            generate_with=generate_with,
            batch_tokens=batch_tokens,
            batch_wait=batch_wait_ms / 1000,
            most_requests=max_requests,
            most_generations_waiting=queue,
            most_generations_together=together,
            max_context_tokens=max_context_tokens,
            refresh_seconds=refresh_seconds,
            **options,
        ),
    )
    is_local = host in LOOPBACK
    if not is_local and api_key is None:
        say(f"Warning: everybody who reaches {host} may ask this server. Set {KEY}, or leave --host out.")
    os.environ.pop(KEY, None)  # no child of this process needs it
    # behind a key, no page whose name was made to lead here can do harm
    app = create_app(engine, api_key=api_key, hosts=LOOPBACK if is_local and api_key is None else None)
    say(f"model {engine.name}" + (f", index {index}: the search page is at /" if index is not None else ""))
    run_server(app, host, port, drain_seconds=drain_seconds, access_log=access_log)

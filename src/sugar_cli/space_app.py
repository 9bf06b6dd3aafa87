"""The page of a Space: a chat, a search and answers from what is found. `app.py` of a Space is a copy of this file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("SUGAR_HF_URLS", "none")  # no visitor's input makes this machine call another

try:
    import spaces  # first of all, as it prepares torch for ZeroGPU
except ImportError:
    spaces = None

import gradio as gr
import torch
from gradio.utils import get_upload_folder

from sugar_hf import SugarForConditionalGeneration, SugarIndex, SugarProcessor, SugarRag
from sugar_hf.retrieval import SugarEmbedder

SETTINGS = json.loads(Path(__file__).with_name("space.json").read_text(encoding="utf-8"))
HEADER = ["", "score", "document", "what it says"]
MAX_CHARACTERS = 20_000
SHOWN_CHARACTERS = 200

device = "cuda" if torch.cuda.is_available() else "cpu"
processor = SugarProcessor.from_pretrained(SETTINGS["model"])
processor.max_characters = MAX_CHARACTERS
model = SugarForConditionalGeneration.from_pretrained(SETTINGS["model"]).to(device)
index: SugarIndex | None = None
rag: SugarRag | None = None
if SETTINGS["index"]:
    is_folder = Path(SETTINGS["index"]).is_dir()
    index = SugarIndex.load(SETTINGS["index"]) if is_folder else SugarIndex.from_hub(SETTINGS["index"])
    rag = SugarRag(model, processor, index, top_k=SETTINGS["top_k"])
embedder = SugarEmbedder(model, processor) if rag is None else rag.embedder


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have the function run where ZeroGPU lends a GPU; anywhere else it stays as it is."""
    return function if spaces is None else spaces.GPU(function)


def sample_of(text: str | None, image: Any) -> list[Any]:
    """Return the picture and the words as one sample, or tell the visitor that there is nothing."""
    sample = [part for part in (image, (text or "").strip()) if part is not None and part != ""]
    if not sample:
        raise gr.Error("Write something, or give a picture.", print_exception=False)
    return sample


def shown(sample: list[Any]) -> tuple[str, list[Any]]:
    """Return the texts of a document, shortened, and its pictures."""
    texts: list[str] = []
    images: list[Any] = []
    for message in sample:
        for part in message["content"] if isinstance(message, dict) else [message]:
            value: Any = part
            if isinstance(part, dict):
                value = part["text"] if part["type"] == "text" else part["image"]
            (texts if isinstance(value, str) else images).append(value)
    text = " ".join(texts)
    return (text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rstrip() + " …"), images


def as_tables(hits: Any) -> tuple[list[list[Any]], list[tuple[Any, str]]]:
    """Return hits as rows of a table, and their pictures with captions."""
    rows, pictures = [], []
    for number, hit in enumerate(hits, start=1):
        text, images = shown(hit.document.load())
        rows.append([number, round(hit.score, 4), hit.id, text])
        pictures += [(image, f"{number}. {hit.score:.2f}") for image in images]
    return rows, pictures


@on_gpu
def chat(message: dict[str, Any], history: list[dict[str, Any]]) -> str:
    """Answer the last message of a chat with pictures."""
    turns = [(turn["role"], turn["content"]) for turn in history]
    turns.append(("user", [*({"path": file} for file in message["files"]), message["text"]]))
    messages: list[dict[str, Any]] = []
    for role, content in turns:
        parts = _chat_parts(content)
        if parts and messages and messages[-1]["role"] == role:
            messages[-1]["content"] += parts
        elif parts:
            messages.append({"role": role, "content": parts})
    if not messages or messages[-1]["role"] != "user":
        raise gr.Error("Write something, or give a picture.", print_exception=False)
    try:
        inputs = processor([messages], add_generation_prompt=True).to(model.device, dtype=model.dtype)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=SETTINGS["max_new_tokens"], do_sample=False)
    return str(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def _chat_parts(content: Any) -> list[dict[str, Any]]:
    """The parts of a message, in any of the forms in which Gradio has them."""
    parts: list[dict[str, Any]] = []
    for part in content if isinstance(content, list | tuple) else [content]:
        if isinstance(part, dict) and isinstance(part.get("file"), dict):
            part = part["file"]
        if isinstance(part, dict) and part.get("path"):
            file = Path(str(part["path"])).resolve()
            if not file.is_relative_to(Path(get_upload_folder()).resolve()):
                raise gr.Error("Upload the picture.", print_exception=False)
            parts.append({"type": "image", "path": str(file)})
            continue
        text = part.get("text") if isinstance(part, dict) else part
        if isinstance(text, str) and text.strip():
            parts.append({"type": "text", "text": text})
    return parts


@on_gpu
def search(text: str | None, image: Any) -> tuple[list[list[Any]], list[tuple[Any, str]]]:
    """Find the documents nearest to words and a picture."""
    sample = sample_of(text, image)
    assert index is not None
    try:
        return as_tables(index.search_vectors(embedder.encode([sample]), SETTINGS["top_k"])[0])
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


@on_gpu
def answer(text: str | None, image: Any) -> tuple[str, list[list[Any]], list[tuple[Any, str]]]:
    """Answer from the documents that are found for the question."""
    sample = sample_of(text, image)
    assert rag is not None
    try:
        found = rag.answer({"query": sample}, max_new_tokens=SETTINGS["max_new_tokens"])
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    return found.text.strip(), *as_tables(found.hits)


@on_gpu
def compare(
    text: str | None, image: Any, words: str | None, pictures: Any
) -> tuple[list[list[Any]], list[tuple[Any, str]]]:
    """Rank words and pictures of the visitor by how near they are to the query: where there is no index."""
    sample = sample_of(text, image)
    candidates = [line.strip() for line in (words or "").splitlines() if line.strip()]
    candidates += [picture for picture, _ in pictures or ()]
    if not candidates:
        raise gr.Error("Give some words, one a line, or pictures to compare with.", print_exception=False)
    try:
        query, *vectors = embedder.encode([sample, *([candidate] for candidate in candidates)])
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    ranked = sorted(
        ((float(query @ vector), each) for vector, each in zip(vectors, candidates, strict=True)), key=_first
    )
    rows = [
        [number, round(score, 4), "", each if isinstance(each, str) else "a picture"]
        for number, (score, each) in enumerate(reversed(ranked), start=1)
    ]
    images = [(each, f"{score:.2f}") for score, each in reversed(ranked) if not isinstance(each, str)]
    return rows, images


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]


def examples() -> list[str]:
    """Return the examples of the settings, or the first texts of the index."""
    if SETTINGS["examples"] or index is None:
        return list(SETTINGS["examples"])
    texts = (shown(index.documents[number])[0] for number in range(min(3, len(index))))
    return [text for text in texts if text]


with gr.Blocks(title=SETTINGS["title"], fill_width=True) as demo:
    gr.Markdown(f"# {SETTINGS['title']}\n\n{SETTINGS['description']}")
    with gr.Row():
        with gr.Column():
            gr.ChatInterface(
                chat,
                multimodal=True,
                chatbot=gr.Chatbot(label="Chat", height=500, elem_id="chat"),
                textbox=gr.MultimodalTextbox(
                    file_types=["image"], placeholder="Ask, with pictures if you like", elem_id="message"
                ),
                api_name="chat",
            )
        with gr.Column():
            question = gr.Textbox(label="Words", lines=2, elem_id="words")
            picture = gr.Image(label="Picture", type="pil", height=180, elem_id="picture")
            if rag is None:
                words = gr.Textbox(label="Compare with words, one a line", lines=3, elem_id="candidates")
                others = gr.Gallery(label="and with pictures", type="pil", height=180)
            with gr.Row():
                first = gr.Button("Search" if rag is not None else "Compare", variant="primary", elem_id="search")
                second = gr.Button("Answer", elem_id="answer", visible=rag is not None)
            told = gr.Textbox(label="Answer", elem_id="told", visible=rag is not None)
            if examples():
                gr.Examples([[text] for text in examples()], [question])
    widths = ["5%", "10%", "20%", "65%"]
    table = gr.Dataframe(headers=HEADER, label="Found", interactive=False, wrap=True, column_widths=widths)
    gallery = gr.Gallery(label="Pictures", height=260, columns=8, elem_id="gallery")
    if rag is None:
        first.click(compare, [question, picture, words, others], [table, gallery], api_name="compare")
    else:
        first.click(search, [question, picture], [table, gallery], api_name="search")
        second.click(answer, [question, picture], [told, table, gallery], api_name="answer")

if __name__ == "__main__":
    demo.launch()

"""One running model that chats, embeds, searches and answers, over HTTP. `pip install "sugar-hf[serve]"`."""

from .contents import Limits
from .engine import Engine, ServingOptions, open_engine
from .server import create_app
from .uvicorn_server import run_server

__all__ = ["Engine", "Limits", "ServingOptions", "create_app", "open_engine", "run_server"]

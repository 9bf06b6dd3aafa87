"""Doing stages, in this process or in several."""

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from threading import Thread

import torch
from datasets import disable_progress_bars
from tqdm.auto import tqdm
from transformers.utils import logging

from .stages import Lab, Stage, do_stage, unfinished


def run_stages(lab: Lab, stages: Sequence[Stage], workers: int = 1) -> None:
    """Do what is left of stages, and go on after one that fails.

    Args:
        lab: what is run.
        stages: from `all_stages`.
        workers: processes; with 1 everything is done in this one. They share the cores.

    Raises:
        RuntimeError: stages failed; it names them, and those that were left out because they need one of them.
        ValueError: something is there that was made with other settings.
    """
    left = unfinished(lab, stages)
    failed: dict[str, str] = {}
    with tqdm(total=len(left), desc="lab", unit="stage") as bar:
        if workers > 1:
            _run_in_processes(lab, left, workers, failed, bar)
        else:
            _settle(None)
            for stage in left:
                bar.set_postfix_str(stage.name)
                if not _is_lost(stage, failed):
                    try:
                        do_stage(lab, stage)
                    except Exception as error:  # the other stages shall be done
                        failed[stage.name] = f"{type(error).__name__}: {error}"
                bar.update()
    if failed:
        raise RuntimeError("not done: " + "; ".join(f"{name} ({error})" for name, error in failed.items()))


def _run_in_processes(lab: Lab, left: Sequence[Stage], workers: int, failed: dict[str, str], bar: tqdm) -> None:
    """Give stages to processes, the first ones first, as soon as what they need is done."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    running: dict[Future[None], Stage] = {}
    waiting = list(left)
    os.environ["TQDM_DISABLE"] = "1"  # for the processes, which start with the first stages; this one has read it
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _settle, (threads,))
    try:
        while waiting or running:
            blocked = {stage.name for stage in (*waiting, *running.values())}
            for stage in list(waiting):
                if _is_lost(stage, failed):
                    bar.update()
                elif len(running) < workers and blocked.isdisjoint(stage.needs):
                    running[pool.submit(do_stage, lab, stage)] = stage
                else:
                    continue
                waiting.remove(stage)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                stage = running.pop(future)
                if (error := future.exception()) is not None:
                    failed[stage.name] = f"{type(error).__name__}: {error}"
                bar.set_postfix_str(stage.name)
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
        del os.environ["TQDM_DISABLE"]


def _is_lost(stage: Stage, failed: dict[str, str]) -> bool:
    """Whether a stage needs one that failed; then it has failed, too."""
    lost = next((name for name in stage.needs if name in failed), None)
    if lost is not None:
        failed[stage.name] = f"needs {lost}"
    return lost is not None


def _settle(threads: int | None) -> None:
    """Leave the standard error output to the one bar; in a process of several, take a share of the cores."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    if threads is not None:
        torch.set_num_threads(threads)
        Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process if the one that started it is killed, which would leave it waiting for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

"""The command line. Exit status: 0 done, 1 failed, 2 wrong input; a gate adds 3 and 4. torch is imported only when it is needed. L9."""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated

import typer

from titer import __version__
from titer.cli.about import doctor, list_, models_get, report, runs_, show, verify, view
from titer.cli.measure import audit, evaluate, inspect, lm_eval
from titer.cli.studies import demo, study, sweep
from titer.cli.training import align, finetune, repair
from titer.cli.trouble import INTERRUPTED, check_surroundings, fail, file_trouble, os_message
from titer.core.errors import TiterError, visible

FORMER = {"rate": "lr", "ratio": "poison-ratio"}  # former names of options of align and finetune, which scripts still use

# Set before torch is imported: OpenMP's idle threads spin for a while, then sleep. By default they spin for ever, and so stall each
# other when another program uses a core: a nano step took 1.5 s instead of 0.2 to 0.6 (docs/log.md). On idle cores this costs little.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure whether a language model's safety alignment holds, and see why it held or broke.",
)
models_app = typer.Typer(no_args_is_help=True, help="Fetch models that Titer knows by name.")
app.add_typer(models_app, name="models")
models_app.command("get")(models_get)
for command in (demo, evaluate, audit, study, sweep):
    app.command()(command)
for training in (align, finetune):
    app.command(context_settings={"token_normalize_func": lambda name: FORMER.get(name, name)})(training)
app.command()(repair)
app.command("lm-eval")(lm_eval)
app.command()(inspect)
app.command()(report)
app.command()(verify)
app.command()(view)
app.command("list")(list_)
app.command()(show)
app.command("runs")(runs_)
app.command()(doctor)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Runs the command line. A foreseen error ends it with one clear message and an exit status.

    SIGTERM, which schedulers and `timeout` send, is handled like Ctrl-C, so that an audit still writes its page. It is not handled in a
    training by several processes, since their launcher ends them all together.
    """
    if "LOCAL_RANK" not in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check_surroundings()
        app()
    except TiterError as error:
        fail(str(error), error.status)
    except OSError as error:
        fail(os_message(error), 2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            fail("stopped. Run the same command again to go on from here.", 1)
        raise
    except BaseException as error:
        if (
            type(error).__name__ == "PanicException"
        ):  # tokenizers and safetensors (Rust) raise it: it is no Exception, and has printed its own lines
            fail(
                f"a library failed: {visible(str(error), 200)}. Next: check the files that you gave, then run titer doctor.",
                1,
            )
        if not isinstance(error, Exception) or (code := file_trouble(error)) is None:
            raise
        fail(os_message(OSError(code, os.strerror(code))), 2)

"""The command line: a table of verbs, each imported only when it is called, and the exit codes.

Knows: which verbs exist, what a person is told when something fails. Does not know: what a verb does.
A single verb is a plain function with Typer annotations that returns None; a group is a `typer.Typer` named `app`.
`--help` and `--version` read the table alone, so that they answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from optative import __version__
from optative.core.errors import BAD_INPUT, DONE, INTERRUPTED, OUR_FAULT, OptativeError, nearest

PIPE_CLOSED = 141  # what shells report for a program whose reader went away (128 + SIGPIPE)
ENVIRONMENT = {errno.EACCES, errno.EPERM, errno.EROFS}  # not our fault, and the system's own sentence is clear
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
RESUMABLE = {"run", "align", "systems"}
KEPT, AGAIN = "What is already written is kept", "run the same command to resume"


class Verb(NamedTuple):
    target: str  # "module:attribute", below optative.cli
    help: str
    panel: str
    example: str


MAKE, LOOK, HELP = "Make", "Look", "Set up"

VERBS: dict[str, Verb] = {
    "init": Verb("init:init", "Write a commented spec to start from.", MAKE, "optative init my_run.yaml"),
    "validate": Verb(
        "validate:validate", "Check a spec without loading a model.", MAKE, "optative validate my_run.yaml"
    ),
    "run": Verb(
        "run:run",
        "Walk the whole loop: ask, steer, check.",
        MAKE,
        "optative run my_run.yaml --set optimizer.dpo.beta=0.2",
    ),
    "align": Verb(
        "align:align",
        "Align a model on your own preference file.",
        MAKE,
        "optative align pairs.jsonl --model path/to/model",
    ),
    "sft": Verb(
        "sft:sft",
        "Train a model on answers that it should give.",
        MAKE,
        "optative sft answers.jsonl --model path/to/model",
    ),
    "export": Verb(
        "export:export",
        "Merge a run's adapter into a model.",
        MAKE,
        "optative export runs/demo-1a2b3c4d --out my-model",
    ),
    "evaluate": Verb(
        "evaluate:evaluate",
        "Measure any model or endpoint.",
        LOOK,
        "optative evaluate path/to/model --ifeval input_data.jsonl",
    ),
    "compare": Verb(
        "compare:compare", "Compare two runs or result files, paired.", LOOK, "optative compare runs/first runs/second"
    ),
    "diagnose": Verb(
        "diagnose:app",
        "Show what a model ranks right, and why.",
        LOOK,
        "optative diagnose pairs pairs.jsonl --model runs/mine/adapter --reference smollm2-135m-instruct",
    ),
    "report": Verb(
        "report:report", "Write a run's report as one HTML file.", LOOK, "optative report runs/demo-1a2b3c4d"
    ),
    "chat": Verb(
        "chat:chat", "Talk to the base and the steered model, side by side.", LOOK, "optative chat runs/demo-1a2b3c4d"
    ),
    "data": Verb("data:app", "Look into a file of preferences.", LOOK, "optative data inspect pairs.jsonl"),
    "explain": Verb(
        "explain:explain",
        "Say what a name in a spec stands for: options, needs, source.",
        LOOK,
        "optative explain optimizer.simpo",
    ),
    "systems": Verb("systems:app", "List, show and run the published systems.", LOOK, "optative systems list"),
    "models": Verb("models:app", "Get and list models.", HELP, "optative models get"),
    "env": Verb("env:env", "Print versions and hardware.", HELP, "optative env --json"),
}


class Verbs(TyperGroup):
    """The table as a command group: a name and a sentence for `--help`, the module only when its verb is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        verb = VERBS.get(cmd_name)
        return verb and TyperCommand(cmd_name, help=verb.help, rich_help_panel=verb.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name = args[0]
        if name not in VERBS:
            close = nearest(name, VERBS)
            ctx.fail(
                f"No such verb {name!r}." + (f" Did you mean {close!r}?" if close else f" Verbs: {', '.join(VERBS)}.")
            )
        return name, load(name), args[1:]


def load(name: str) -> Any:
    """The command behind a verb; its module is imported now."""
    verb = VERBS[name]
    module, _, attribute = verb.target.partition(":")
    target = getattr(import_module(f"optative.cli.{module}"), attribute)
    epilog = f"Example: {verb.example}"
    if isinstance(target, typer.Typer):
        group = get_group(target)
        group.name, group.epilog = name, group.epilog or epilog
        group.help = group.help or verb.help
        for command in group.commands.values():
            command.help = _reflowed(command.help or "")
        return group
    single = typer.Typer(add_completion=False)
    single.command(name, epilog=epilog, help=_reflowed(target.__doc__ or verb.help))(target)
    return get_command(single)


def _reflowed(text: str) -> str:
    """A docstring whose paragraphs are one line each: the terminal breaks them, not the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


app = typer.Typer(
    cls=Verbs,
    subcommand_metavar="VERB [ARGS]...",
    add_completion=False,
    epilog="Example: optative run --quick   (a small walk of the whole loop, in minutes)",
)


def _version(asked: bool) -> None:
    if asked:
        print(f"optative {__version__}")
        raise typer.Exit()


@app.callback()
def _optative(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Turn what people want into models that do it, and prove that they do.

    State an objective, ask for feedback, steer a model with it, and check the result against held-out truth.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (see `core.errors`)."""
    # Before torch is imported: threads that wait for work then sleep, so that another busy process costs a share of
    # the time and not, as spinning does, most of it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = _call(arguments)
        sys.stdout.flush()
        return code
    except OptativeError as error:
        return _say(f"Error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except BrokenPipeError:
        return _pipe_closed()
    except Exception as error:
        if _disk_full(error):
            return _say(f"Error: no space left on device: {error}\n  {KEPT}; free space and {AGAIN}.", BAD_INPUT)
        if isinstance(error, OSError) and error.errno in ENVIRONMENT:
            return _say(f"Error: {error}", BAD_INPUT)
        traceback.print_exc()
        return _say(
            "Error: this is a fault of optative, not of your input. Please report it with the lines above.", OUR_FAULT
        )


def _call(arguments: list[str]) -> int:
    usage_error: Any = typer.BadParameter.__mro__[1]  # click's UsageError; Typer carries click inside since 0.26
    try:
        code = get_command(app).main(arguments, prog_name="optative", standalone_mode=False)
    except usage_error as error:
        return _usage(error)
    except SystemExit as error:  # Typer's answer to a closed pipe
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        raise
    if code == INTERRUPTED:  # Typer's answer to Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else DONE


def _usage(error: Any) -> int:
    """A command line that cannot be read: the usage, the fault, the nearest right word, where help is."""
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a verb has printed its help by now
        return BAD_INPUT
    message, context = error.format_message(), error.ctx
    option = getattr(error, "option_name", None)
    if option is not None and type(error).__name__ == "NoSuchOption":
        close = nearest(option, [name for parameter in context.command.get_params(context) for name in parameter.opts])
        message = f"No such option {option!r}." + (f" Did you mean {close!r}?" if close else "")
    if context is None:
        return _say(f"Error: {message}", BAD_INPUT)
    return _say(f"{context.get_usage()}\nError: {message}\n  `{context.command_path} --help` tells more.", BAD_INPUT)


def _interrupted(arguments: Sequence[str]) -> int:
    return _say("Interrupted." + (f" {KEPT}; {AGAIN}." if arguments[0] in RESUMABLE else ""), INTERRUPTED)


def _pipe_closed() -> int:
    """The reader went away (`optative ... | head`): no message, and none from Python when it closes stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PIPE_CLOSED


def _disk_full(error: BaseException | None) -> bool:
    """Is a full disk behind it? Libraries wrap the system's error in one of their own, or only quote it."""
    while error is not None:
        if getattr(error, "errno", None) in DISK_FULL or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code

"""Upload a model's folder with its card to a Hugging Face repository, private unless said otherwise. L8.

Only the files that a model needs are uploaded, by their names (safetensors, configuration, tokenizer, card, licence); other files are
left out and listed. Refused are a pickle, a link that leads out of the folder, files of a run (they hold models' answers), and a
folder without a card. All this is checked before anything is sent to the hub. The token is that of huggingface_hub (`hf auth login`,
HF_TOKEN); no message contains it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, errors, get_token
from huggingface_hub.utils import validate_repo_id

from titer import __version__
from titer.core.errors import TiterError, visible
from titer.core.run import Tell, quiet
from titer.models.checkpoint import open_checkpoint
from titer.models.lora_weights import Adapter, is_adapter
from titer.models.safetensors_io import PICKLES, names

CARD = "README.md"
SENT = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json", CARD),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("*.model", "*.tiktoken", "*.jinja", "chat_template.json", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*"),
)
RUNS = (  # files of the run store and of reports: they hold prompts and answers
    *("DONE", "manifest.json", "inputs.json", "samples.jsonl", "table.jsonl", "*.part.jsonl", "report.html", "results.csv", "claims.json"),
    *("summary.json", "answers.jsonl", "prompts.csv", "samples", "verdicts", "stages", "replies"),
)
TEMPLATES = "additional_chat_templates/"  # the only subfolder of a model that transformers knows
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)."
LATER = "run the same command again later: what has been uploaded is not sent twice."


class Published(NamedTuple):
    """The result of an upload: the model's URL, whether it is private, the files that were sent, and those left out."""

    url: str
    private: bool
    files: tuple[str, ...]
    left_out: tuple[str, ...]


class Contents(NamedTuple):
    """The files of a model's folder that will be sent, and the names of those left out."""

    files: dict[str, Path]
    left_out: tuple[str, ...]


def push(
    folder: Path,
    repo_id: str,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "Model with its Titer card",
    tell: Tell = quiet,
) -> Published:
    """Creates the repository if it does not exist, and commits the folder's model to it.

    Errors: the folder is one that `contents` refuses; no token, or one that may not write; a name that the hub does not accept; the
    repository is public, but `private` is set; the hub is switched off (HF_HUB_OFFLINE), cannot be reached or fails.
    """
    found = contents(folder)
    _named(repo_id)
    with _asking(repo_id, lambda: token):
        token = token or get_token()
    if not token:
        raise TiterError("no token of the Hugging Face hub is set", next_step=LOGIN)
    api = HfApi(endpoint=endpoint, token=token, library_name="titer", library_version=__version__)
    with _asking(repo_id, lambda: token):
        hidden = _made(api, repo_id, private)
        if private and not hidden:
            raise TiterError(
                f"{repo_id} exists and is public, so whatever is sent there can be seen by everybody",
                expected="a private repository, or a request to publish openly",
                next_step="give another name, make it private on the hub, or add --public (from Python: private=False).",
            )
        tell(f"sending {len(found.files)} files, {sum(path.stat().st_size for path in found.files.values()) / 1e6:.1f} MB")
        additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in found.files.items()]
        api.create_commit(repo_id, additions, commit_message=message, repo_type="model")
    return Published(f"{api.endpoint}/{repo_id}", hidden, tuple(found.files), found.left_out)


def _named(repo_id: str) -> None:
    """Checks a repository's name. Errors: it is not OWNER/NAME."""
    try:
        validate_repo_id(repo_id)
        wrong = "" if "/" in repo_id else "it names no owner"
    except errors.HFValidationError as error:
        wrong = _said(error, "")
    if wrong:
        raise TiterError(
            f"{visible(repo_id, 100)!r} is no name of a repository ({wrong})", expected="OWNER/NAME of letters, digits, '-', '_' and '.'"
        )


def _made(api: HfApi, repo_id: str, private: bool) -> bool:
    """Creates the repository, or finds the existing one; returns whether it is private."""
    try:
        api.create_repo(repo_id, private=private, repo_type="model")
    except errors.HfHubHTTPError as error:
        if error.response.status_code not in (402, 403, 409):  # 409: it exists; 402, 403: the token may not create one, but perhaps write
            raise
        try:
            return bool(api.model_info(repo_id).private)
        except errors.HfHubHTTPError:
            raise error from None
    return bool(api.model_info(repo_id).private)


def contents(folder: Path) -> Contents:
    """Returns which files of a model's folder will be sent, and which are left out.

    Errors: no model; a pickle; a link that leads out of the folder; files of a run; no card; a damaged file.
    """
    if not folder.is_dir():
        raise TiterError(f"no folder at {visible(str(folder), 160)!r}", expected="the folder of a model")
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for name, path in _listed(folder):
        _allowed(folder, name, path)
        if path.is_file() and _is_sent(name):
            files[name] = path
        elif not path.is_dir() or path.is_symlink():
            left_out.append(name)
    _ = Adapter(folder).key if is_adapter(folder) else open_checkpoint(folder)
    for name, path in files.items():
        if name.endswith(".safetensors"):
            names(path)  # reads its header, which fails if it is no safetensors file
    if CARD not in files:
        raise TiterError(
            f"{visible(str(folder), 160)} has no {CARD}",
            expected="a card that says what was measured",
            next_step="write one from a report of titer audit or titer evaluate on this model (report.card.write_card).",
        )
    return Contents(files, tuple(left_out))


def _is_sent(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in SENT) and ("/" not in name or name.startswith(TEMPLATES))


def _listed(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name within the folder, path) of every file and folder that is not hidden; links are not followed."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*folders, *(file for file in files if not file.startswith("."))]):
            path = Path(place, name)
            yield path.relative_to(folder).as_posix(), path


def _allowed(folder: Path, name: str, path: Path) -> None:
    """Checks one file or folder. Errors: a pickle; a file of a run or a report; a link that leads out of the folder."""
    shown = visible(name, 120)
    if any(fnmatch(path.name.lower(), pattern) for pattern in PICKLES):
        raise TiterError(
            f"{shown} is a pickle, which runs code where it is opened",
            expected="weights as safetensors alone",
            next_step="take it out of the folder (transformers: save_pretrained writes safetensors).",
        )
    if path.name in RUNS or fnmatch(path.name, "*.part.jsonl"):
        raise TiterError(
            f"{visible(str(folder), 160)} holds {shown}, which a run or a report keeps: prompts and answers may be in it",
            expected="a folder of a model alone",
            next_step="give the model's own folder (of a stage: its folder model), or move that file elsewhere.",
        )
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise TiterError(
            f"{shown} is a link that leads out of the folder",
            expected="files of the folder itself",
            next_step="copy the folder with what its links mean (cp -rL), look at it, and publish the copy.",
        )


@contextmanager
def _asking(repo: str, token: Callable[[], str | None]) -> Iterator[None]:
    """Turns whatever the library raises into one clear error that does not contain the token."""
    try:
        yield
    except TiterError:  # it is clear already
        raise
    except Exception as error:  # noqa: BLE001  the library, its HTTP client and its upload client raise what they like
        within = error.__cause__ if isinstance(error, RuntimeError) else None  # the error of one file among several
        raise _trouble(visible(repo, 100), within if isinstance(within, Exception) else error, token() or "") from None


def _trouble(repo: str, error: Exception, token: str) -> TiterError:
    """Returns the error that says what went wrong and what to do. Its status is 1 if trying again later may help."""
    said = _said(error, token)
    if isinstance(error, errors.GatedRepoError):
        return TiterError(
            f"{repo} is gated: its owner wants to be asked", next_step=f"ask for access at https://huggingface.co/{repo}, then log in."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(repo, error.response.status_code, said)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return TiterError("the hub is switched off by HF_HUB_OFFLINE", next_step="unset it, then run the same command again.")
    if isinstance(error, errors.HTTPError):
        return TiterError(f"the hub could not be reached ({said})", next_step=f"check the network, then {LATER}", status=1)
    if isinstance(error, ValueError) and f"metadata in {CARD}" in said:
        return TiterError(f"the hub does not take the header of {CARD} ({said})", next_step="mend it, then run the same command again.")
    return TiterError(f"{repo} was not published ({said})", next_step=LATER, status=1)


def _refused(repo: str, status: int, said: str) -> TiterError:
    """Returns the error for an HTTP status with which the hub refused the request or failed."""
    if status == 401:
        return TiterError(f"the hub does not accept this token for {repo} ({said})", next_step=LOGIN)
    if status in (402, 403):
        return TiterError(
            f"this token may not write to {repo} ({said})", next_step=f"check the owner's name and the token's rights: {LOGIN}"
        )
    if status == 404:
        return TiterError(f"the hub has no {repo}, or this token may not see it ({said})", next_step=f"check the name; {LOGIN}")
    if status in (408, 429) or status >= 500:
        return TiterError(f"the hub failed while it was asked about {repo} ({status}: {said})", next_step=LATER, status=1)
    return TiterError(f"the hub refused {repo} ({status}: {said})", next_step="mend what it names, then run the same command again.")


def _said(error: Exception, token: str) -> str:
    """Returns the error's own message on one line, with the token replaced by "(token)"."""
    own = getattr(error, "server_message", None) or " ".join(str(error).split())
    text = f"{type(error).__name__}: {own}" if own else type(error).__name__
    return visible(text.replace(token, "(token)") if token else text, 240)

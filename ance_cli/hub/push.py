"""`ance checkpoint push`: uploads a checkpoint and its model card to the hub in one commit.

Of a dataset, `push_dataset` chooses the files and writes the card.
"""

from __future__ import annotations

from pathlib import Path

from ance_cli.call import Call
from ance_cli.errors import BadInput, ResourceExhausted, UsageProblem
from ance_cli.formats.checkpoint_folder import is_known, leads_out
from ance_cli.formats.summary import Summary
from ance_cli.hub.card import checkpoint_at, model_card
from ance_cli.models.checkpoint import Checkpoint


def push(
    place: Path,
    repo_id: str,
    public: bool = False,
    call: Call = Call(),
) -> Summary:
    """Create the model `repo_id` on the hub if it does not exist, private unless `public`, and
    commit the checkpoint to it.

    `place` is a checkpoint or a run folder (its newest checkpoint). Uploads the files that make a
    checkpoint (weights as safetensors, configs, tokenizer), and its `README.md` or, if it has none,
    a generated card; other files are named in `left_out`. With `call.dry_run`, lists the files
    without a request to the hub. Raises `UsageProblem` for an invalid id, `BadInput` for a link
    that leads out of the checkpoint, and `ResourceExhausted` if the hub refuses the commit, of
    which it then stores nothing.
    """
    check_repo_id(repo_id)
    checkpoint = checkpoint_at(place)
    content = _content(checkpoint, place, repo_id)
    message = f"Checkpoint {checkpoint.path.name}, by ance"
    return upload("model", content, checkpoint.path, repo_id, public, message, call)


Content = dict[str, Path | bytes]
"""The name of a file on the hub -> the file to upload, or its bytes."""


def check_repo_id(repo_id: str) -> None:
    """Raise `UsageProblem` for an invalid id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageProblem(
            f"{repo_id!r} cannot be a name on the hub ({error})",
            hint="write it as ORG/NAME",
        ) from error


def _content(checkpoint: Checkpoint, place: Path, repo_id: str) -> Content:
    folder, card = checkpoint.path, checkpoint.files.card
    content: Content = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if is_known(path) and path.is_file()
    }
    check_links(content, folder)
    content[card.name] = card if card.exists() else model_card(place, repo_id).encode()
    return content


def check_links(content: Content, folder: Path) -> None:
    """Raise `BadInput` for a file that is a link to a place outside of the folder."""
    for path in content.values():
        if isinstance(path, Path) and leads_out(path, folder):
            raise BadInput(
                f"{path}: is a link to {path.resolve()}, outside of the folder",
                hint="put the file itself in the place of the link",
            )


def upload(
    kind: str,
    content: Content,
    folder: Path,
    repo_id: str,
    public: bool,
    message: str,
    call: Call,
) -> Summary:
    """Commit files of a folder to a repository of a `kind` (model, dataset), which is created if it
    does not exist. See `push`."""
    found: Summary = {
        "kind": f"{kind} on the hub",
        "output": repo_id,
        "up_to_date": False,
        "files": list(content),
        "left_out": _others(folder, content),
        "visibility": "public" if public else "private",
        "total_bytes": {"files": sum(map(_size, content.values()))},
    }
    if call.dry_run:
        return {**found, "dry_run": True}
    call.reporter.say(f"uploading {len(content)} files to the {kind} {repo_id}")
    return {**found, "url": _commit(kind, content, repo_id, public, message)}


def _others(folder: Path, content: Content) -> list[str]:
    """The files in the folder that are not uploaded."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in content)


def _size(data: Path | bytes) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _commit(kind: str, content: Content, repo_id: str, public: bool, message: str) -> str:
    """Upload the files in one commit; returns its address."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo_id, private=not public, exist_ok=True, repo_type=kind)
        commit = api.create_commit(
            repo_id,
            [
                huggingface_hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)
                for path, data in content.items()
            ],
            commit_message=message,
            repo_type=kind,
        )
    except Exception as error:  # the hub's errors and those of its HTTP library share no class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ResourceExhausted(
            f"{repo_id}: the hub refused the {kind} ({reason})",
            hint="log in with `hf auth login` or set HF_TOKEN; --dry-run lists the files",
        ) from error
    return str(commit.commit_url)

"""`ance checkpoint push`: a checkpoint and its model card to the model hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from ance_cli.call import Call
from ance_cli.errors import ResourceExhausted, UsageProblem
from ance_cli.formats.summary import Summary
from ance_cli.hub.card import checkpoint_at, model_card
from ance_cli.models.hub import SUFFIXES


def push(
    place: Path,
    repo_id: str,
    private: bool = False,
    call: Call = Call(),
) -> Summary:
    """Create the model `repo_id` on the hub if it does not exist, and commit the checkpoint to it.

    `place` is a checkpoint or a run folder, whose newest checkpoint is taken. What is uploaded is
    what a checkpoint is made of, weights as safetensors alone, and its `README.md`, or a generated
    card where it has none. `call.dry_run` lists the files and asks the hub nothing. Raises
    `UsageProblem` where the id is none, `ResourceExhausted` where the hub does not take the commit;
    the hub then has everything or nothing.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageProblem(
            f"{repo_id!r} is no name of a model on the hub ({error})", hint="for instance ORG/NAME"
        ) from error
    checkpoint = checkpoint_at(place)
    folder, own = checkpoint.path, checkpoint.files.card
    content: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file()
    }
    content[own.name] = own if own.exists() else model_card(place, repo_id).encode()
    found: Summary = {
        "kind": "model on the hub",
        "output": repo_id,
        "up_to_date": False,
        "files": list(content),
        "total_bytes": {
            "files": sum(
                len(data) if isinstance(data, bytes) else data.stat().st_size
                for data in content.values()
            )
        },
    }
    if call.dry_run:
        return {**found, "dry_run": True}
    call.reporter.say(f"sending {len(content)} files to {repo_id}")
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [
                huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=data)
                for name, data in content.items()
            ],
            commit_message=f"Checkpoint {folder.name}, by ance",
        )
    except Exception as error:  # the hub's errors and those of its HTTP library share no class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ResourceExhausted(
            f"{repo_id}: the hub did not take the checkpoint ({reason})",
            hint="log in with `hf auth login` or set HF_TOKEN; --dry-run lists the files",
        ) from error
    return {**found, "url": str(commit.commit_url)}

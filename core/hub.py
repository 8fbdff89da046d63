"""Models by name: a path of this machine, or a repository of the hub, fetched into its cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from .paths import user_path

MODEL_FILES = ("*.json", "*.txt", "*.safetensors")  # all that a model is read from; no pickle, no code
VARIANTS = ("fp16", "bf16")  # second copies of the same weights, left where they are unless asked for


def is_hub_name(name: str) -> bool:
    """Whether a name is ``owner/model`` and nothing on this machine is meant by it."""
    owner, _, model = name.partition("/")
    return bool(owner and model) and "/" not in model and name[0] not in ".~" and not Path(owner).exists()


def find_model(
    name: str | os.PathLike[str],
    files: Sequence[str] = MODEL_FILES,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: bool | str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Where a model lies, after its files were fetched if it is one of the hub.

    Args:
        name: a path, or ``owner/model``; what exists on this machine is a path.
        files: patterns of the files to fetch.
        subfolder: part of the folder or repository that is the model.
        variant: of its weights, as in ``model.fp16.safetensors``; fetched beside those without.
        revision: branch, tag or commit; like those below it says nothing about a path.
        cache_dir: the cache, if it is another than the hub library's own.
        token: to log in with, instead of the stored one; False uses none.
        local_files_only: take what the cache has and ask no server.
        force_download: fetch again what the cache has.

    Raises:
        ValueError: neither a path nor in the hub's reach, one sentence.
    """
    inner = PurePosixPath(subfolder or ".")
    if inner.is_absolute() or ".." in inner.parts:
        raise ValueError(f"The subfolder {subfolder} leads out of the model; give one inside it.")
    path = user_path(name)
    if not path.exists():
        if not is_hub_name(str(name)):
            raise ValueError(f"There is no model at {path}; check the path.")
        others = [f"*.{other}.*" for other in VARIANTS if other != variant]
        path = _fetch(
            str(name),
            allow_patterns=[str(inner / pattern) for pattern in files],
            ignore_patterns=others,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )
    if not (path / inner).exists():
        raise ValueError(f"{name} has no folder {subfolder}; name one that it has, or none.")
    return path / inner


def _fetch(name: str, **options: object) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    revision = options["revision"]
    model = f"{name} at revision {revision}" if revision else name
    if constants.HF_HUB_OFFLINE:  # some versions ask for the files of a commit all the same
        options["local_files_only"] = True
    try:
        return Path(snapshot_download(name, **options))
    except GatedRepoError as error:
        raise ValueError(
            f"{name} is gated: accept its terms on the hub, then run `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name} has no revision {revision}; look at its branches and tags.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"There is no folder {name}, and the hub gives no model of that name; check the name, or run "
            "`hf auth login` if the model is private."
        ) from error
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{model} is not in the hub's cache on this machine, and the hub was not asked or reached; go "
            "online, or download it first."
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(f"The hub does not hand out {model}: {str(error).splitlines()[0]}") from error

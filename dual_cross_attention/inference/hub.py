"""Models on the Hugging Face Hub: "hf:ORG/NAME@REVISION". Only `model.safetensors` is read, so nothing is unpickled."""

import logging
import os
import re
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dual_cross_attention.errors import InputError
from dual_cross_attention.text import escape

LOGGER = logging.getLogger(__name__)
PREFIX = "hf:"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REVISION = re.compile(r"[\w][\w./-]*")
FILE = "model.safetensors"


def endpoint() -> str | None:
    """Address of the Hub in the environment variable HF_ENDPOINT; None: huggingface.co."""
    return os.environ.get("HF_ENDPOINT") or None


def parse_name(name: str) -> tuple[str, str | None]:
    """Repository and revision of "hf:ORG/NAME" or "hf:ORG/NAME@REVISION"; without one, None: the branch main.

    Raises:
        InputError: another form.
    """
    repository, at, revision = name.removeprefix(PREFIX).partition("@")
    fits = REPOSITORY.fullmatch(repository) and ".." not in repository + revision
    if not fits or (at and not REVISION.fullmatch(revision)):
        raise InputError(f"expected hf:ORG/NAME or hf:ORG/NAME@REVISION, got '{escape(name)}'")
    return repository, revision or None


def download_model(name: str) -> Path:
    """Downloads model.safetensors of a repository into the cache of huggingface_hub, and gives its path there.

    The log says which commit it is. An interrupted download is continued by the next call.

    Args:
        name: "hf:ORG/NAME", "hf:ORG/NAME@REVISION"; a revision is a branch, a tag or a commit.

    Raises:
        InputError: no such repository, revision or file, or the download fails.
    """
    repository, revision = parse_name(name)
    try:
        file = Path(hf_hub_download(repository, FILE, revision=revision, endpoint=endpoint()))
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{name}: there is no such model on the Hub, or it is private: log in by `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{name}: the repository has no branch, tag or commit '{escape(revision or 'main')}'"
        ) from error
    except LocalEntryNotFoundError as error:
        raise InputError(f"cannot download {name}, and it is not in the cache: the Hub cannot be reached") from error
    except EntryNotFoundError as error:
        raise InputError(
            f"{name}: the repository has no {FILE}, as dcal publish writes it; other files, such as pickled weights, "
            "are not read"
        ) from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise InputError(f"cannot download {name}: {escape(reason):.300}") from error
    LOGGER.info("%s is commit %s", name, file.parent.name)
    return file

"""Publishes a model on the Hugging Face Hub: model.safetensors, config.json and the model card."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

from dual_cross_attention.errors import InputError
from dual_cross_attention.inference.hub import PREFIX, endpoint, parse_name
from dual_cross_attention.inference.loaded_model import load_model
from dual_cross_attention.inference.model_card import starting_license
from dual_cross_attention.inference.pretrained_directory import without_paths
from dual_cross_attention.text import escape

FREE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
"""Licenses of initial weights that let a fine-tuned model be published without a further condition on its use."""


@dataclass(frozen=True)
class Publication:
    """What is, or would be, published.

    Args:
        files: size in bytes by name.
        url: of the repository.
        license: a sentence about the license of the initial weights.
        is_free: whether that license is known to set no condition on use, such as "no commercial use".
    """

    files: dict[str, int]
    url: str
    license: str
    is_free: bool


def publish(model: str | Path, repository: str, private: bool = False, dry_run: bool = False) -> Publication:
    """Uploads a model to the Hub; a repository that is not there is created.

    Args:
        model: as of `load_model`, but no exported file.
        repository: "ORG/NAME".
        private: only members of ORG can read a new repository.
        dry_run: nothing is uploaded, and no address is contacted.

    Raises:
        InputError: a repository that is public although `private` is asked for, no right to write to it, or a
            connection that fails.
    """
    if "@" in repository or repository.startswith(PREFIX):
        raise InputError(f"expected ORG/NAME, got '{escape(repository)}'")
    parse_name(f"{PREFIX}{repository}")
    loaded = load_model(model, "cpu")  # an exported file has a precision of its own
    loaded.check_is_pytorch("publish")
    name, sentence = starting_license(without_paths(loaded.config))
    api = HfApi(endpoint=endpoint())
    with TemporaryDirectory() as folder:
        loaded.save_pretrained(folder)
        files = {path.name: path.stat().st_size for path in sorted(Path(folder).iterdir())}
        if not dry_run:
            _upload(api, folder, repository, private)
    is_free = name in FREE or loaded.config.weights == "none"
    return Publication(files, f"{api.endpoint}/{repository}", sentence, is_free)


def _upload(api: HfApi, folder: str, repository: str, private: bool) -> None:
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:  # of one that was there, `private` changes nothing
            raise InputError(f"--private: the repository {repository} exists and is public: make it private first")
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message="Upload model")
    except InputError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(f"{error}".split()) or type(error).__name__
        raise InputError(
            f"cannot publish to {repository}: {escape(reason):.300}; log in by `hf auth login` or set HF_TOKEN"
        ) from error

"""The data of tasks of lm-evaluation-harness as local files.

The harness downloads a task's data when it builds the task. Here that is two steps: where there is a hub, the splits
that a task uses are written as Parquet at a known commit; where the model is, the same task is built from these files.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import hub
from thriftune.data import sources
from thriftune.digests import sha256_of
from thriftune.errors import DataError, TransientError, in_a_line
from thriftune.inference.benchmarks.harness_tasks import REMEDY, UNKNOWN

if TYPE_CHECKING:
    from datasets import DatasetDict
    from lm_eval.api.task import ConfigurableTask

# Formats of files that datasets reads itself; any other path is a hub dataset.
_FILE_KINDS = ("json", "csv", "parquet", "text", "arrow")
_FEW_SHOT_SEED = 1234  # as the harness's own command has it, so that the examples are the same
_KEY = re.compile(r"^[\w.]+ = ")  # at the start of the text of an error that something did not answer
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


def hub_dataset(config: Mapping[str, Any]) -> str | None:
    """The hub dataset that a task reads; None if it reads files.

    Args:
        config: Its configuration.
    """
    path = str(config["dataset_path"])
    return None if path in _FILE_KINDS or Path(path).is_dir() else path


def data_version(config: Mapping[str, Any], folder: Path, token: str | None) -> str:
    """The present version of a task's data: the commit of a hub dataset, or a digest of its files.

    Args:
        config: Its configuration.
        folder: Folder of its YAML file.
        token: Hub token.

    Raises:
        DataError: There are no such data.
        TransientError: The hub did not answer.
    """
    repository = hub_dataset(config)
    if repository is None:
        options = config.get("dataset_kwargs") or {}
        with named("benchmarks.tasks"):
            found = [sources.version(file) for file in _flat(_data_files(options.get("data_files"), folder))]
        folders = [Path(str(place)) for place in (config["dataset_path"], options.get("data_dir")) if place]
        files = [file for place in folders if place.is_dir() for file in sorted(place.rglob("*")) if file.is_file()]
        return "+".join([*found, *map(sha256_of, files)]) or str(config["dataset_path"])
    with hub.explained_errors("benchmarks.tasks", repository, DataError):
        revision = (config.get("dataset_kwargs") or {}).get("revision")
        return hub.commit_of(repository, revision, token, repo_type="dataset")


def write_data(
    config: Mapping[str, Any], version: str, folder: Path, directory: Path, scratch: Path, token: str | None
) -> dict[str, str]:
    """Write the splits that a task uses as Parquet files.

    Args:
        config: Its configuration.
        version: What `data_version` returned.
        folder: Folder of its YAML file.
        directory: An existing directory to write to.
        scratch: Folder for downloads.
        token: Hub token.

    Returns:
        Names of the files, by split.

    Raises:
        DataError: There are no such data, or they lack a split.
        TransientError: The hub did not answer.
    """
    data = _loaded_data(config, version, folder, scratch, token)
    wanted = dict.fromkeys(str(config[key]) for key in used_splits(config))
    if (own := (config.get("fewshot_config") or {}).get("split")) is not None:
        wanted[str(own)] = None
    if lacking := [name for name in wanted if name not in data]:
        message = f"{config['dataset_path']} has no split {', '.join(lacking)}; it has {', '.join(map(str, data))}."
        raise DataError.single("benchmarks.tasks", config["task"], message, REMEDY, code="data-split-not-found")
    files = {name: f"{number}.parquet" for number, name in enumerate(wanted)}
    for name, file in files.items():
        data[name].to_parquet(directory / file)
    return files


def used_splits(config: Mapping[str, Any]) -> list[str]:
    """Keys of the splits that a task reads: those of its questions, and of examples where there are any.

    Args:
        config: Its configuration.
    """
    keys = _SPLITS if config["num_fewshot"] else _SPLITS[:2]
    return [key for key in keys if config.get(key) is not None]


def _loaded_data(
    config: Mapping[str, Any], version: str, folder: Path, scratch: Path, token: str | None
) -> "DatasetDict":
    from datasets import load_dataset

    options = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "trust_remote_code"}
    repository = hub_dataset(config)
    if repository is not None:
        options |= {"revision": version, "token": token}
    elif "data_files" in options:
        options["data_files"] = _data_files(options["data_files"], folder)
    with hub.explained_errors("benchmarks.tasks", str(config["dataset_path"]), DataError), _explained(config):
        loaded: DatasetDict = load_dataset(
            config["dataset_path"], config.get("dataset_name"), cache_dir=str(scratch), **options
        )
    return loaded


@contextmanager
def named(field: str, value: str = "") -> Iterator[None]:
    """Name a key of benchmarks in errors of reading data.

    Args:
        field: The key.
        value: Its value, where that is not what could not be read, but only needs it.
    """
    try:
        yield
    except DataError as error:
        raise DataError([replace(problem, field=field) for problem in error.problems]) from error
    except TransientError as error:
        key = f"{field} = {value}: needs " if value else f"{field} = "
        raise TransientError(_KEY.sub(lambda _: key, str(error))) from error


@contextmanager
def _explained(config: Mapping[str, Any]) -> Iterator[None]:
    """Turn errors of loading data into errors that say what to do; those of the hub are explained elsewhere."""
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

    repository = hub_dataset(config)
    try:
        yield
    except (DataFilesNotFoundError, DatasetNotFoundError, FileNotFoundError) as error:
        if repository is not None and type(error) is not FileNotFoundError:
            raise
        if repository is not None:  # raised by datasets 5.2 if the hub stops answering
            why = f"benchmarks.tasks = {repository}: the hub did not answer ({error})."
            raise TransientError(why) from error
        raise _unloadable(config, error) from error
    except (DatasetGenerationError, ValueError, RuntimeError) as error:
        raise _unloadable(config, error.__cause__ or error) from error


def _unloadable(config: Mapping[str, Any], error: BaseException) -> DataError:
    message = f"the data of {config['task']} cannot be loaded: {in_a_line(error)}."
    return DataError.single("benchmarks.tasks", config["dataset_path"], message, REMEDY)


def _data_files(named: Any, folder: Path) -> Any:
    """Paths of data files, those beside the YAML file made absolute; others are left as the harness reads them."""
    if isinstance(named, Mapping):
        return {split: _data_files(files, folder) for split, files in named.items()}
    if isinstance(named, list):
        return [_data_files(file, folder) for file in named]
    return str(folder / named) if isinstance(named, str) and (folder / named).exists() else named


def _flat(named: Any) -> list[str]:
    if isinstance(named, Mapping):
        return [file for files in named.values() for file in _flat(files)]
    return [file for files in named for file in _flat(files)] if isinstance(named, list) else [named] if named else []


def built(config: Mapping[str, Any], files: Mapping[str, Path], scratch: Path) -> "ConfigurableTask":
    """Build a task from local files, without any hub.

    Args:
        config: Its configuration.
        files: Parquet files by split.
        scratch: Folder that exists as long as the task is used.

    Raises:
        DataError: The harness cannot build it.
    """
    from lm_eval.api.metrics import mean
    from lm_eval.api.task import ConfigurableTask

    data_files = {split: str(file) for split, file in files.items()}
    unused = {key: None for key in _SPLITS if key not in used_splits(config)}
    local = {"data_files": data_files, "cache_dir": str(scratch)}
    changed = {**config, **unused, "dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": local}
    try:
        task = ConfigurableTask(config={k: v for k, v in changed.items() if k not in ("include", "recipe")})
    except Exception as error:  # a task is a program: its functions can raise anything
        message = f"lm-evaluation-harness cannot build it: {in_a_line(error)}."
        raise DataError.single("benchmarks.tasks", config["task"], message, REMEDY) from error
    if mean not in task.aggregation().values():
        message = "has no metric that is the mean of a number per item, and so none to compare two models by."
        raise DataError.single("benchmarks.tasks", config["task"], message, REMEDY, code=UNKNOWN)
    task.set_fewshot_seed(_FEW_SHOT_SEED)
    return task

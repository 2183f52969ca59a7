"""One law for all files of the project's own that are read back: damaged, they are named with a remedy."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from jobs import run as runs
from pipeline.datasets import output, prepare, receipts
from pipeline.datasets.config import PrepareConfig
from pipeline.errors import JobError
from pipeline.evaluate import history
from pipeline.evaluate.evaluation import read_evaluation
from pipeline.export.export import export_run, source_of_run
from pipeline.models import checkpoint
from pipeline.run import manifest, parts
from pipeline.run.footers import read_footers
from pipeline.select.files import read_pictures
from pipeline.select.hand_over import hand_over
from pipeline.select.output import read_selection, select_images
from pipeline.source.plan import plan_source
from pipeline.store.lease import Lease
from pipeline.store.url import Url
from pipeline.training import run as training
from pipeline.training import state
from pipeline.training.state import RunState
from tests.pipeline.datasets.test_prepare import preparation, prepared
from tests.pipeline.datasets.test_receipts import ORIGIN
from tests.pipeline.evaluate.test_trend import DAYS
from tests.support import judged_runs, photo_runs, tiny_layout, training_runs
from tests.support.tiny_layout import TINY

FARM = TINY.classes
CHECKPOINT = ("card.json", "model.safetensors")
"""Files of others, too: the message says what is wrong in them, and there is no command that makes them anew."""
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "other bytes": lambda data: b"\x00\xff\xfe no file of ours: [" * 4,
} | {
    f"with {other.decode()}": lambda data, other=other: other
    for other in (b"[]", b"{}", b'"text"', b"null", b'{"rows": []}')
}


@dataclass(frozen=True)
class OwnFile:
    """A file of ours, and what reads it back."""

    path: Path
    read: Callable[[], object]


def files_of_a_run(folder: Path) -> dict[str, OwnFile]:
    root = Url(str(folder / "source"))
    tiny_layout.write(root, train=4)
    network = judged_runs.save_network(folder / "network", FARM)
    cfg = judged_runs.config(source=str(folder / "source"), output=str(folder / "out"), checkpoint=network)
    run = judged_runs.carry_out(cfg)
    part = parts.list_parts(run.url)[0]
    path, export = Path(run.url.raw), folder / "export"
    export_run(run.url, "png", Url(str(export)))

    def take_lease() -> None:
        for newer in path.glob("_run/owner-00000[2-9].json"):
            newer.unlink()
        with Lease(run.url, lease_s=30, command="a test"):
            pass

    take_lease()
    evaluation = lambda: read_evaluation(run.url)  # noqa: E731
    return {
        "manifest": OwnFile(path / "_manifest.json", lambda: manifest.read_manifest(run.url)),
        "manifest of a baseline": OwnFile(path / "_manifest.json", evaluation),
        "config of a baseline": OwnFile(path / "_run/config.yaml", evaluation),
        "environment of a baseline": OwnFile(path / "_run/environment.json", evaluation),
        "footer of a part": OwnFile(path / "parts" / part, lambda: read_footers(run.url)),
        "columns of a part": OwnFile(path / "parts" / part, evaluation),
        "class map of a part": OwnFile(path / "parts" / part, lambda: parts.read_classes(run.url, part)),
        "plan": OwnFile(path / "_run/plan.arrow", lambda: runs.refuse_changed_source(run, plan_source(cfg))),
        "export": OwnFile(export / "_export.json", lambda: export_run(run.url, "png", Url(str(export)))),
        "config of an exported run": OwnFile(path / "_run/config.yaml", lambda: source_of_run(run.url, None)),
        "lease": OwnFile(path / "_run/owner-000001.json", take_lease),
        "card": OwnFile(folder / "network/card.json", lambda: checkpoint.load_checkpoint(network)),
        "weights": OwnFile(folder / "network/model.safetensors", lambda: checkpoint.load_checkpoint(network)),
    }


def files_of_a_training(folder: Path) -> dict[str, OwnFile]:
    cfg = training_runs.config(folder, folder / "trained")
    url, path = cfg.output_url, folder / "trained"
    (path / "_run").mkdir(parents=True)
    (path / "_run/config.yaml").write_text(yaml.safe_dump(cfg.model_dump(mode="json")))
    state.save_state(url, RunState().to_json(), {"a": torch.zeros(9)}, step=1)
    stored = Path(state.state_url(url, 1).raw)
    return {
        "config of a training": OwnFile(path / "_run/config.yaml", lambda: training.refuse_changed_settings(cfg)),
        "state": OwnFile(stored / state.STATE_JSON, lambda: state.load_state(url, 1)),
        "tensors of a state": OwnFile(stored / state.STATE_TENSORS, lambda: state.load_state(url, 1)),
    }


def files_of_a_preparation(folder: Path) -> dict[str, OwnFile]:
    tiny_layout.write(Url(str(folder / "in")), train=4)
    shards = [receipt.shard for receipt in prepared(preparation(folder))]
    url, path = Url(str(folder / "out")), folder / "out"
    receipts.close_set(url, {"train": shards}, FARM, ORIGIN)
    cfg = PrepareConfig(layout="voc", splits=("train",), root=str(folder / "in"), output=str(path))
    listed = prepare.plan_examples(TINY, Url(cfg.root), ["train"], shard_examples=4)
    output.unfinished_shards(cfg, listed)
    receipt = next((path / "_run").glob(f"**/{shards[0]}.json"))
    return {
        "receipt": OwnFile(receipt, lambda: receipts.read_receipts(url, shards)),
        "manifest of a set": OwnFile(path / "manifest.json", lambda: receipts.read_set_manifest(url)),
        "settings of a set": OwnFile(path / "_run/config.yaml", lambda: output.unfinished_shards(cfg, listed)),
        "plan of a set": OwnFile(path / "_run/plan.json", lambda: output.unfinished_shards(cfg, listed)),
    }


def files_of_a_history(folder: Path) -> dict[str, OwnFile]:
    history.append_history(Url(str(folder)), DAYS[:1])
    return {"history": OwnFile(next(folder.glob("*.parquet")), lambda: history.read_history(Url(str(folder))))}


def files_of_a_selection(folder: Path) -> dict[str, OwnFile]:
    run_url = photo_runs.photo_run(folder, {"a.jpg": photo_runs.photo(1)})
    chosen = Url(str(folder / "chosen"))
    select_images(run_url, 1, chosen)
    hand_over(run_url, ["a.jpg"], chosen, [])
    return {
        "state of a selection": OwnFile(folder / "chosen/_selection.json", lambda: select_images(run_url, 1, chosen)),
        "selection": OwnFile(folder / "chosen/selection.parquet", lambda: read_selection(chosen)),
        "images of a selection": OwnFile(folder / "chosen/images.parquet", lambda: read_pictures(chosen)),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OwnFile]:
    """All files by name."""
    made = (files_of_a_run, files_of_a_training, files_of_a_preparation, files_of_a_history, files_of_a_selection)
    return {name: one for make in made for name, one in make(tmp_path_factory.mktemp("own")).items()}


def refusal(file: OwnFile) -> JobError:
    """Error of reading a file."""
    try:
        file.read()
    except JobError as error:
        return error
    return JobError("nothing was said")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_our_own_is_named_with_a_remedy(files: dict[str, OwnFile], damage: str) -> None:
    for name, file in files.items():
        whole = file.path.read_bytes()
        file.read()
        file.path.write_bytes(DAMAGES[damage](whole))
        said = refusal(file)
        file.path.write_bytes(whole)
        assert {file.path.name, file.path.parent.name} & set(re.findall(r"[^\s/:;,]+", str(said))), (name, said)
        assert said.hint or file.path.name in CHECKPOINT, name


def test_a_manifest_that_is_missing_from_a_finished_run_is_named(files: dict[str, OwnFile]) -> None:
    file = files["manifest"]
    whole = file.path.read_bytes()
    file.path.unlink()
    with pytest.raises(JobError, match=r"manifest\.json is missing") as refused:
        file.read()
    assert "_SUCCESS" in refused.value.hint
    file.path.write_bytes(whole)

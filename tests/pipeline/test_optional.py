"""Optional packages: what is said where one is missing, without which everything else still imports and runs."""

import importlib
import subprocess
import sys
import tomllib

import pytest

from pipeline import optional
from pipeline.classes import load_class_map
from pipeline.config import RefineConfig
from pipeline.datasets.catalogue import DATASET_LAYOUTS
from pipeline.datasets.matlab import open_hdf5
from pipeline.errors import ConfigError
from pipeline.importing import reader
from pipeline.refine import engine
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import tracker
from tests import ROOT

NEEDS = {
    "gcsfs": lambda _: objects.exists(Url("gs://a-bucket-that-no-other-test-opens/key")),
    "pydensecrf": lambda _: engine.make_engine(RefineConfig(engine="pydensecrf")),
    "pycocotools": lambda folder: DATASET_LAYOUTS["coco"].examples(Url(str(folder)), "val"),
    "h5py": lambda folder: DATASET_LAYOUTS["nyu40"].examples(Url(str(folder)), "train"),
    "tflite": lambda _: reader.parse_weights(b"\x08\0\0\0TFL3", origin="net.tflite"),
    "tensorboard": lambda folder: start("tensorboard", folder),
    "mlflow": lambda folder: start("mlflow", folder),
    "wandb": lambda folder: start("wandb", folder),
}
"""What needs a module, given an empty folder."""
EXTRAS = {"gcsfs": "gcs", "pydensecrf": "reference", "pycocotools": "datasets", "h5py": "datasets"}
"""The extra that brings a module, where it is not called as the module is."""


def start(kind, folder):
    return tracker.make_tracker(
        kind, output=Url(str(folder)), run="ab" * 32, first_step=0, classes=load_class_map("farmland")
    )


@pytest.fixture
def without(monkeypatch):
    """Makes a module impossible to import, also for modules that had imported it."""

    def hide(name):
        for loaded in list(sys.modules):
            if loaded.partition(".")[0] == name or loaded in ("torch.utils.tensorboard", "pipeline.refine.densecrf"):
                monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.delattr("pipeline.refine.densecrf", raising=False)
        monkeypatch.setitem(sys.modules, name, None)

    objects._backend.cache_clear()
    yield hide
    objects._backend.cache_clear()


@pytest.mark.parametrize("module", NEEDS)
def test_a_missing_package_is_an_error_that_names_it_and_its_extra(without, tmp_path, module):
    without(module)
    with pytest.raises(ConfigError, match=f"needs {module}.* cannot be imported") as failed:
        NEEDS[module](tmp_path)
    assert f"pip install 'atrous[{EXTRAS.get(module, module)}]'" in failed.value.hint


def test_every_extra_that_an_error_names_exists_and_brings_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for module in NEEDS:
        brought = extras["optional-dependencies"][EXTRAS.get(module, module)]
        assert any(one.startswith(module) for one in brought), module
        assert not any(one.startswith(module) for one in extras["dependencies"]), module


def test_the_error_says_who_needs_the_package_and_what_else_can_be_done():
    with (
        pytest.raises(ConfigError) as failed,
        optional.package("absent", extra="more", needed_by="--a.setting", instead="leave it out"),
    ):
        importlib.import_module("there_is_no_such_module")
    assert str(failed.value) == (
        "--a.setting needs absent, which cannot be imported: No module named 'there_is_no_such_module'\n"
        "  -> pip install 'atrous[more]', or leave it out"
    )


def test_other_errors_inside_an_import_stay_what_they_are():
    with pytest.raises(ZeroDivisionError), optional.package("broken", extra="more", needed_by="--a.setting"):
        _ = 1 / 0


def test_a_matlab_file_is_not_opened_without_h5py(without, tmp_path):
    without("h5py")
    with pytest.raises(ConfigError, match="h5py"), open_hdf5(Url(str(tmp_path)), "any.mat"):
        pass


def test_the_default_tracker_is_tensorboard_where_it_is_installed(tmp_path):
    start("auto", tmp_path).close()
    assert list((tmp_path / tracker.TENSORBOARD_FOLDER).iterdir())


def test_without_tensorboard_the_default_tracker_leaves_nothing_and_says_so_once(without, tmp_path, caplog):
    without("tensorboard")
    one = start("auto", tmp_path)
    one.scalars(1, {"train/loss": 1.0})
    one.close()
    assert not list(tmp_path.iterdir())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "report/index.html only" in caplog.text
    assert "pip install 'atrous[tensorboard]'" in caplog.text


def test_data_sets_trackers_and_jobs_import_without_any_optional_package():
    modules = (
        "pipeline.datasets.catalogue",
        "pipeline.training.tracker",
        "jobs.demo",
        "jobs.prepare_dataset",
        "jobs.train",
    )
    code = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({[*NEEDS]}))\n"
        f"for name in {modules}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

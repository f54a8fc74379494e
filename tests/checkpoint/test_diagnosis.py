"""What the doctor says is what the registry and the metadata of packages say."""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import zoquant
from tests.test_imports import FORBIDDEN
from tests.toy import ToyFormat
from zoquant.checkpoint import diagnosis
from zoquant.checkpoint.diagnosis import doctor, extras, library


def test_every_registered_format_and_class_is_there() -> None:
    found = doctor()
    assert [each["format"] for each in found["formats"]] == sorted(zoquant.list_formats())
    classes = [name for each in found["libraries"] for name in each["classes"]]
    assert sorted(classes) == sorted(name for name in zoquant.list_backends() if not name.startswith("zoquant."))
    for each in found["formats"]:
        assert re.match("(yes|no): .", each["native"]), each
        assert re.match("(yes|no): .", each["vendor"]), each


def test_what_is_installed_has_a_version_and_what_is_not_a_way_to_get_it() -> None:
    for each in doctor()["libraries"]:
        assert bool(each["version"]) != bool(each["install"]), each
        if each["version"]:
            assert metadata.version(each["distribution"]) == each["version"]
    assert library("torch.nn.Module").version == metadata.version("torch")


@pytest.mark.parametrize(
    ("name", "short", "extra"),
    [
        ("gptqmodel.nn_modules.qlinear.torch.TorchLinear", "gptqmodel", "gptq"),
        ("optimum.quanto.nn.QLinear", "optimum.quanto", "quanto"),
        ("compressed_tensors", "compressed_tensors", "compressed-tensors"),
        ("bitsandbytes", "bitsandbytes", "bitsandbytes"),
    ],
)
def test_extras_are_found_by_the_name_that_is_imported(
    name: str, short: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "_version", lambda distribution: None)
    found = library(name)
    assert (found.name, found.install) == (short, f"pip install 'zoquant[{extra}]'")


def test_a_checkout_that_is_not_installed_has_no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", unknown)
    extras.cache_clear()
    try:
        assert library("optimum.quanto.nn.QLinear").name == "optimum"
        assert doctor()["formats"]
    finally:
        extras.cache_clear()


def test_a_library_without_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = library("nobodys_library.layers.Linear")
    assert (found.name, found.distribution, found.version) == ("nobodys_library", "", None)
    assert found.install == "a package with nobodys_library; no extra has one"


def test_every_extra_for_users_is_part_of_all() -> None:
    brought: dict[str, set[str]] = {}
    for line in metadata.requires("zoquant") or ():
        package, _, extra = line.partition("; ")
        name = extra.rpartition("extra == ")[2].strip("'\"") if "extra == " in extra else ""
        brought.setdefault(name, set()).add(package)
    everything = brought.pop("all")
    assert everything == set().union(*(packages for extra, packages in brought.items() if extra not in ("", "dev")))
    assert set(extras().values()) == set(brought) - {""}


def test_a_format_that_says_nothing_of_its_runtimes(toy_format: ToyFormat) -> None:
    (toy,) = (each for each in doctor()["formats"] if each["format"] == "toy")
    assert toy["native"].startswith("yes")
    assert toy["vendor"] == "no: no library computes it here"


class VendorFormat(ToyFormat):
    library = "nobodys_library"

    def open_vendor(self, path: Path, **settings: Any) -> tuple[Any, Any]:
        raise NotImplementedError


def test_a_format_whose_library_is_missing() -> None:
    zoquant.register(format=VendorFormat())
    try:
        (toy,) = (each for each in doctor()["formats"] if each["format"] == "toy")
        (missing,) = (each for each in doctor()["libraries"] if each["name"] == "nobodys_library")
    finally:
        zoquant.unregister("toy")
    assert toy["vendor"] == "no: nobodys_library is not installed"
    assert missing["formats"] == ["toy"]


def test_the_command_imports_no_quantization_library() -> None:
    program = f"""
import sys
from zoquant.cli.app import main
sys.argv = ["zoquant", "doctor", "--json"]
try:
    main()
finally:
    print("imported:", *sorted(set({FORBIDDEN}) & {{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text, _, imported = done.stdout.rpartition("imported:")
    assert set(imported.split()) <= {"psutil", "rich", "typer"}
    found = json.loads(text)
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["device"]

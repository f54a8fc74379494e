"""Who serves what: entry points, registrations, and names that clash."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoquant
from tests.broken_backends import Backend, Layer
from tests.toy import ToyFormat, registered
from zoquant import registry
from zoquant.errors import RegistryError
from zoquant.registry import Claim, backend_for, backend_of, class_name, format_named
from zoquant.views.attach import claimed

PLUGIN = """
    import torch
    from torch import nn
    from zoquant import TensorView

    class MyLinear(nn.Linear):
        pass

    class MyBackend:
        name = "mine"
        def open(self, module):
            return [TensorView("weight", "dense", module.weight)]
        def dequantize(self, module):
            return module.weight.detach().float()
        def sample_input(self, module):
            return torch.ones(2, module.in_features)
"""


def install(site: Path, package: str, version: str, entry_points: str, **modules: str) -> None:
    """Lay out what pip leaves behind: modules, and a dist-info folder that names their entry points."""
    info = site / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
    for name, text in modules.items():
        (site / f"{name}.py").write_text(textwrap.dedent(text))


def python(site: Path, program: str) -> str:
    """Run a program in a fresh interpreter that sees the packages in `site`."""
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n" + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_an_installed_package_registers_without_being_imported(tmp_path: Path) -> None:
    install(
        tmp_path, "my-plugin", "1.2", "[zoquant.backends]\nmy_plugin.MyLinear = my_plugin:MyBackend\n",
        my_plugin=PLUGIN,
    )  # fmt: skip
    out = python(
        tmp_path,
        """
        import zoquant
        print(zoquant.list_backends()["my_plugin.MyLinear"])
        print("my_plugin" in sys.modules)
        from my_plugin import MyLinear
        print(zoquant.attach(MyLinear(3, 2), roles=["dense"])[0])
        """,
    )
    assert out.splitlines() == [
        "Claim(name='my_plugin.MyLinear', target='my_plugin:MyBackend', package='my-plugin 1.2')",
        "False",
        "<weight dense [2, 3] float32 mine>",
    ]


def test_two_packages_that_claim_one_class_are_both_named(tmp_path: Path) -> None:
    for package in ("first", "second"):
        install(tmp_path, package, "0.1", f"[zoquant.backends]\nsome.Linear = {package}:Backend\n")
    out = python(
        tmp_path,
        """
        import zoquant
        from torch import nn
        for act in (zoquant.list_backends, lambda: zoquant.attach(nn.Linear(1, 1))):
            try:
                act()
            except zoquant.errors.RegistryError as error:
                print(error)
        """,
    )
    lines = set(out.splitlines())
    assert len(lines) == 1
    (line,) = lines
    for part in ("'some.Linear' is claimed twice: by", "first 0.1 (first:Backend)", "second 0.1 (second:Backend)"):
        assert part in line
    assert line.endswith("Uninstall one of them.")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_module:Backend", "No module named 'no_such_module'"),
        ("json:NoBackend", "module 'json' has no attribute 'NoBackend'"),
    ],
)
def test_a_plugin_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, target: str, reason: str) -> None:
    claim: Claim[Any] = Claim(class_name(Layer), target, "broken-plugin 3.0")
    known = registry._lasting(registry.BACKENDS)
    monkeypatch.setattr(registry, "_lasting", lambda group: {**known, claim.name: claim})
    with pytest.raises(RegistryError) as caught:
        backend_for(Layer)
    assert str(caught.value) == (
        f"{claim.name!r}: the plugin {target} of broken-plugin 3.0 cannot be imported: {reason}. Reinstall that "
        "package."
    )
    assert isinstance(caught.value.__cause__, ImportError | AttributeError)


def test_a_claim_gives_its_plugin() -> None:
    found = zoquant.list_formats()["gguf"].load()
    assert (found.name, found) == ("gguf", format_named("gguf"))
    claim = zoquant.list_backends()["torch.nn.Module"]
    assert claim.load() is claim.load() is registry.plain_backend()


def test_every_plugin_of_the_table_is_there() -> None:
    for name, claim in zoquant.list_formats().items():
        assert claim.load().name == name
    for name, served in zoquant.list_backends().items():
        assert callable(served.load().open), name


def test_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    """No metadata of zoquant is on the path, as where a checkout is put on PYTHONPATH, or an old one is there."""
    program = """
    from importlib import metadata
    found = metadata.Distribution.discover
    def other(**wanted):
        return (each for each in found(**wanted) if each.metadata["Name"] != "zoquant")
    metadata.Distribution.discover = staticmethod(other)
    from torch import nn
    import zoquant
    print(zoquant.attach(nn.Linear(3, 2), roles=("dense",)).keys)
    print(zoquant.list_formats()["gguf"].package, len(zoquant.list_backends()) > 50)
    """
    assert python(tmp_path, program).splitlines() == ["('weight', 'bias')", "zoquant 0+checkout True"]


def test_metadata_of_zoquant_itself_is_not_read(tmp_path: Path) -> None:
    """An older install beside newer sources says what the table said once."""
    install(tmp_path, "zoquant", "0.0", "[zoquant.formats]\ngguf = zoquant.elsewhere:Old\n")
    assert python(tmp_path, "import zoquant\nprint(zoquant.list_formats()['gguf'].load().name)") == "gguf"


def test_an_entry_point_cannot_take_a_name_of_the_table(tmp_path: Path) -> None:
    install(tmp_path, "other", "0.1", "[zoquant.formats]\ngguf = other:Format\n")
    program = """
    import zoquant
    try:
        zoquant.list_formats()
    except zoquant.errors.RegistryError as error:
        print(error)
    """
    said = python(tmp_path, program)
    assert said.startswith("'gguf' is claimed twice: by zoquant ")
    assert said.endswith(") and by other 0.1 (other:Format). Uninstall one of them.")


def test_own_claims() -> None:
    claims = zoquant.list_backends()
    assert {"zoquant.native.layers.QuantLinear", "hqq.core.quantize.HQQLinear"} <= claims.keys()
    assert claims["zoquant.native.layers.QuantLinear"].installed
    assert claims["zoquant.native.layers.QuantLinear"].package.startswith("zoquant ")
    assert zoquant.list_formats()["gguf"].installed
    assert not Claim("no_such_library.Linear", "x:y", "z").installed
    assert Claim("__main__.Linear", "x:y", "z").installed


def test_a_registration_comes_and_goes() -> None:
    backend = Backend()
    with registered(backend, Layer):
        assert backend_for(Layer) is backend
        claim = zoquant.list_backends()["tests.broken_backends.Layer"]
        assert claim == Claim("tests.broken_backends.Layer", "tests.broken_backends:Backend", "this process")
    assert backend_for(Layer) is None
    zoquant.register(backend=backend, claims="tests.broken_backends.Layer")
    assert backend_for(Layer) is backend
    zoquant.unregister("tests.broken_backends.Layer")


def test_a_subclass_is_another_class() -> None:
    class Sub(Layer):
        pass

    with registered(Backend(), Layer):
        assert backend_for(Sub) is None


class Packed(torch.nn.Parameter):
    """A weight whose class says that it is quantized, in a module whose class does not."""


def test_the_class_of_the_weight_comes_first() -> None:
    class Linear(nn.Linear):
        pass

    plain, quantized = Linear(2, 2), Linear(2, 2)
    quantized.weight = Packed(torch.ones(2, 2))
    of_weight, of_module = Backend(), Backend()
    with registered(of_module, Linear):
        assert backend_of(quantized) is of_module
        with registered(of_weight, Packed):
            found = {path: backend for path, _, backend in claimed(nn.ModuleList([plain, quantized, nn.Flatten()]))}
            assert found == {"0": of_module, "1": of_weight}


def test_a_subclass_of_a_claimed_weight_is_another_class() -> None:
    class Sub(Packed):
        pass

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = Sub(torch.ones(2))

    with registered(Backend(), Packed):
        assert backend_of(Module()) is None


def test_what_is_claimed_stays_claimed() -> None:
    with registered(Backend(), Layer):
        with pytest.raises(RegistryError) as caught:
            zoquant.register(backend=Backend(), claims=Layer)
        assert str(caught.value) == (
            "'tests.broken_backends.Layer' is already claimed by this process (tests.broken_backends:Backend)."
        )
    with pytest.raises(RegistryError, match=r"'zoquant\.native\.layers\.QuantLinear' is already claimed by zoquant "):
        zoquant.register(backend=Backend(), claims="zoquant.native.layers.QuantLinear")
    form: Any = type("Form", (), {"name": "gguf"})()
    with pytest.raises(RegistryError, match=r"'gguf' is already claimed by zoquant "):
        zoquant.register(format=form)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"backend": Backend()}, {"claims": Layer}, {"backend": Backend(), "claims": Layer, "format": ToyFormat()}],
)
def test_register_takes_one_thing(arguments: dict[str, Any]) -> None:
    with pytest.raises(RegistryError, match=r"register\(\) takes either backend= with claims=, or format=\. Pass one"):
        zoquant.register(**arguments)


def test_only_what_was_registered_is_taken_back() -> None:
    for name in ("nobody", "zoquant.native.layers.QuantLinear"):
        with pytest.raises(RegistryError, match=f"'{name}' was not registered in this process"):
            zoquant.unregister(name)


def test_unknown_formats_list_the_known(toy_format: ToyFormat) -> None:
    assert format_named("toy") is toy_format
    with pytest.raises(RegistryError) as caught:
        format_named("gugf")
    names = ", ".join(sorted(zoquant.list_formats()))
    assert "gguf, " in names
    assert str(caught.value) == f"unknown format 'gugf', expected one of {names}."

"""A few damaged checkpoints of every format, as `make fuzz` makes them by the million."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore  # type: ignore[attr-defined]

import zoquant
from examples.slow_links import StepLog
from fuzz.guard import FindingError, guarded
from fuzz.mutations import mutate
from fuzz.targets import Target, make_target, target_names
from zoquant.errors import BaseMismatchError, CheckpointError
from zoquant.registry import format_named
from zoquant.report.page import page
from zoquant.report.run_reading import Recorded
from zoquant.training import RunFolder

SCRIPTS = st.binary(min_size=8, max_size=64)


@pytest.fixture(scope="module", params=target_names())
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Target:
    return make_target(request.param, tmp_path_factory.mktemp(request.param))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=SCRIPTS)
def test_damaged_files_are_refused_or_read(target: Target, script: bytes) -> None:
    target.run(script)


def changed(target: Target, file: str, **values: object) -> Path:
    """Overwrite keys of a JSON file of a target, and return the path of its checkpoint."""
    config = json.loads(target.files[file])
    (target.folder / file).write_text(json.dumps({**config, **values}))
    return target.path


def test_found_a_method_that_cannot_be_looked_up(tmp_path: Path) -> None:
    path = changed(make_target("gptq", tmp_path), "config.json", quantization_config={"quant_method": ["gptq"]})
    assert not format_named("gptq").sniff(path)


@pytest.mark.parametrize(("name", "key"), [("gptq", "checkpoint_format"), ("auto-round", "packing_format")])
def test_found_a_layout_that_cannot_be_looked_up(name: str, key: str, tmp_path: Path) -> None:
    target = make_target(name, tmp_path)
    said = json.loads(target.files["config.json"])["quantization_config"]
    path = changed(target, "config.json", quantization_config={**said, key: ["gptq"]})
    with pytest.raises(CheckpointError, match=key):
        format_named(name).index(path)


def test_found_an_adapter_of_no_kind(tmp_path: Path) -> None:
    path = changed(make_target("peft", tmp_path), "adapter_config.json", peft_type=None)
    with pytest.raises(CheckpointError, match="peft_type"):
        format_named("peft").summarize(path)


def test_found_a_rate_that_no_float_holds(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text(json.dumps({"lr": 10**400, "eps": 1.0}))
    with pytest.raises(CheckpointError, match=r"calibration\.json: expected the numbers"):
        RunFolder(tmp_path).read_calibration()


def test_found_a_card_of_settings_that_no_run_has(tmp_path: Path) -> None:
    target = make_target("reader-card", tmp_path)
    changed(target, "settings.json", model="~nobody-of-that-name/x")
    with pytest.raises(CheckpointError, match="settings or summary hold something else"):
        target.use(target.path, True)
    assert not (target.path / "README.md").exists()


def test_found_a_summary_of_more_bytes_than_a_float_holds(tmp_path: Path) -> None:
    target = make_target("reader-report", tmp_path)
    changed(target, "summary.json", rss_peak_bytes=10**400)
    assert "Peak memory" in page([Recorded.read(target.path, "a")])


@pytest.mark.parametrize("header", ["[]", "{", "[" * 100_000, '"a"'])
def test_found_a_log_whose_header_is_no_object(header: str) -> None:
    store = HashStore()
    store.set("header", header)
    with pytest.raises(BaseMismatchError, match="its header is no JSON"):
        StepLog(store, {})


def test_every_format_is_a_target() -> None:
    assert set(target_names()) > set(zoquant.list_formats())


@given(script=SCRIPTS)
def test_the_same_script_makes_the_same_files(script: bytes) -> None:
    files = {"config.json": b'{"a": [1, 2], "b": {"c": "d"}}', "model.bin": bytes(range(64))}
    assert mutate(files, script) == mutate(files, script)


def test_most_scripts_change_something() -> None:
    files = {"config.json": b'{"a": [1, 2], "b": {"c": "d"}}', "model.bin": bytes(range(64))}
    same = [n for n in range(256) if {**files, **mutate(files, bytes([n, 3, 1, n, 2, n, 5, 1, 7]))} == files]
    assert len(same) < 32


def careless(path: Path, everything: bool) -> None:
    """Believe the first bytes of a file, in every way that the guard has to notice."""
    data = path.read_bytes()
    if data[:1] == b"m":
        bytearray(64 << 20)
    elif data[:1] == b"o":
        Path(__file__).read_bytes()
    elif data[:1] == b"r":
        raise KeyError("shape")
    elif data[:1] == b"t":
        while True:
            pass
    elif data[:1] == b"c":
        raise CheckpointError("damaged")


@pytest.fixture
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target of one file whose cases change nothing."""
    monkeypatch.setattr("fuzz.targets.mutate", lambda files, script: {})
    (tmp_path / "file").write_bytes(b"sound")
    return Target("careless", tmp_path / "file", careless)


@pytest.mark.parametrize(
    ("first", "message"),
    [("m", "bytes of memory"), ("o", "outside of the checkpoint"), ("r", "raised KeyError"), ("t", "processor time")],
)
def test_the_guard_notices(
    first: str, message: str, sound: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuzz.guard.SECONDS", 0.2)
    sound.files, sound.dirty = {"file": first.encode()}, {"file"}
    with pytest.raises(FindingError, match=message):
        sound.run(b"")
    sound.save(b"script", tmp_path / "kept" / "finding")
    assert (tmp_path / "kept" / "finding" / "file").read_bytes() == first.encode()
    assert (tmp_path / "kept" / "finding.script").read_bytes() == b"script"


def test_a_refusal_is_no_finding(sound: Target) -> None:
    assert sound.run(b"")
    sound.files, sound.dirty = {"file": b"c"}, {"file"}
    assert not sound.run(b"")


def test_the_guard_lets_a_small_reader_through(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"sound")
    with guarded(tmp_path.resolve(), 5, traced=True):
        assert (tmp_path / "file").read_bytes() == b"sound"

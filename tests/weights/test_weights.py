"""Files of weights: what loads, and that everything else is refused in one line that says what was found."""

import builtins
import collections
import copyreg
import functools
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import types
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vsrealbasicvsr
from scripts import convert_weights
from tests.networks import FOUR_CHANNELS as SIZES
from tests.reference_network import formula_network
from vsrealbasicvsr.errors import shown_path
from vsrealbasicvsr.model import Architecture, RealBasicVSR
from vsrealbasicvsr.weights import (
    DEFAULT_WEIGHTS,
    WeightsError,
    converting,
    load_model,
    read_network,
    reading,
    write_weights,
)

FORMATS = ["legacy", "zip"]


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """Nothing may be printed beside the program's own output."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def network(salt: str = "") -> RealBasicVSR:
    return formula_network(SIZES, salt)


@functools.cache
def tensors_of_network(salt: str) -> dict[str, Tensor]:
    return dict(network(salt).state_dict())


def state_dict(salt: str = "") -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in tensors_of_network(salt).items()}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def save(content: object, path: Path, file_format: str = "zip") -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=file_format == "zip")
    return path


def published(ema: dict[str, Tensor], generator: dict[str, Tensor]) -> dict[str, object]:
    """A checkpoint laid out as the published ones, with what training leaves beside the weights."""
    adam = {"step": 150000, "exp_avg": torch.rand(3, 3), "exp_avg_sq": torch.rand(3, 3)}
    return {
        "meta": {"env_info": "sys.platform: linux", "seed": None, "iter": 150000, "mmedit_version": "0.11.0"},
        "state_dict": collections.OrderedDict(
            {"step_counter": torch.tensor([150000])}
            | prefixed("generator.", generator)
            | prefixed("generator_ema.", ema)
            | {"discriminator.conv_0.weight": torch.rand(8, 3, 3, 3), "discriminator.conv_1.weight_u": torch.rand(8)}
            | {"perceptual_loss.vgg.mean": torch.rand(1, 3, 1, 1)}
        ),
        "optimizer": {"generator": {"state": {0: adam}, "param_groups": [{"lr": 5e-5, "betas": (0.9, 0.99)}]}},
    }


def assert_loads(path: Path, expected: dict[str, Tensor]) -> None:
    model = load_model(path)
    assert not model.training
    loaded = model.state_dict()
    assert loaded.keys() == expected.keys()
    for key, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[key].float()), key


def refusal(path: Path) -> str:
    """The text with which `load_model` refuses a file: one printable line that names it and says what to do."""
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.startswith(f"{shown_path(path)} ")
    assert text.isprintable()  # and so of one line
    assert len(text) < len(str(path)) + 700
    assert text.endswith(".")
    assert text.count(". ") >= 1  # what was found; what to do
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return text.removeprefix(shown_path(path))


# ---- what loads -----------------------------------------------------------------------------------------------------


def test_the_default_weights_load_and_describe_themselves():
    model = load_model()
    assert isinstance(model, vsrealbasicvsr.RealBasicVSR)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    metadata = read_network(DEFAULT_WEIGHTS).metadata
    assert json.loads(metadata["architecture"])["mid_channels"] == model.sizes.mid_channels
    assert DEFAULT_WEIGHTS.stat().st_size <= 16_000_000


def test_a_string_path_and_a_path_from_the_home_folder_are_taken(tmp_path, monkeypatch):
    write_weights(network(), tmp_path / "w.safetensors", metadata={})
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_model("~/w.safetensors").sizes == load_model(str(tmp_path / "w.safetensors")).sizes == SIZES


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_our_own_format_comes_back_with_its_metadata(tmp_path, dtype):
    path = tmp_path / "w.safetensors"
    write_weights(network(), path, metadata={"licence": "CC0", "training": "none"}, dtype=dtype)
    assert_loads(
        path, {k: t.float() if k.endswith((".mean", ".std")) else t.to(dtype) for k, t in state_dict().items()}
    )
    metadata = read_network(path).metadata
    assert metadata["licence"] == "CC0"
    assert metadata["training"] == "none"
    assert json.loads(metadata["architecture"])["flow_channels"] == [4, 4, 4, 4]
    newer = {"scale", "num_cleaning_levels"}  # files from before they were sizes do not name 4 and 1
    assert not newer & json.loads(metadata["architecture"]).keys()
    assert metadata["format"] == "vsrealbasicvsr-1"


def test_a_file_of_weights_is_written_whole_or_not_at_all_and_readable_by_all(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(network(), path, metadata={})
    before = path.read_bytes()
    too_large = network()
    too_large.image_cleaning[1].bias.fill_(1e6)  # beyond float16
    with pytest.raises(ValueError, match=r"'image_cleaning\.1\.bias' has values that are not finite as torch\.float16"):
        write_weights(too_large, path, metadata={})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    with pytest.raises(OSError, match="no folder"):
        write_weights(network(), tmp_path / "no folder" / "w.safetensors", metadata={})


def test_the_loaded_network_does_not_depend_on_the_file_any_more(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(network(), path, metadata={}, dtype=torch.float32)
    model = load_model(path)
    path.write_bytes(bytes(path.stat().st_size))
    expected = state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("prefix", ["generator_ema.", "generator_ema.module."])
def test_the_moving_average_of_a_published_checkpoint_wins(tmp_path, prefix, file_format):
    content = published({}, state_dict("generator"))
    content["state_dict"] |= prefixed(prefix, state_dict("ema"))
    if "module" in prefix:
        content["state_dict"]["generator_ema.steps"] = torch.tensor(3)  # as mmagic counts
    path = save(content, tmp_path / "w.pth", file_format)
    assert_loads(path, state_dict("ema"))
    assert read_network(path).prefix == prefix


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_published_layout_in_its_full_size_loads(tmp_path, file_format):
    sizes = Architecture()
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in RealBasicVSR(sizes).state_dict().items()}
    ema = {key: torch.full(shape, 0.25) for key, shape in shapes.items()}
    generator = {key: torch.zeros(shape) for key, shape in shapes.items()}
    path = save(published(ema, generator), tmp_path / "w.pth", file_format)
    model = load_model(path)
    path.unlink()  # 50 MB, and pytest keeps the folders of three runs
    assert model.sizes == sizes
    assert all((parameter == 0.25).all() for parameter in model.parameters())


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda s: prefixed("generator.", s), "generator."),
        (lambda s: prefixed("generator.module.", s), "generator.module."),
        (lambda s: {"state_dict": prefixed("generator.", s)}, "generator."),
        (lambda s: s, ""),
        (lambda s: prefixed("module.", s), "module."),
        (lambda s: {"params": s}, ""),
        (lambda s: {"params": {"conv.weight": torch.zeros(1)}, "params_ema": s}, ""),
        (lambda s: {key: torch.nn.Parameter(tensor) for key, tensor in s.items()}, ""),
        (lambda s: {key: tensor for key, tensor in s.items() if "spynet.mean" not in key}, ""),
    ],
)
def test_other_wrappings_of_a_generator_load(tmp_path, wrap, prefix, file_format):
    path = save(wrap(state_dict()), tmp_path / "w.pth", file_format)
    assert_loads(path, state_dict())
    assert read_network(path).prefix == prefix


def test_a_damaged_moving_average_is_never_replaced_by_the_generator(tmp_path):
    ema = state_dict("ema")
    del ema["basicvsr.conv_hr.bias"]
    assert "1 missing (basicvsr.conv_hr.bias)" in refusal(save(published(ema, state_dict()), tmp_path / "w.pth"))
    content = prefixed("generator.", state_dict()) | {"generator_ema.steps": torch.tensor(3)}
    assert "no 'basicvsr.spynet" in refusal(save(content, tmp_path / "w2.pth"))


def test_the_name_of_a_file_may_lie(tmp_path):
    write_weights(network(), tmp_path / "w.pth", metadata={}, dtype=torch.float32)
    assert_loads(tmp_path / "w.pth", state_dict())
    assert_loads(save(state_dict(), tmp_path / "w.safetensors"), state_dict())


class HistoryBuffer:
    """What OpenMMLab's newer tools keep of a loss; its name is in the file, its code is not needed."""

    def __init__(self) -> None:
        self._log_history = np.array([1.5, 2.5])
        self._count_history = np.array([1, 1])


@pytest.fixture
def mmengine(monkeypatch):
    """The module in which a checkpoint's HistoryBuffer says that it lives; gone when the file is read."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    module.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
        patch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
        patch.setitem(sys.modules, module.__name__, module)
        yield


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("numpy_core", ["numpy.core", "numpy._core"])
def test_numbers_of_numpy_and_logs_beside_the_weights_do_no_harm(tmp_path, mmengine, file_format, numpy_core):
    content = published(state_dict("ema"), state_dict())
    content["meta"] |= {"best": np.float64(1.5), "step": np.int64(3), "flags": np.array([True, False])}
    content["message_hub"] = {"log_scalars": collections.OrderedDict({"train/loss": HistoryBuffer()})}
    path = save(content, tmp_path / "w.pth", file_format)
    if numpy_core == "numpy.core":  # as numpy 1 wrote it
        path = rename_in_pickle(path, b"numpy._core", b"numpy.core")
    safe_before = set(torch.serialization.get_safe_globals())
    del sys.modules["mmengine.logging.history_buffer"]
    threads = [threading.Thread(target=load_model, args=(path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert_loads(path, state_dict("ema"))
    for thread in threads:
        thread.join()
    assert set(torch.serialization.get_safe_globals()) == safe_before


def rename_in_pickle(path: Path, old: bytes, new: bytes) -> Path:
    """Replace a text in a checkpoint's pickle."""
    if not zipfile.is_zipfile(path):
        path.write_bytes(path.read_bytes().replace(old, new))
        return path
    renamed = path.with_name("renamed.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(renamed, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, content.replace(old, new) if entry.filename.endswith(".pkl") else content)
    return renamed


def test_a_device_that_torch_does_not_have_is_a_runtime_error():
    with pytest.raises(RuntimeError):
        load_model(device="no such device")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError):
            load_model(device="cuda")


@pytest.mark.long
def test_nothing_is_printed(tmp_path):
    path = save(published(state_dict("ema"), state_dict()), tmp_path / "w.pth", "legacy")
    program = f"import vsrealbasicvsr; vsrealbasicvsr.load_model({str(path)!r}); vsrealbasicvsr.load_model()"
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "vsrealbasicvsr" not in done.stderr
    assert "torch.load" not in done.stderr


# ---- what is no file of weights -------------------------------------------------------------------------------------


def png() -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty. Download it again."),
        (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
        (b"\xef\xbb\xbf\r\n <HTML>\n<head>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is a Git LFS pointer"),
        (png(), r"neither safetensors nor a torch checkpoint (it begins with b'\x89PNG"),
        (b'{"error": "not found"}', "neither safetensors nor a torch checkpoint"),
        (b"\0" * 5000, "neither safetensors nor a torch checkpoint"),
        (b"\x1b[31mred\x07", r"it begins with b'\x1b[31mred\x07'"),
        (b"{", "neither safetensors nor a torch checkpoint"),
        (b"\x80", "is a pickle, cut off or damaged"),
        (b"PK\x03\x04" + bytes(100), "is a torch checkpoint, cut off or damaged"),
        (b"ustar" + bytes(507), "neither safetensors nor a torch checkpoint"),
    ],
)
def test_what_is_no_file_of_weights_is_called_what_it_is(tmp_path, content, found):
    path = tmp_path / "weights of mine.pth"
    path.write_bytes(content)
    assert found in refusal(path)


def test_paths_that_lead_to_no_file_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "no such.pth")
    assert "does not exist" in refusal(tmp_path / "no such folder" / "w.pth")
    assert "is a folder" in refusal(tmp_path)
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000))
    with pytest.raises(WeightsError, match="is not a path"):
        load_model("a\0b")
    with pytest.raises(WeightsError, match="is not a path here"):
        load_model("~no_such_user_anywhere/w.pth")
    with pytest.raises(WeightsError, match=r"^'two\\nlines\.pth' does not exist"):
        load_model("two\nlines.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    path.touch(0)
    assert "cannot be read (Permission denied)" in refusal(path)


@pytest.mark.parametrize("part", [0.0005, 0.01, 0.03, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("file_format", ["safetensors", *FORMATS])
def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(tmp_path, file_format, part):
    path = tmp_path / "w.pth"
    if file_format == "safetensors":
        write_weights(network(), path, metadata={})
    else:
        save(published(state_dict("ema"), state_dict()), path, file_format)
    content = path.read_bytes()
    path.write_bytes(content[: max(10, int(len(content) * part))])
    found = refusal(path)
    assert "cut off or damaged" in found
    assert "again" in found


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_file_with_a_damaged_pickle_is_refused_in_one_line(tmp_path, file_format):
    """Any byte of the pickle may be wrong: every type of exception that this raises becomes a WeightsError."""
    path = save(
        {"a": torch.zeros(2), "b": collections.OrderedDict(c=[1, 2.5, None, "text"])}, tmp_path / "w.pth", file_format
    )
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in generator.integers(0, min(len(content), 700), size=3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of other protocols of pickle
            refusal(path)


@pytest.mark.parametrize(
    "header", [b"{", b'{"a":1}', b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"{}" * 50]
)
@pytest.mark.parametrize("claimed", [8, 10**6, 10**12, 2**63])
def test_a_safetensors_header_with_a_wrong_size_is_refused(tmp_path, header, claimed):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + header)
    assert "cut off or damaged: safetensors says" in refusal(path)


def write_safetensors_header(path: Path, header: dict[str, object], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_a_safetensors_header_that_claims_giant_tensors_is_refused(tmp_path):
    for shape, offsets in (([10**15], [0, 4 * 10**15]), ([10**15], [0, 16]), ([2**62, 2**62], [0, 16])):
        header = {"image_cleaning.1.bias": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}
        assert "safetensors says" in refusal(write_safetensors_header(tmp_path / "w.safetensors", header, bytes(16)))


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "F6_E2M3", "NO"])
def test_numbers_of_a_type_that_torch_does_not_have_are_refused(tmp_path, dtype):
    header = {"image_cleaning.1.bias": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8]}}
    refusal(write_safetensors_header(tmp_path / "w.safetensors", header, bytes(8)))


# ---- pickles that would run code ------------------------------------------------------------------------------------


class Calls:
    """Unpickling this calls `function(*arguments)`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


class OfMine:
    """A class: unpickling it imports a module."""


def evil_things(victim: Path) -> dict[str, tuple[object, str]]:
    """Things that would leave a file `victim`, and the name that the refusal must hold."""
    touch = f"open({str(victim)!r}, 'w').close()"
    return {
        "os.system": (Calls(os.system, f"touch {victim}"), f"{os.name}.system"),
        "eval": (Calls(builtins.eval, touch.replace(".close()", "")), "builtins.eval"),
        "exec": (Calls(builtins.exec, touch), "builtins.exec"),
        "subprocess": (Calls(subprocess.check_call, ["touch", str(victim)]), "subprocess.check_call"),
        "a function of torch": (Calls(torch.save, 1, str(victim)), "torch.serialization.save"),
        "getattr": (Calls(getattr, Calls(getattr, victim, "touch"), "__call__"), "builtins.getattr"),
        "a class": (OfMine(), "test_weights.OfMine"),
        "a whole network": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    }


@pytest.mark.parametrize("place", ["alone", "beside the weights", "instead of a tensor"])
@pytest.mark.parametrize("file_format", [*FORMATS, "protocol 2", "protocol 3", "protocol 4", "protocol 5"])
def test_a_pickle_that_would_run_code_is_not_loaded_and_says_what_it_calls(tmp_path, file_format, place):
    victim = tmp_path / "victim"
    for number, (thing, name) in enumerate(evil_things(victim).values()):
        content: object = thing
        if place == "beside the weights":
            content = {"state_dict": prefixed("generator_ema.", state_dict()), "meta": thing}
        elif place == "instead of a tensor":
            content = {"state_dict": state_dict() | {"basicvsr.conv_hr.bias": thing}}
        path = tmp_path / f"{number}.pth"
        if file_format in FORMATS:
            save(content, path, file_format)
        else:
            if place != "alone":
                content = {"state_dict": {"basicvsr.conv_hr.bias": thing}}
            path.write_bytes(pickle.dumps(content, protocol=int(file_format[-1])))
        found = refusal(path)
        assert "would run code when unpickled, so it was not loaded" in found
        assert name in found
        assert not victim.exists()


def test_pickles_of_the_oldest_protocols_are_refused_too(tmp_path):
    victim = tmp_path / "victim"
    for protocol in (0, 1):
        path = tmp_path / "w.pth"
        path.write_bytes(pickle.dumps(Calls(os.system, f"touch {victim}"), protocol=protocol))
        assert "neither safetensors nor a torch checkpoint" in refusal(path)
    assert not victim.exists()


def test_code_behind_an_extension_number_is_not_run(tmp_path):
    victim = tmp_path / "victim"
    copyreg.add_extension("os", "system", 240)
    copyreg.add_extension(os.system.__module__, "system", 241)
    try:
        path = tmp_path / "w.pth"
        path.write_bytes(pickle.dumps(Calls(os.system, f"touch {victim}"), protocol=2))
        refusal(path)
    finally:
        copyreg.remove_extension("os", "system", 240)
        copyreg.remove_extension(os.system.__module__, "system", 241)
    assert not victim.exists()


def test_a_pickle_of_numbers_is_no_checkpoint(tmp_path):
    for content in ({"a": 1}, [1, 2], 3, collections.OrderedDict(a=1)):
        path = tmp_path / "w.pth"
        path.write_bytes(pickle.dumps(content, protocol=2))
        assert "is a Python pickle, but not a checkpoint of torch.save" in refusal(path)


# ---- files that would take all memory -------------------------------------------------------------------------------


def test_a_giant_byte_array_is_not_made(tmp_path):
    for file_format in FORMATS:
        path = save({"meta": Calls(bytearray, 10**13)}, tmp_path / "w.pth", file_format)
        assert "builtins.bytearray" in refusal(path)


def test_a_zip_file_that_grows_is_not_unpacked(tmp_path):
    path = save({"image_cleaning.1.bias": torch.zeros(10**6)}, tmp_path / "w.pth")
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert "grows when unpacked" in refusal(packed)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_tensor_that_repeats_one_number_is_refused(tmp_path, file_format):
    repeated = {"basicvsr.conv_hr.weight": torch.zeros(1).expand(10**6, 10**5, 3, 3)}
    assert "fewer values than its shape" in refusal(save(state_dict() | repeated, tmp_path / "w.pth", file_format))


def test_a_file_that_claims_a_giant_width_is_refused_before_the_network_is_built(tmp_path):
    wide = {"image_cleaning.0.main.0.weight": torch.zeros(10**5, 3, 3, 3)}  # its blocks would take 360 GB each
    assert "networks have 4096 at most" in refusal(save(state_dict() | wide, tmp_path / "w.pth"))


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_storage_that_claims_to_be_giant_is_refused(tmp_path, file_format):
    path = save({"image_cleaning.1.bias": torch.zeros(77)}, tmp_path / "w.pth", file_format)
    # BININT1 77 stands for the storage's size and the tensor's shape.
    path = rename_in_pickle(path, b"K\x4d", b"\x8a\x07" + (10**15).to_bytes(7, "little"))
    assert "cut off or damaged" in refusal(path)


def test_a_storage_that_claims_a_value_more_than_its_entry_holds_is_refused(tmp_path):
    path = save({"image_cleaning.1.bias": torch.zeros(77)}, tmp_path / "w.pth")
    path = rename_in_pickle(path, b"K\x4d", b"K\x4e")
    assert "storage 0 claims 312 bytes and has 308" in refusal(path)


# ---- checkpoints of something else ----------------------------------------------------------------------------------


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")  # torch deprecates quantized tensors when the test makes one
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (lambda: torch.zeros(3), "holds a Tensor, not a dictionary of tensors"),
        (lambda: [torch.zeros(3)], "holds a list, not a dictionary of tensors"),
        (lambda: {}, "no 'basicvsr.spynet.basic_module.0.basic_module.0.conv.weight' among 0 keys"),
        (lambda: {"state_dict": {}}, "among 0 keys"),
        (lambda: {"conv.weight": torch.zeros(3)}, "among 1 keys (they begin with 'conv.weight')"),
        (lambda: {1: torch.zeros(3)}, "among 1 keys (they begin with '1')"),
        (lambda: {"epoch": 3, "lr": 0.1}, "among 0 keys"),
        (lambda: state_dict() | {"basicvsr.more": torch.zeros(1)}, "1 extra (basicvsr.more)"),
        (
            lambda: state_dict() | {"basicvsr.conv_hr.bias": [1.0]},
            "holds a list instead of a tensor at 'basicvsr.conv_hr",
        ),
        (lambda: state_dict() | {"basicvsr.conv_hr.bias": torch.zeros(5)}, "misshapen (basicvsr.conv_hr.bias (5,)"),
        (lambda: state_dict() | {"basicvsr.conv_hr.bias": torch.ones(4).long()}, "1 not of a floating type"),
        (lambda: state_dict() | {"basicvsr.conv_hr.bias": torch.tensor([0, 0, 0, torch.nan])}, "NaN or infinite"),
        (lambda: state_dict() | {"basicvsr.conv_hr.bias": torch.tensor([0, 0, 0, -torch.inf])}, "NaN or infinite"),
        (lambda: state_dict() | {"basicvsr.conv_hr.bias": torch.zeros(4, device="meta")}, "_rebuild_meta_tensor"),
        (lambda: state_dict() | {"basicvsr.conv_hr.bias": torch.zeros(4).to_sparse()}, "_rebuild_sparse_tensor"),
        (lambda: state_dict() | {"basicvsr.conv_hr.bias": quantized()}, "_rebuild_qtensor"),
        (lambda: {"\x1b[31m\n" + "x" * 9999: torch.zeros(2)}, "among 1 keys"),
        (lambda: state_dict() | {"\x1b[31m\n" + "x" * 9999: torch.zeros(2)}, "1 extra (?[31m xxx"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused_with_what_was_found(tmp_path, broken, found, file_format):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save(broken(), tmp_path / "w.pth", file_format)
    assert found in refusal(path)


def test_a_safetensors_file_of_something_else_is_refused_with_what_was_found(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"encoder.weight": torch.zeros(3)}, path)
    assert "among 1 keys (they begin with 'encoder.weight')" in refusal(path)
    save_file(state_dict() | {"basicvsr.conv_hr.bias": torch.zeros(4, dtype=torch.int32)}, path)
    assert "1 not of a floating type" in refusal(path)
    save_file({}, path)
    assert "among 0 keys" in refusal(path)


@pytest.mark.parametrize(
    "names", [["archive/code/a.py", "archive/data.pkl", "archive/constants.pkl"], ["word/a.xml"], []]
)
def test_a_zip_file_of_something_else_is_refused_with_what_is_in_it(tmp_path, names):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")
    found = refusal(path)
    assert ("is a zip file but not a checkpoint of torch.save" in found) == bool(names)
    assert all(name in found for name in names)


# ---- conversion -----------------------------------------------------------------------------------------------------


def convert(*arguments: object) -> int:
    return convert_weights.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_converted_checkpoint_gives_the_same_output_to_the_bit(tmp_path, file_format, capsys):
    source = save(published(state_dict("ema"), state_dict()), tmp_path / "in.pth", file_format)
    target = tmp_path / "out.safetensors"
    assert convert(source, target, "--licence", "Apache-2.0, (c) the authors") == 0
    assert_loads(target, state_dict("ema"))
    lr = torch.rand(1, 2, 3, 7, 6)
    assert torch.equal(load_model(target)(lr), load_model(source)(lr))
    metadata = read_network(target).metadata
    assert metadata["licence"] == "Apache-2.0, (c) the authors"
    assert metadata["network"].startswith("EMA")
    assert metadata["precision"] == "float32"
    assert metadata["source_file"] == "in.pth"
    assert len(metadata["source_sha256"]) == 64
    assert metadata["source_is"].startswith("not a published file")
    assert json.loads(metadata["architecture"])["num_flow_levels"] == 2
    assert capsys.readouterr().out.startswith(f"{target}: EMA")


def test_half_precision_is_rounded_once_and_half_the_size(tmp_path):
    source = save(prefixed("generator.", state_dict()), tmp_path / "in.pth")
    assert convert(source, tmp_path / "full.safetensors") == 0
    assert convert(source, tmp_path / "half.safetensors", "--half") == 0
    expected = {k: t if k.endswith((".mean", ".std")) else t.half() for k, t in state_dict().items()}
    assert load_file(tmp_path / "half.safetensors")["basicvsr.conv_hr.bias"].dtype == torch.float16
    assert_loads(tmp_path / "half.safetensors", expected)
    metadata = read_network(tmp_path / "half.safetensors").metadata
    assert metadata["network"] == "generator: the file has no moving average of it"
    assert metadata["licence"] == "not stated"


def test_a_published_file_is_recognised_by_its_sha256(tmp_path, monkeypatch):
    source = save(state_dict(), tmp_path / "in.pth")
    monkeypatch.setitem(converting.PUBLISHED_SHA256, converting.sha256_of(source)[:8], "the one of this test")
    assert convert(source, tmp_path / "out.safetensors") == 0
    metadata = read_network(tmp_path / "out.safetensors").metadata
    assert metadata["source_is"] == "the one of this test"
    assert metadata["network"] == "the only network of the file"


def test_what_a_safetensors_file_says_of_itself_is_kept(tmp_path):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_weights(network(), source, metadata={"licence": "CC0", "training": "long"}, dtype=torch.float32)
    assert convert(source, target, "--half") == 0
    metadata = read_network(target).metadata
    assert metadata["licence"] == "CC0"
    assert metadata["training"] == "long"


def test_nothing_is_overwritten_unless_it_is_forced_and_never_the_checkpoint(tmp_path, capsys):
    source = save(state_dict(), tmp_path / "in.pth")
    target = tmp_path / "out.safetensors"
    target.write_text("precious")
    assert convert(source, target) == 1
    assert target.read_text() == "precious"
    assert capsys.readouterr().err == (
        f"convert_weights: {target} exists. Name another file, or use --force to replace it.\n"
    )
    assert convert(source, target, "--force") == 0
    assert_loads(target, state_dict())
    before = source.read_bytes()
    assert convert(source, source, "--force") == 1
    assert source.read_bytes() == before


def test_a_conversion_that_fails_leaves_what_was_there_and_says_why_in_one_line(tmp_path, capsys):
    source = save(state_dict(), tmp_path / "in.pth")
    target = tmp_path / "out.safetensors"
    target.write_text("precious")
    large = save(state_dict() | {"basicvsr.conv_hr.bias": torch.full((4,), 1e6)}, tmp_path / "large.pth")
    page = tmp_path / "page.pth"
    page.write_text("<html>")
    folder = tmp_path / "folder"
    folder.mkdir()
    for arguments, found in (
        ((page, target, "--force"), "is a web page"),
        ((tmp_path / "no.pth", target, "--force"), "does not exist"),
        ((large, target, "--force", "--half"), "not finite as torch.float16"),
        ((source, folder, "--force"), "is a folder"),
        ((source, tmp_path / "no" / "out.safetensors"), "cannot be written (No such file or directory)"),
    ):
        assert convert(*arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("convert_weights: ")
        assert printed.err.count("\n") == 1
        assert found in printed.err
    assert target.read_text() == "precious"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["folder", "in.pth", "large.pth", "out.safetensors", "page.pth"]


@pytest.mark.long
def test_the_script_runs_from_the_command_line_without_a_traceback(tmp_path):
    script = Path(convert_weights.__file__)
    page = tmp_path / "page.pth"
    page.write_text("<html>")
    done = subprocess.run(
        [sys.executable, script, page, tmp_path / "out.safetensors"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"convert_weights: {refused(page)}"]


def refused(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_model(path)
    return str(caught.value)


# ---- damage that only a checksum tells of ----------------------------------------------------------------------------


def outcome(path: Path, expected: dict[str, Tensor]) -> str:
    """ "refused", or whether what was loaded is what was stored."""
    try:
        loaded = load_model(path).state_dict()
    except WeightsError:
        return "refused"
    return "same" if all(torch.equal(tensor, expected[key].float()) for key, tensor in loaded.items()) else "changed"


@pytest.mark.parametrize("file_format", ["zip", "safetensors", "two sets"])
def test_no_flipped_bit_changes_a_weight(tmp_path, file_format):
    path = tmp_path / "w"
    if file_format == "zip":
        save({"state_dict": state_dict()}, path)
    elif file_format == "safetensors":
        write_weights(network(), path, metadata={}, dtype=torch.float32)
    else:
        write_weights(network(), path, metadata={}, dtype=torch.float32, sharp=network("sharp"), default_detail=0)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = collections.Counter()
    for place in generator.integers(0, len(content), size=60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(0, 8))
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes[outcome(path, state_dict())] += 1
    assert outcomes["changed"] == 0
    assert outcomes["refused"] > 40  # the rest are bits that nobody reads: names of folders, padding


def test_a_damaged_zip_file_is_called_so_with_the_part_that_is(tmp_path):
    path = save(state_dict(), tmp_path / "w.pth")
    content = bytearray(path.read_bytes())
    place = content.index(state_dict()["basicvsr.conv_hr.weight"].numpy().tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    found = refusal(path)
    assert "is damaged: the checksum of 'w/data/" in found
    assert "Download or copy it again" in found


def test_a_checkpoint_that_was_written_without_checksums_loads(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(state_dict(), tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_loads(path, state_dict())


def flip_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_damaged_default_weights_are_an_error(tmp_path, monkeypatch):
    path = tmp_path / "default.safetensors"
    write_weights(network(), path, metadata={})
    monkeypatch.setattr(reading, "DEFAULT_WEIGHTS", path)
    assert load_model("default").sizes == SIZES
    flip_a_weight(path)
    with pytest.raises(WeightsError, match=r"is damaged: the SHA-256 .* Install vsrealbasicvsr again\.$"):
        load_model("default")


def test_a_file_without_a_sha256_is_read_as_before_and_a_converted_one_has_its_own(tmp_path):
    plain, target = tmp_path / "plain.safetensors", tmp_path / "out.safetensors"
    save_file(state_dict(), plain)
    assert_loads(plain, state_dict())
    assert convert(plain, target) == 0
    assert convert(target, tmp_path / "half.safetensors", "--half") == 0
    stated = [read_network(path).metadata["tensors_sha256"] for path in (target, tmp_path / "half.safetensors")]
    assert len(stated[0]) == 64
    assert stated[0] != stated[1]
    flip_a_weight(target)
    assert "SHA-256 of its tensors" in refusal(target)


# ---- other wrappers, other networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s},
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "epoch": 3},
        lambda s: {"ema": s, "model": {"conv.weight": torch.zeros(3)}, "iteration": 5},
        lambda s: {"ema": {"decay": 0.999}, "net": s},
        lambda s: {"params": {"module." + key: tensor for key, tensor in s.items()}},
        lambda s: {"state_dict": {"model": s}},
        lambda s: prefixed("_orig_mod.", s),
        lambda s: {"state_dict": prefixed("model._orig_mod.", s)},
        lambda s: prefixed("module._orig_mod.", s),
        lambda s: prefixed("net_g.", s),
        lambda s: {"state_dict": prefixed("model.", s) | {"loss.weight": torch.zeros(3)}},
        lambda s: {"model": prefixed("net.", s)},
        lambda s: {"state_dict": prefixed("model.generator_ema.", s) | {"model.generator.image_cleaning.1.bias": 3}},
        lambda s: s | {"step_counter": torch.tensor([150000]), "n_averaged": torch.tensor(3), "lr": 0.1},
    ],
)
def test_the_right_network_under_other_wrappers_and_prefixes_loads(tmp_path, wrap):
    assert_loads(save(wrap(state_dict()), tmp_path / "w.pth"), state_dict())


def test_the_weights_of_a_training_checkpoint_are_its_moving_average(tmp_path):
    checkpoint = {"iteration": 1, "model": state_dict(), "ema": state_dict("ema"), "optimizer": {}}
    assert_loads(save(checkpoint, tmp_path / "w.pt"), state_dict("ema"))


def test_a_moving_average_in_a_wrapper_is_never_replaced_by_the_generator(tmp_path):
    content = {"params": state_dict(), "params_ema": {"conv.weight": torch.zeros(3)}}
    assert "'conv.weight'" in refusal(save(content, tmp_path / "w.pth"))


STRANGERS = {
    "BasicVSR, which has no cleaning module": [
        *("spynet.basic_module.0.basic_module.0.conv.weight", "backward_resblocks.main.0.weight"),
        *("forward_resblocks.main.0.weight", "fusion.weight", "upsample1.upsample_conv.weight"),
    ],
    "BasicVSR++": [
        *("spynet.basic_module.0.basic_module.0.conv.weight", "feat_extract.main.0.weight"),
        *("deform_align.backward_1.weight", "backbone.backward_1.main.0.weight", "reconstruction.main.0.weight"),
    ],
    "IconVSR": ["edvr.conv_first.weight", "backward_fusion.weight", "backward_resblocks.main.0.weight"],
    "EDVR": ["conv_first.weight", "pcd_align.offset_conv1.l3.weight", "fusion.temporal_attn1.weight"],
    "Real-ESRGAN or ESRGAN (RRDBNet)": ["conv_first.weight", "body.0.rdb1.conv1.weight", "conv_body.weight"],
    "Real-ESRGAN's compact network (SRVGGNetCompact)": [
        "body.0.weight",
        "body.0.bias",
        "body.1.weight",
        "body.2.weight",
    ],
    "SPyNet, the flow network alone": ["basic_module.0.basic_module.0.conv.weight"],
    "SwinIR or one of its kind": ["conv_first.weight", "layers.0.residual_group.blocks.0.norm1.weight"],
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("prefix", ["", "generator.", "module.", "net_g.", "basicvsr."])
def test_another_network_is_called_by_its_name(tmp_path, name, prefix):
    tensors = {prefix + key: torch.zeros(2, 3) for key in STRANGERS[name]}
    found = refusal(save({"params_ema": tensors}, tmp_path / "w.pth"))
    if prefix != "basicvsr." or name.startswith("BasicVSR,"):
        assert f"is not usable: it holds {name}. Use weights of RealBasicVSR." in found


# ---- crafted files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_built(monkeypatch):
    """What takes long for a crafted file is not even begun."""

    def never(*_, **__):
        raise AssertionError("this should not have been reached")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(reading.RealBasicVSR, "__init__", never)


def craft(path: Path, pickled: bytes) -> Path:
    """A zip checkpoint with another pickle."""
    whole = save({"a": torch.zeros(1)}, path.with_name("whole.pth"))
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, pickled if entry.filename.endswith(".pkl") else source.read(entry))
    return path


NUMBER = 200_000
CRAFTED = {
    "nested lists": b"\x80\x02" + b"]" * NUMBER + b"a" * (NUMBER - 1) + b".",
    "nested dictionaries": b"\x80\x02" + b"}K\x01" * NUMBER + b"N" + b"s" * NUMBER + b".",
    "nested tuples": b"\x80\x02" + b"(" * NUMBER + b"t" * NUMBER + b".",
    "a long tuple": b"\x80\x02(" + b"N" * NUMBER + b"t.",
    "many operations": b"\x80\x02}" + b"K\x01K\x01s" * 400_000 + b".",
}


@pytest.mark.parametrize("what", CRAFTED)
@pytest.mark.long
def test_a_pickle_that_only_takes_time_is_not_read(tmp_path, nothing_is_built, what):
    assert "more than any file of weights does" in refusal(craft(tmp_path / "w.pth", CRAFTED[what]))
    legacy = tmp_path / "legacy.pth"
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    legacy.write_bytes(magic + CRAFTED[what])
    assert "more than any file of weights does" in refusal(legacy)


@pytest.mark.long
def test_a_file_of_very_many_tensors_is_not_read(tmp_path, nothing_is_built):
    header = {f"k{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    assert "larger than any file of weights" in refusal(write_safetensors_header(tmp_path / "a", header, bytes(9)))
    header = dict(list(header.items())[:30_000])
    assert "30,000 tensors, more than any" in refusal(write_safetensors_header(tmp_path / "b", header, b""))
    many = tmp_path / "many.pth"
    with zipfile.ZipFile(many, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        for number in range(50_000):
            archive.writestr(f"archive/data/{number:030d}", b"")
    assert "more than any file of weights does (its table of contents)" in refusal(many)


@pytest.mark.parametrize(
    "key",
    [
        "basicvsr.spynet.basic_module.999.basic_module.0.conv.weight",
        "image_cleaning.0.main.2.999.conv1.weight",
        "basicvsr.forward_resblocks.main.2.200.conv1.weight",
    ],
)
def test_a_network_of_very_many_parts_is_not_built(tmp_path, nothing_is_built, key):
    path = tmp_path / "w.safetensors"
    save_file(dict(load_file(DEFAULT_WEIGHTS)) | {key: torch.zeros(1)}, path)
    assert "a key numbers its part" in refusal(path)


# ---- paths that are hard to read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Default", " default", "DEFAULT ", "default\n"])
def test_a_default_that_is_written_otherwise_is_told_how_to_write_it(name):
    with pytest.raises(WeightsError, match=r'does not exist as a file\. Write "default" for the default weights\.$'):
        load_model(name)


def test_a_path_in_latin_1_leads_to_its_file(tmp_path):
    path = os.fsencode(tmp_path) + b"/poids \xe9t\xe9.safetensors"
    try:
        write_weights(network(), Path(os.fsdecode(path)), metadata={}, dtype=torch.float32)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert_loads(Path(os.fsdecode(path)), state_dict())
    Path(os.fsdecode(path)).unlink()
    with pytest.raises(WeightsError, match=r"poids \\udce9t\\udce9\.safetensors' does not exist\. Use"):
        load_model(os.fsdecode(path))


def test_of_a_very_long_path_both_ends_are_shown():
    with pytest.raises(WeightsError) as caught:
        load_model("first" + "x" * 5000 + "last.pth")
    text = str(caught.value)
    assert text.startswith("firstxxx")
    assert "last.pth cannot be read (File name too long). Check" in text
    assert len(text) < 500

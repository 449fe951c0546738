"""Model files: what is saved is what is loaded, failures leave no trace, and other files are refused."""

import contextlib
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from fastconv import nn
from fastconv.nn import archive
from networks import branched_network, small_network


@pytest.mark.parametrize("make", [small_network, branched_network])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_save_and_load(tmp_path, make, dtype):
    model = make(dtype=dtype)
    x = np.random.default_rng(0).standard_normal((3, 2, 8, 8)).astype(dtype)
    model.forward(x, training=True)
    path = tmp_path / "model.bin"
    model.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.bin"]
    loaded = nn.load(path)
    assert type(loaded) is type(model)
    assert repr(loaded) == repr(model)
    assert [node.name for node in loaded.nodes] == [node.name for node in model.nodes]
    assert list(loaded.state_dict()) == list(model.state_dict())
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_array_equal(loaded.forward(x, training=True)[0], model.forward(x, training=True)[0])
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"architecture", *model.state_dict()}


def test_save_and_load_every_layer_and_nesting(tmp_path):
    block = nn.Sequential(
        nn.Conv2d(2, 4, (3, 1), 1, ((1, 1), (0, 0)), padding_mode="reflect", algorithm="direct"),
        nn.BatchNorm2d(4, 1e-3, None, False),
        nn.Dropout(0.1),
        nn.AvgPool2d(3, 1, 1, True, False),
    )
    relu = nn.ReLU()
    x = nn.Input((4, 6, 6))
    merge = nn.Model(x, nn.Concat(2)(nn.Add()(x, relu(x)), nn.MaxPool2d(2)(nn.Concat(3)(x, x))))
    model = nn.Sequential(block, relu, merge, relu, nn.GlobalAvgPool2d(), nn.Flatten(), nn.Softmax(-1))
    model.save(tmp_path / "m.npz")
    loaded = nn.load(tmp_path / "m.npz")
    assert repr(loaded) == repr(model)
    assert loaded[1] is loaded[3]
    data = np.random.default_rng(0).standard_normal((2, 2, 6, 6), dtype=np.float32)
    np.testing.assert_array_equal(loaded(data), model(data))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch, error):
    model = small_network()
    path = tmp_path / "m.npz"
    model.save(path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise error

    monkeypatch.setattr(archive.np, "savez", fail)
    with pytest.raises(type(error)):
        model.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def damaged(path, architecture=None, **arrays):
    with np.load(path) as file:
        content = dict(file)
    text = json.loads(str(content["architecture"][()]))
    if architecture is not None:
        architecture(text)
        content["architecture"] = np.array(json.dumps(text))
    content.update(arrays)
    with open(path, "wb") as file:
        np.savez(file, **content)


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "m.npz"
    for content in (b"", b"not a model", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="path must be a whole model that fastconv saved"):
            nn.load(path)
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(ValueError, match="path must be a whole model that fastconv saved"):
        nn.load(path)
    with open(path, "wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(ValueError, match="path must be a whole model that fastconv saved"):
        nn.load(path)
    with open(path, "wb") as file:
        np.savez(file, architecture=np.array([{}], object))
    with pytest.raises(ValueError, match="path must be a whole model"):
        nn.load(path)
    with pytest.raises(FileNotFoundError):
        nn.load(tmp_path / "absent.npz")


def test_load_refuses_damage(tmp_path):
    path = tmp_path / "m.npz"
    small_network().save(path)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="path must be"):
            nn.load(path)
    for change, message in [
        (lambda a: a.update(format="other"), "another program"),
        (lambda a: a.update(version=2), "format version 1"),
        (lambda a: a["layers"][0].update(type="Evil"), "unknown layer 'Evil'"),
        (lambda a: a["layers"][0].update(type="Model"), "unknown layer 'Model'"),
        (lambda a: a["layers"][0]["config"].update(spam=1), "spam"),
        (lambda a: a["layers"][0].update(config=[1]), "path must be"),
        (lambda a: a["layers"].pop(), "path must be"),
        (lambda a: a["layers"][0]["config"].update(out_channels=5), "path must be"),
        (lambda a: a.pop("model"), "path must be"),
        (lambda a: a.update(model=[]), "path must be"),
    ]:
        path.write_bytes(whole)
        damaged(path, change)
        with pytest.raises(ValueError, match=message):
            nn.load(path)
    path.write_bytes(whole)
    damaged(path, **{"0.weight": np.ones((4, 2, 3, 4))})
    with pytest.raises(ValueError, match=r"0\.weight"):
        nn.load(path)


def test_load_survives_flipped_bytes(tmp_path):
    path = tmp_path / "m.npz"
    small_network().save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(ValueError):
            nn.load(path)
            refused -= 1
        refused += 1
    assert refused > 400


def test_saved_files_get_the_usual_permissions(tmp_path):
    small_network().save(tmp_path / "m.npz")
    (tmp_path / "other").write_text("")
    assert (tmp_path / "m.npz").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_users_layers_can_be_saved_when_registered(tmp_path):
    @nn.register
    class Double(nn.Layer):
        def output_shape(self, *input_shapes):
            return input_shapes[0]

        def forward(self, x, mode=None):
            return 2 * x, None

    nn.Sequential(Double()).save(tmp_path / "m.npz")
    np.testing.assert_array_equal(nn.load(tmp_path / "m.npz")(np.ones((1, 2))), np.full((1, 2), 2.0))


def test_arguments_from_numpy_are_saved(tmp_path):
    """Sizes that were computed are NumPy's integers; lists and arrays are as good as tuples."""
    one, two = np.int64(1), np.int64(2)
    model = nn.Sequential(
        nn.Conv2d(two, 4, np.int64(3), padding=np.array([1, 1])),
        nn.Conv2d(4, 4, 3, padding=[[1, 1], [0, 2]]),
        nn.ConvTranspose2d(4, 4, 3, two, one, one),
        nn.SeparableConv2d(4, 4, 3, padding=one),
        nn.Cascade(np.int64(4), 4, bias=np.bool_(True)),
        nn.Upsample(scale_factor=[2, np.float32(1.5)]),
        nn.Upsample(np.array([9, 9]), mode="bilinear"),
        nn.ReflectionPad2d(one),
        nn.ConstantPad2d([1, one, 0, 2], np.float32(1.5)),
        nn.MaxPool2d([2, 2], [1, two], [one, 0]),
        nn.AdaptiveAvgPool2d((two, None)),
        nn.LeakyReLU(np.float32(0.1)),
        nn.LayerNorm(np.array([2, 6])),
    )
    model.save(tmp_path / "m.npz")
    loaded = nn.load(tmp_path / "m.npz")
    assert repr(loaded) == repr(model)
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert model.output_shape(x.shape) == model(x).shape


def test_a_layer_that_could_not_be_loaded_is_not_saved(tmp_path):
    class Twice(nn.ReLU):
        pass

    with pytest.raises(ValueError, match="mark its class with @fastconv.nn.register"):
        nn.Sequential(Twice()).save(tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "there" / "real.npz", tmp_path / "link.npz"
    target.parent.mkdir()
    link.symlink_to(target)
    model = small_network()
    model.save(link)
    assert link.is_symlink()
    assert target.is_file()
    assert list(nn.load(link).state) == list(model.state)


def test_two_threads_may_save_to_one_path(tmp_path):
    path = tmp_path / "m.npz"
    models = [small_network() for _ in range(2)]
    failed = []

    def save(model):
        try:
            for _ in range(10):
                model.save(path)
                nn.load(path)
        except (OSError, ValueError) as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
from fastconv import nn
from fastconv.nn import archive
savez = archive.np.savez
def half(file, **arrays):
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    sys.stdin.readline()
    file.seek(0)
    savez(file, **arrays)
archive.np.savez = half
model = nn.load(sys.argv[1])
model.save(sys.argv[1])
print("saved", flush=True)
"""


@contextlib.contextmanager
def writer_at_half(path):
    """Another process that has written half of a file."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        yield process
        process.kill()


def test_what_a_killed_save_leaves_goes_with_the_next(tmp_path):
    path, other = tmp_path / "m.npz", tmp_path / "other.npz"
    model = small_network()
    for name in (path, other):
        model.save(name)
    before = path.read_bytes()
    for name in (path, path, other):
        with writer_at_half(name) as process:
            process.kill()
            process.wait()
    assert path.read_bytes() == before
    left = {entry.name for entry in tmp_path.iterdir()} - {"m.npz", "other.npz"}
    assert {name.split(".npz")[0] for name in left} == {".m", ".other"}
    model.save(path)
    assert path.read_bytes() == before
    left = {entry.name for entry in tmp_path.iterdir()} - {"m.npz", "other.npz"}
    assert {name.split(".npz")[0] for name in left} == {".other"}


def test_a_save_leaves_those_of_other_processes_alone(tmp_path):
    path = tmp_path / "m.npz"
    model = small_network()
    model.save(path)
    with writer_at_half(path) as process:
        model.save(path)
        assert len(list(tmp_path.iterdir())) == 2
        nn.load(path)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "saved\n"
    assert list(tmp_path.iterdir()) == [path]
    assert list(nn.load(path).state) == list(model.state)

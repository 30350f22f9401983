"""`load_model`: one object, one preprocessing, every kind of image, and answers derived again from the model."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import PatchEmbed
from torch import nn

from dual_cross_attention import InputError, load_model
from dual_cross_attention.data.preprocessing import Preprocessing
from dual_cross_attention.inference.model_files import read_model_file, save_model
from dual_cross_attention.inference.prediction import Prediction

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"
NOISE = np.random.default_rng(0)


def noisy(height: int = 50, width: int = 70) -> np.ndarray:
    """uint8 (height, width, 3)"""
    return NOISE.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def seen():
    """The batches that networks read, in order."""
    batches = []

    def record(module: nn.Module, inputs: tuple) -> None:
        if isinstance(module, PatchEmbed):
            batches.append(inputs[0].detach().clone())

    handle = nn.modules.module.register_module_forward_pre_hook(record)
    yield batches
    handle.remove()


def all_of(batches: list[torch.Tensor]) -> torch.Tensor:
    together = torch.cat(batches)
    batches.clear()
    return together


def test_eval_predict_embed_and_python_read_the_same_pixels(tmp_path, dcal, seen, make_model):
    labels = ["ant", "bee", "cat"]
    for split, label in itertools.product(("train", "val"), labels):
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True)
        Image.fromarray(noisy()).save(folder / "a.png")
        Image.fromarray(noisy(400, 300)).save(folder / "b.jpg")  # is decoded at a fraction of its size
        Image.fromarray(noisy()[:, :, 0]).save(folder / "c.png")
    path, data, result = make_model(labels=labels), tmp_path / "data", tmp_path / "result.json"
    common = ["--device=cpu", "--num_workers=0", "--batch_size=3"]
    assert dcal("eval", path, "--dataset=folder", f"--data_root={data}", *common, f"--json={result}").status == 0
    evaluated = all_of(seen)
    assert evaluated.shape == (9, 3, 32, 40)

    assert dcal("predict", path, data / "val", *common, f"--output={tmp_path / 'p.json'}", "--top_k=3").status == 0
    predicted = all_of(seen)
    assert dcal("embed", path, data / "val", *common, f"--output={tmp_path / 'e.npz'}").status == 0
    embedded = all_of(seen)
    birds = load_model(path, device="cpu")
    files = sorted((data / "val").rglob("*.*"))
    in_python = list(birds.predict(files, top_k=3, batch_size=3))
    read = all_of(seen)
    assert torch.equal(evaluated, predicted) and torch.equal(evaluated, embedded) and torch.equal(evaluated, read)
    assert torch.equal(torch.stack([birds.transform(file) for file in files]), evaluated)

    rows = json.loads((tmp_path / "p.json").read_text())["images"]
    assert [row["path"] for row in rows] == [str(file) for file in files]
    assert [row["probability"] for row in rows] == pytest.approx([p.probability for p in in_python], abs=1e-6)
    correct = [p.label == file.parent.name for p, file in zip(in_python, files, strict=True)]
    assert json.loads(result.read_text())["top1"] == pytest.approx(100 * np.mean(correct))
    # And the numbers are those of the model on these pixels.
    out = birds.model(evaluated)
    mean = (out.logits["sa"].double().softmax(-1) + out.logits["glca"].double().softmax(-1)) / 2
    assert [p.label for p in in_python] == [labels[i] for i in mean.argmax(-1)]
    assert [p.probability for p in in_python] == pytest.approx(mean.amax(-1).tolist(), abs=1e-5)
    assert [[value for _, value in p.top] for p in in_python] == [
        pytest.approx(row, abs=1e-5) for row in mean.sort(-1, descending=True).values.tolist()
    ]
    features = torch.cat([out.features["sa"], out.features["glca"]], dim=1).double()
    expected = features / features.square().sum(1, keepdim=True).sqrt()
    with np.load(tmp_path / "e.npz") as file:
        assert np.abs(file["features"] - expected.detach().numpy()).max() < 1e-5


def test_eval_takes_the_preprocessing_of_the_model_file(tmp_path, dcal, seen, make_model, images):
    path = make_model(labels=["ant", "bee", "cat"])
    other = Preprocessing((32, 40), (50, 60), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "bilinear")
    copy = rewritten(path, tmp_path, preprocessing=other)
    arguments = ["--dataset=folder", f"--data_root={images}", "--device=cpu", "--num_workers=0"]
    assert dcal("eval", copy, *arguments).status == 0
    evaluated = all_of(seen)
    files = sorted((images / "val").rglob("*.png"))
    assert torch.equal(evaluated, torch.stack([load_model(copy, device="cpu").transform(file) for file in files]))
    assert not torch.allclose(evaluated, torch.stack([load_model(path).transform(file) for file in files]))


@pytest.mark.parametrize("task", ["fgvc", "reid"])
def test_models_of_format_1_load(task, seen):
    model = load_model(FORMAT_1 / f"{task}-finished", device="cpu")
    assert model.embed(noisy()).shape == (1, model.feature_width())
    pixels = all_of(seen)
    # They name neither mean nor std: timm's (0.5) of this ViT, and re-ID's.
    assert model.transform.mean == model.transform.std == (0.5, 0.5, 0.5)
    assert pixels.shape[-2:] == model.transform.img_size
    if task == "fgvc":
        assert model.predict(noisy()).label in model.labels


def test_reid_eval_and_embed_read_the_same_pixels_and_score_the_same(tmp_path, dcal, seen, make_model, people):
    """Features as the settings say, held against `dcal eval`'s own."""
    path = make_model("reid", feature="after_neck", normalize_features=False)
    common = ["--device=cpu", "--num_workers=0"]
    status = dcal("eval", path, "--dataset=folder", f"--data_root={people}", *common).status
    assert status == 0
    evaluated = all_of(seen)
    files = [*sorted((people / "query").rglob("*.png")), *sorted((people / "gallery").rglob("*.png"))]
    model = load_model(path, device="cpu")
    features = model.embed(files)
    read = all_of(seen)
    assert sorted(image.sum().item() for image in read) == sorted(image.sum().item() for image in evaluated)
    out = model.model(read)
    expected = []
    for branch, head in (("sa", model.model.sa_head), ("glca", model.model.glca_head)):
        norm = next(module for module in head.modules() if isinstance(module, nn.BatchNorm1d))
        x = out.features[branch].double()
        expected.append((x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias)
    assert features.dtype == torch.float32 and features.shape == (len(files), 96)
    torch.testing.assert_close(features.double(), torch.cat(expected, dim=1).detach(), atol=1e-4, rtol=1e-4)
    assert torch.allclose(model.embed(files, branch="glca").double(), expected[1].detach(), atol=1e-4)
    normalized = load_model(make_model("reid"), device="cpu")
    torch.testing.assert_close(normalized.embed(files).norm(dim=1), torch.ones(len(files)))
    with pytest.raises(InputError, match="embed"):
        model.predict(files)


def test_every_kind_of_input_gives_the_same_answer(tmp_path, make_model):
    model = load_model(make_model(), device="cpu")
    pixels = noisy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    expected = model.predict(Image.fromarray(pixels)).top
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    opaque = np.concatenate([pixels, np.full((50, 70, 1), 255, np.uint8)], axis=2)
    for image in (path, str(path), pixels, np.asfortranarray(pixels), tensor, opaque, Image.fromarray(opaque)):
        found = model.predict(image)
        assert isinstance(found, Prediction)
        assert found.top == expected and (found.label, found.probability) == expected[0] and found.known is None
    assert model.predict(path).path == str(path) and model.predict(pixels).path is None
    for images in ([path, pixels], (x for x in (path, pixels)), np.stack([pixels, pixels]), torch.stack([tensor] * 2)):
        tops = [p.top for p in model.predict(images)]
        assert [[label for label, _ in top] for top in tops] == [[label for label, _ in expected]] * 2
        for top in tops:
            assert [value for _, value in top] == pytest.approx([value for _, value in expected], abs=1e-6)
    gray = pixels[:, :, 0]
    expected = model.predict(np.repeat(gray[:, :, None], 3, axis=2)).top
    for image in (gray, gray[:, :, None], torch.from_numpy(gray), torch.from_numpy(gray)[None], Image.fromarray(gray)):
        assert model.predict(image).top == expected
    assert list(model.predict([])) == [] and model.embed([]).shape == (0, 96)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((8, 8, 3), np.float32), ["uint8", "float32"]),
        (np.zeros((8, 8, 3), bool), ["uint8", "bool"]),
        (np.zeros((3, 8, 8), np.uint8), ["(H, W, C)", "transpose(1, 2, 0)"]),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), ["(C, H, W)", "permute(2, 0, 1)"]),
        (torch.zeros(3, 8, 8), ["uint8", "torch.float32"]),
        (np.zeros((8, 8, 2), np.uint8), ["(8, 8, 2)"]),
        (np.zeros((0, 8, 3), np.uint8), ["(0, 8, 3)"]),
        (np.zeros(8, np.uint8), ["(8,)"]),
        (np.zeros((1, 1, 8, 8, 3), np.uint8), ["(1, 1, 8, 8, 3)"]),
        (3, ["int 3"]),
        (None, ["NoneType"]),
        (b"a.jpg", ["bytes"]),
        ({"a.jpg": 1}, ["dict"]),
        ([["a.jpg"]], ["images[0]", "list"]),
        ([np.zeros((8, 8), np.uint8), None], ["images[1]", "NoneType"]),
        (np.zeros((2, 8, 8, 3), np.float64), ["images[0]", "float64"]),
    ],
    ids=lambda value: None if isinstance(value, list) else type(value).__name__,
)
def test_other_input_is_refused(make_model, image, said):
    model = load_model(make_model(ablation="sa_only"), device="cpu")
    with pytest.raises(InputError) as error:
        found = model.predict(image)
        list([found] if isinstance(found, Prediction) else found)
    for words in said:
        assert words in str(error.value)


def test_files_of_every_kind(tmp_path, make_model):
    """EXIF, gray, RGBA, CMYK, palette and 16 bits, each against the 8-bit RGB pixels that it stands for."""
    model = load_model(make_model(), device="cpu")
    pixels, gray = noisy(), noisy()[:, :, 0]
    expected = {}

    def save(name: str, image: Image.Image, stands_for: np.ndarray, **options) -> None:
        image.save(tmp_path / name, **options)
        expected[name] = stands_for

    exif = Image.Exif()
    exif[274] = 6  # the camera lay on its side: turn by 90 degrees clockwise to see it upright
    save("exif.png", Image.fromarray(pixels), np.rot90(pixels, -1), exif=exif)
    save("gray.png", Image.fromarray(gray), np.repeat(gray[:, :, None], 3, 2))
    alpha = np.full((50, 70), 128, np.uint8)
    blended = np.round((pixels.astype(float) * 128 + 255 * 127) / 255).astype(np.uint8)
    save("rgba.png", Image.fromarray(np.dstack([pixels, alpha])), blended)
    cmyk = np.dstack([noisy(), np.zeros((50, 70), np.uint8)])
    save("cmyk.tif", Image.frombytes("CMYK", (70, 50), cmyk.tobytes()), 255 - cmyk[:, :, :3])
    save("16.png", Image.fromarray(gray.astype(np.uint16) * 256 + 77), np.repeat(gray[:, :, None], 3, 2))
    few = pixels // 128 * 255
    save("palette.gif", Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE), few)
    for name, stands_for in expected.items():
        found, wanted = model.transform(tmp_path / name), model.transform(Image.fromarray(stands_for))
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 1.5 / 255 / 0.2, name
        assert model.predict(tmp_path / name).label == model.predict(stands_for).label, name


def test_unreadable_files_have_their_place(tmp_path, make_model):
    Image.fromarray(noisy()).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:2000])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").touch()
    names = ["cut.jpg", "a.jpg", "text.jpg", "missing.jpg", "empty.png", "a.jpg", "."]
    model = load_model(make_model(), device="cpu")
    found = list(model.predict([tmp_path / name for name in names], batch_size=2))
    assert [p.error is None for p in found] == [False, True, False, False, False, True, False]
    assert [p.path for p in found] == [str(tmp_path / name) for name in names]
    assert found[1].label == found[5].label
    for p in found:
        assert (p.label is None, p.probability is None, p.top == []) == (p.error is not None,) * 3
    assert model.predict(tmp_path / "missing.jpg").error
    with pytest.raises(InputError, match="text"):
        model.embed([tmp_path / "a.jpg", tmp_path / "text.jpg"])
    embedded = list(model.embeddings([tmp_path / name for name in names], num_workers=1))
    assert [e.error for e in embedded] == [p.error for p in found]
    torch.testing.assert_close(torch.from_numpy(embedded[1].feature)[None], model.embed(tmp_path / "a.jpg"))


def test_an_endless_iterable_is_streamed(make_model):
    model, taken = load_model(make_model(ablation="sa_only"), device="cpu"), []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield np.full((8, 8), number % 256, np.uint8)

    found = list(itertools.islice(model.predict(endless(), batch_size=8), 20))
    assert len(found) == 20 and len(taken) <= 32


def test_one_branch_does_not_compute_the_other(make_model):
    model = load_model(make_model(), device="cpu")
    image = noisy()
    both, sa, glca = (model.predict(image, top_k=7, branch=branch) for branch in (None, "sa", "glca"))
    mean = {label: (value + dict(glca.top)[label]) / 2 for label, value in sa.top}
    assert dict(both.top) == pytest.approx(mean, abs=1e-6)
    feature = model.embed(image, branch="sa")
    assert feature.shape == (1, 48)

    def fail(*_):
        raise AssertionError("GLCA was computed")

    for block in model.model.glca_blocks:
        block.register_forward_pre_hook(fail)
    assert model.predict(image, top_k=7, branch="sa") == sa
    torch.testing.assert_close(model.embed(image, branch="sa"), feature)
    with pytest.raises(AssertionError):
        model.predict(image)
    only = load_model(make_model(ablation="sa_only"), device="cpu")
    for branch in ("glca", "pwca", "SA"):
        with pytest.raises(InputError, match="branch"):
            only.predict(image, branch=branch)


def test_top_k(make_model):
    model = load_model(make_model(), device="cpu")
    assert [len(model.predict(noisy(), top_k=k).top) for k in (1, 3, 7, 50)] == [1, 3, 7, 7]
    assert math.fsum(value for _, value in model.predict(noisy(), top_k=7).top) == pytest.approx(1)
    for arguments in ({"top_k": 0}, {"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            model.predict(noisy(), **arguments)


def rewritten(path, tmp_path, **changes):
    """A copy of a model file with other fields."""
    file = read_model_file(path)
    copy = tmp_path / f"copy-{len(list(tmp_path.glob('copy-*')))}.safetensors"
    fields = {name: changes.get(name, getattr(file, name)) for name in ("metrics", "data", "preprocessing")}
    save_model(
        copy,
        changes.get("state", file.state),
        changes.get("config", file.config),
        file.classes,
        **fields,
        calibration=changes.get("calibration"),
    )
    return copy


def test_the_fingerprint_is_of_what_decides_the_features(tmp_path, make_model, calibration):
    path = make_model()
    file, model = read_model_file(path), load_model(path, device="cpu")
    same = model.fingerprint()
    assert len(same) == 32
    assert load_model(rewritten(path, tmp_path, calibration=calibration)).fingerprint() == same
    assert load_model(rewritten(path, tmp_path, metrics={"epoch": file.config.epochs})).fingerprint() == same
    assert load_model(path, device="cpu", precision="bf16").fingerprint() == same
    state = dict(file.state)
    state["backbone.norm.bias"] = state["backbone.norm.bias"] + 1e-6
    others = [
        model.fingerprint("sa"),
        model.fingerprint("glca"),
        load_model(rewritten(path, tmp_path, state=state)).fingerprint(),
        load_model(make_model(resize_size=[37, 48])).fingerprint(),
        load_model(make_model(local_queries="cross")).fingerprint(),
        load_model(make_model("reid")).fingerprint(),
        load_model(make_model("reid", feature="after_neck")).fingerprint(),
        load_model(make_model("reid", normalize_features=False)).fingerprint(),
    ]
    assert len({same, *others}) == len(others) + 1


def test_calibration_and_preprocessing_of_the_header_are_read(tmp_path, make_model, calibration):
    path = make_model()
    assert load_model(path, device="cpu").calibration is None
    assert load_model(rewritten(path, tmp_path, calibration=calibration), device="cpu").calibration == calibration
    preprocessing = read_model_file(path).preprocessing
    assert (preprocessing.img_size, preprocessing.resize, preprocessing.mean) == ((32, 40), (36, 48), (0.4, 0.5, 0.6))


def test_precision(make_model, monkeypatch):
    path = make_model()
    assert load_model(path, device="cpu").precision == "fp32"  # as in training
    assert load_model(path, device="cpu", precision="bf16").precision == "bf16"
    monkeypatch.setattr("dual_cross_attention.devices.cpu_multiplies_bf16", lambda: True)
    automatic = load_model(path, device="cpu", precision="auto")
    assert automatic.precision == "bf16"
    image, plain = noisy(), load_model(path, device="cpu")
    assert automatic.predict(image).probability != plain.predict(image).probability
    assert automatic.embed(image).dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(automatic.embed(image), plain.embed(image)) > 0.99
    with pytest.raises(InputError, match="fp16"):
        load_model(path, device="cpu", precision="fp16")


def test_output_that_is_not_finite_is_an_error_of_its_image(make_model):
    model = load_model(make_model(), device="cpu")
    images = [noisy(), noisy()]
    batch = torch.stack([model.transform(Image.fromarray(image)) for image in images])
    expected = model.model.predict(batch)

    def spoil(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(0, torch.tensor([1]), math.nan)

    handle = model.model.backbone.norm.register_forward_hook(spoil)
    good, bad = model.predict(images)
    vectors = list(model.embeddings(images))
    handle.remove()
    assert good.probability == pytest.approx(expected[0].max().item()) and good.error is None
    assert bad.label is bad.probability is None and "NaN" in bad.error and not bad.top
    assert vectors[0].error is None and vectors[1].feature is None and "NaN" in vectors[1].error

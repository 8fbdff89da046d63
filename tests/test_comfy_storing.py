"""Save and Load Conditioning: the same picture, from files that may be anything."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nano_models import OTHER, PROMPT, nano_comfy
from safetensors.torch import save_file

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("inference")]


@pytest.fixture
def folders(comfy, tmp_path, monkeypatch) -> SimpleNamespace:
    """Empty output and input folders of ComfyUI's."""
    import folder_paths

    for name in ("output", "input"):
        (tmp_path / name / "conditioning").mkdir(parents=True)
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return SimpleNamespace(output=tmp_path / "output", input=tmp_path / "input")


def encode(prompt: str) -> list:
    from tbac_uniimage.nodes.conditioning import LadderEncode

    return LadderEncode.execute(nano_comfy().mllm, prompt).result[0]


def save(conditioning, prefix="conditioning/ladder", note="") -> str:
    from tbac_uniimage.nodes.storing import LadderSaveConditioning

    assert LadderSaveConditioning.validate_inputs(prefix) is True
    return LadderSaveConditioning.execute(conditioning, prefix, note).result[0]


def load(file: str) -> tuple:
    from tbac_uniimage.nodes.storing import LadderLoadConditioning

    return LadderLoadConditioning.execute(file).result


def same(a: list, b: list) -> bool:
    """Two conditionings, equal to the bit in all they hold."""
    for (states, options), (others, more) in zip(a, b, strict=True):
        assert torch.equal(states, others) and states.dtype == others.dtype and list(options) == list(more)
        for name, value in options.items():
            found = more[name]
            if isinstance(value, torch.Tensor):
                assert torch.equal(found, value)
            else:
                assert found == value and type(found) is type(value)
    return True


def test_a_saved_conditioning_draws_the_same_picture(folders):
    from tbac_uniimage.nodes.sampling import LadderEmptyLatent, LadderSampler

    conditioning = encode(PROMPT)
    assert load(save(conditioning, "conditioning/odd", "half a \ud800 pair"))[1] == "half a ? pair"
    file = save(conditioning, note="an apple — grün")
    assert file == "conditioning/ladder_00001_.safetensors [output]"
    loaded, note = load(file)
    assert same(conditioning, loaded) and note == "an apple — grün"
    model, negative = nano_comfy().model, encode("")
    latent = LadderEmptyLatent.execute(model, 0, 0, 1).result[0]
    pictures = [
        LadderSampler.execute(model, positive, negative, latent, 7, 4, 3.0, 1.0).result[0]["samples"]
        for positive in (conditioning, loaded)
    ]
    assert torch.equal(*pictures)


def test_masks_ranges_areas_and_regions_come_back(folders):
    import nodes as stock

    first = stock.ConditioningSetMask().append(encode(PROMPT), torch.rand(1, 8, 8), "mask bounds", 0.5)[0]
    second = stock.ConditioningSetTimestepRange().set_range(encode(OTHER), 0.2, 0.9)[0]
    second = stock.ConditioningSetAreaPercentage().append(second, 0.5, 0.25, 0.0, 0.5, 1.5)[0]
    both = stock.ConditioningCombine().combine(first, second)[0]
    loaded, note = load(save(both))
    assert note == ""
    for (states, options), (found, more) in zip(both, loaded, strict=True):
        assert torch.equal(states, found) and set(options) == set(more)
    assert torch.equal(loaded[0][1]["mask"], first[0][1]["mask"])
    assert loaded[0][1]["mask_strength"] == 0.5 and loaded[0][1]["set_area_to_bounds"] is True
    assert loaded[1][1]["area"] == ("percentage", 0.25, 0.5, 0.5, 0.0)
    assert loaded[1][1]["start_percent"] == 0.2 and loaded[1][1]["end_percent"] == 0.9


def test_what_is_no_float32_comes_back_as_it_was(folders):
    """Other packs attach whole numbers and masks of bits."""
    extras = {"bits": torch.tensor([[True, False]]), "places": torch.arange(5)}
    conditioning = [[encode(PROMPT)[0][0], extras]]
    found = load(save(conditioning))[0]
    assert same(conditioning, found)
    assert {name: found[0][1][name].dtype for name in extras} == {"places": torch.int64, "bits": torch.bool}


def test_nothing_is_overwritten_and_short_numbers_take_short_files(folders):
    short = [[encode(PROMPT)[0][0].bfloat16().float(), {}]]
    names = [save(short), save(encode(PROMPT))]
    assert names[1].endswith("ladder_00002_.safetensors [output]")
    sizes = [(folders.output / name.removesuffix(" [output]")).stat().st_size for name in names]
    print(f"\nfile of a nano prompt: {sizes[0]} bytes from bfloat16, {sizes[1]} from float32")
    assert sizes[0] < 0.55 * sizes[1]
    assert same(short, load(names[0])[0])
    assert not list(folders.output.rglob("*.partial"))


def test_load_lists_both_folders_and_sees_a_changed_file(folders):
    from tbac_uniimage.nodes.storing import LadderLoadConditioning, list_files

    file = save(encode(PROMPT), "conditioning/deep/one")
    path = folders.output / file.removesuffix(" [output]")
    (folders.input / "conditioning" / "two.safetensors").write_bytes(path.read_bytes())
    assert list_files() == [file, "conditioning/two.safetensors [input]"]
    assert same(load("conditioning/two.safetensors [input]")[0], load(file)[0])
    assert LadderLoadConditioning.validate_inputs(file) is True
    before = LadderLoadConditioning.fingerprint_inputs(file)
    assert before == LadderLoadConditioning.fingerprint_inputs(file)
    path.write_bytes(path.read_bytes() + b" ")
    assert before != LadderLoadConditioning.fingerprint_inputs(file)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "", ".", "\0", "conditioning/../../output2/x"]
)
def test_names_outside_of_the_folders_are_refused(folders, name):
    from tbac_uniimage.nodes.storing import LadderLoadConditioning, LadderSaveConditioning

    message = LadderSaveConditioning.validate_inputs(name)
    assert "is no file inside ComfyUI's output folder" in message
    with pytest.raises(ValueError, match="is no file inside"):
        LadderSaveConditioning.execute([[torch.zeros(1, 2, 6), {}]], name)
    for kind in ("output", "input"):
        assert "is no file inside" in LadderLoadConditioning.validate_inputs(f"{name} [{kind}]")
    assert {path.name for path in folders.output.parent.iterdir()} == {"output", "input"}


def test_a_link_that_leads_out_is_refused(folders):
    (folders.output.parent / "secret.safetensors").write_bytes(b"x")
    (folders.output / "link.safetensors").symlink_to(folders.output.parent / "secret.safetensors")
    with pytest.raises(ValueError, match="is no file inside"):
        load("link.safetensors [output]")
    with pytest.raises(ValueError, match="There is no conditioning file 'nothing.safetensors"):
        load("nothing.safetensors [output]")


def test_what_no_file_holds_is_refused_by_name(folders):
    [[states, _]] = encode(PROMPT)
    for conditioning, message in [
        ([[states, {"control": object()}]], r"carries 'control' \(object\)"),
        ([[states, {"strength": float("nan")}]], "carries 'strength'"),
        ([], "is empty"),
        ([[states * float("inf"), {}]], "not finite"),
        ([[states[0], {}]], "of shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            save(conditioning)
    assert not list(folders.output.rglob("*.*"))


def test_damaged_and_foreign_files_are_one_sentence(folders):
    whole = (folders.output / save(encode(PROMPT)).removesuffix(" [output]")).read_bytes()
    place = folders.input / "conditioning"
    states = {"0/states": torch.zeros(1, 2, 6)}
    header = {"format": "tbac_uniimage_conditioning", "version": "1", "entries": "[{}]", "note": ""}
    damaged = {
        "empty": b"",
        "short": whole[: len(whole) // 2],
        "header": whole[:20],
        "pickle": b"\x80\x04\x95" + b"\0" * 50,
        "text": b"hello" * 100,
        "huge": (2**62).to_bytes(8, "little") + b"{}",
    }
    for name, content in damaged.items():
        (place / f"{name}.safetensors").write_bytes(content)
    for name, tensors, changed in [
        ("no_states", {"0/mask": torch.zeros(1, 2, 6)}, {}),
        ("flat", {"0/states": torch.zeros(6)}, {}),
        ("nan", {"0/states": torch.full((1, 2, 6), float("nan"))}, {}),
        ("more", {**states, "1/states": torch.zeros(1, 2, 6)}, {}),
        ("json", states, {"entries": "[{"}),
        ("no_list", states, {"entries": "7"}),
        ("no_dict", states, {"entries": "[7]"}),
        ("none", states, {"entries": "[]"}),
    ]:
        save_file(tensors, place / f"{name}.safetensors", metadata={**header, **changed})
        damaged[name] = b""
    for name in damaged:
        with pytest.raises(
            ValueError, match=f"^{name}.safetensors is damaged; save the conditioning again.$"
        ):
            load(f"conditioning/{name}.safetensors [input]")
    save_file(states, place / "lora.safetensors", metadata={"format": "pt"})
    save_file(states, place / "bare.safetensors")
    for name in ("lora", "bare"):
        with pytest.raises(ValueError, match=f"^{name}.safetensors is no saved conditioning"):
            load(f"conditioning/{name}.safetensors [input]")
    save_file(states, place / "new.safetensors", metadata={**header, "version": "2"})
    with pytest.raises(ValueError, match="newer version"):
        load("conditioning/new.safetensors [input]")


def test_a_full_disk_is_one_sentence(folders, monkeypatch):
    from tbac_uniimage.nodes import conditioning_file

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conditioning_file, "save_file", full)
    with pytest.raises(ValueError, match="could not be written .*No space left"):
        save(encode(PROMPT))
    assert not [path for path in folders.output.rglob("*") if path.is_file()]


def test_the_file_is_readable_without_this_pack(folders):
    from safetensors import safe_open

    file: Path = folders.output / save(encode(PROMPT), note="n").removesuffix(" [output]")
    with safe_open(file, framework="pt") as opened:
        assert list(opened.keys()) == ["0/states"]
        assert json.loads(opened.metadata()["entries"]) == [{}] and opened.metadata()["note"] == "n"

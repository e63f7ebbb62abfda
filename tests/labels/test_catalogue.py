"""The catalogue's figures are those of the networks, and its entries are those of the registry."""

import pytest
import torch

from distill.labels.building import REGISTRY
from distill.labels.catalogue import CATALOGUE, details, row
from distill.labels.members import Member, trained_here
from distill.recipe.files import load_recipe
from distill.teachers.unisal import UnisalNet


@pytest.mark.parametrize("name", ["visage tiny", "visage S", "unisal", "tased", "salfom B"])
def test_the_tables_figures_are_those_of_the_networks(name):
    """On the meta device, where nothing is computed and every multiply-accumulate is counted."""
    from torch.utils.flop_counter import FlopCounterMode

    from distill.teachers.salfom import SalfomNet
    from distill.teachers.tased import TasedNet
    from distill.teachers.umt import UmtConfig
    from distill.teachers.visage import VisageConfig, VisageNet

    entry = next(e for e in CATALOGUE if f"{e.name} {e.size}".rstrip() == name)
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        if entry.name == "visage":
            shape = VisageConfig() if entry.size == "tiny" else VisageConfig.released(entry.size)
            net, frames = VisageNet(shape).eval(), shape.trunk.frames
            net(torch.empty(1, 3, frames, shape.trunk.px, shape.trunk.px))
            assert (entry.window, entry.rate) == (frames, shape.sample_fps)
        elif entry.name == "unisal":
            net, frames = UnisalNet().eval(), 1
            net(torch.empty(1, 1, 3, 224, 384), "DHF1K", static=False)
        elif entry.name == "tased":
            net, frames = TasedNet().eval(), 1
            net(torch.empty(1, 3, 32, 224, 384))
        else:
            net, frames = SalfomNet(UmtConfig.of(entry.size)).eval(), 1
            net(torch.empty(1, 3, 16, 224, 224))
    assert sum(p.numel() for p in net.parameters()) == entry.parameters
    assert counter.get_total_flops() / 2e9 / frames == pytest.approx(entry.gmac, rel=5e-3)


def test_every_teacher_has_a_page_or_needs_none():
    for entry in CATALOGUE:
        nowhere = f"{entry.name} {entry.size}".rstrip() in ("visage tiny", "salfom B", "onnx", "maps")
        assert bool(entry.page) != nowhere, entry
        assert set(row(entry)) == {"teacher", "M params", "licence", "rate", "window", "GMAC/frame"}
        assert details(entry)["what it is"]


def test_every_teacher_but_maps_is_registered():
    assert REGISTRY.keys() == {(entry.name, entry.size) for entry in CATALOGUE if entry.name != "maps"}


@pytest.mark.parametrize("entry", [entry for entry in CATALOGUE if entry.name != "maps"], ids=lambda entry: entry.title)
def test_every_trainable_teacher_has_a_trainer(entry):
    recipe = load_recipe(None, ["teach.finetune=true"])
    files = dict.fromkeys((*entry.files, *entry.more), "")
    assert trained_here(recipe, Member(entry, 1.0, files)) == (REGISTRY[entry.name, entry.size].train is not None)

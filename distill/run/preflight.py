"""What can be known before a run writes anything: whether it can start, and what it will read from outside.

`check_ready` looks for missing packages, folders, weights, maps and devices. `inputs` takes fingerprints of everything
outside the run directory, so that a run notices when its corpus or its weights change under it. Neither decodes a frame.
The stage of the same name (stages.py) goes further: it exports a student with random weights and opens the teacher.
"""

from pathlib import Path

from distill.corpora import CORPORA, find, fingerprints, parts_of
from distill.labels import licences, members
from distill.recipe.files import did_you_mean
from distill.recipe.keys import Recipe
from distill.run.directory import missing_modules
from distill.run.errors import UsageError
from distill.run.files import fingerprint


def check_ready(recipe: Recipe) -> None:
    """Raises UsageError for everything that is known to be wrong before anything is written."""
    if missing := missing_modules():
        raise UsageError(f"{', '.join(missing)} not installed; pip install 'saliency-distill[train]'")
    synthetic = recipe.corpus.name == "synthetic"
    if not (synthetic or recipe.corpus.root):
        name = recipe.corpus.name
        if "," not in name and (corpus := name.partition(":")[0]) not in CORPORA:
            raise UsageError(f"unknown corpus '{corpus}'{did_you_mean(corpus, CORPORA)}")
        raise UsageError(f"corpus {name} needs --root, the folder that holds it; one for each part, in the same order")
    parts = [] if synthetic else parts_of(recipe.corpus.name, recipe.corpus.root)
    members.check(recipe)
    licences.check_licences(recipe.teacher)
    clips = {} if synthetic else find(parts, recipe.corpus)
    if recipe.corpus.groups and not Path(recipe.corpus.groups).is_file():
        raise UsageError(f"corpus.groups {recipe.corpus.groups} is not a file; give a CSV with lines `clip,group`")
    if recipe.teacher.name == "maps":
        from distill.labels.building import open_maps  # imports torch, which no other teacher needs here

        maps = open_maps(recipe)
        without = [i for i, (part, entry) in clips.items() if not maps.has(entry.name or entry.id, part.name)]
        if without:
            raise UsageError(
                f"teacher.maps {', '.join(map(str, members.map_folders(recipe.teacher)))} has nothing for clip {without[0]}"
                f"{f' and {len(without) - 1} more' if without[1:] else ''}; add it, or leave it out: "
                f"--set corpus.skip={','.join(without)}"
            )
    if recipe.run.device not in ("auto", "cpu"):
        from distill.run import device  # imports torch, which no other check needs

        device.choose(recipe.run.device)


def inputs(recipe: Recipe) -> dict[str, str]:
    """Fingerprints of what a run reads from outside, by what it is: from names, sizes and counts of annotations."""
    prints = {}
    if recipe.corpus.root and recipe.corpus.name != "synthetic":
        parts = parts_of(recipe.corpus.name, recipe.corpus.root)
        for root, facts in fingerprints(parts, recipe.corpus).items():
            prints[f"the corpus at {root}"] = fingerprint(facts)
    if recipe.corpus.groups:
        prints[f"the groups in {recipe.corpus.groups}"] = fingerprint(Path(recipe.corpus.groups).read_bytes().hex())
    if recipe.teacher.name == "maps":
        for folder in members.map_folders(recipe.teacher):
            sizes = sorted((str(p.relative_to(folder)), p.stat().st_size) for p in folder.rglob("*") if p.is_file())
            prints[f"the maps in {folder}"] = fingerprint(sizes)
    return prints | members.weights_fingerprints(recipe.teacher)

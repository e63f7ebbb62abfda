"""The words of the report, explained: shown when a reader points at one, taps it or reaches it with the keyboard, and listed at
the end."""

from distill.evaluation.evaluate import CEILING
from distill.evaluation.metrics import BLOCK, LABELS

METRICS = {
    "nss": "normalised scanpath saliency: the map's mean value at the observers' fixations, in its standard deviations above its "
    "mean. 0 is chance; higher is better.",
    "cc": "Pearson's correlation of the map and the observers' density map. 1 is perfect, 0 is chance; higher is better.",
    "sim": "similarity: how much the map and the density map overlap, both scaled to a sum of 1. 1 is perfect; higher is better.",
    "auc_judd": "area under the ROC curve by Judd: how well the map separates fixated pixels from all others. 1 is perfect, 0.5 is "
    "chance; higher is better.",
    "s_auc": "shuffled AUC: as AUC-J, but against the fixations of other frames, so that a guess at the centre gains nothing. 0.5 "
    "is chance; higher is better.",
    "kld": "Kullback-Leibler divergence of the density map from the map, in nats: what is lost where people looked and the map is "
    "low. 0 is perfect; lower is better.",
    "ig": "information gain over the centred Gaussian, in bits per fixation. 0 is no gain; higher is better.",
    "block_iou": f"block IoU: of the blocks of {BLOCK} px that the map or the density map marks as salient, with a mean of 0.5 or "
    "more, the share that both mark. It depends on absolute values. 1 is perfect; higher is better.",
    "block_cc": f"block CC: the correlation of the means of blocks of {BLOCK} px, which is how well an encoder would distribute its "
    "bits. 1 is perfect; higher is better.",
    "flicker": f"mean change of the map from one frame to the next, where the video stands still (blocks of {BLOCK} px). Lower is "
    "steadier; a constant map has 0, which alone is no merit.",
}
"""Every metric of `evaluation.metrics.LABELS`."""

PREDICTORS = {
    "step": "the student as it streams: NAME_step.onnx, with a recurrent state that it carries from frame to frame.",
    "image": "the student's other file, NAME.onnx, which sees each frame alone.",
    "pooled": "the image file's maps pooled over time, as the name says: what a simple filter gains in place of a state.",
    "teacher": "what the student learned from: its maps before the student.",
    "centred Gaussian": "a fixed blob in the middle of the frame, the same for every frame: viewers look at the centre, so it is a "
    "rival to beat.",
    "mean training map": "where the observers of the training clips looked on average, the same map for every frame.",
    CEILING: "one half of the observers as a prediction of the other half: about the best that any map can reach.",
}

OTHERS = {
    "interval": "in brackets, the lowest and highest value that is plausible at 95 %: a bootstrap over clips, or over the frames of "
    "one clip.",
    "gate": "the check that both ONNX files use only operators, graph features and inputs that the downstream encoder accepts.",
    "parity": "the largest difference between the ONNX files in onnxruntime and the student in PyTorch, on the same frames.",
    "held out": "kept out of training, so that its scores tell how the student does on videos that it has not seen.",
}

WORDS: dict[str, tuple[str, str]] = {
    **{name: (LABELS[name], text) for name, text in METRICS.items()},
    **{name: ({"step": "student, step file", "image": "student, image file", "pooled": "image file + …"}.get(name, name), text)
       for name, text in PREDICTORS.items()},
    **{name: (name, text) for name, text in OTHERS.items()},
}  # fmt: skip
"""What is explained: the word as it is shown, and its explanation."""


def word_for(predictor: str) -> str | None:
    """The key of WORDS that explains a predictor; None where none does."""
    return "pooled" if predictor.startswith("image +") else predictor if predictor in PREDICTORS else None

"""In the style of psa and MCTformer: activation maps of the classes present, and a background of several strengths."""

import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_softmax
from shared import enlarged


def refine(img, probs, t=10, scale_factor=1, labels=21):
    model = dcrf.DenseCRF2D(img.shape[1], img.shape[0], labels)
    model.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probs)))
    model.addPairwiseGaussian(sxy=3 / scale_factor, compat=3)
    model.addPairwiseBilateral(sxy=80 / scale_factor, srgb=13, rgbim=np.copy(np.ascontiguousarray(img)), compat=10)
    return np.array(model.inference(t)).reshape(labels, *img.shape[:2])


def main(photos, coarse):
    found = []
    for photo, logits in zip(photos, coarse, strict=True):
        activation = enlarged(logits, photo.shape[:2])[1:3]
        activation /= activation.max(axis=(1, 2), keepdims=True)  # these do not sum to 1
        for alpha in (4, 24):
            background = np.power(1 - activation.max(axis=0, keepdims=True), alpha)
            scores = np.concatenate([background, activation])
            found.append(refine(photo, scores, labels=len(scores)).argmax(axis=0))
            found.append(refine(photo, scores, t=4, scale_factor=1.5, labels=len(scores)).argmax(axis=0))
    return found

"""In the style of IRN: two label maps of an image, sure of objects and sure of background, and where they agree."""

import numpy as np
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import unary_from_labels
from shared import enlarged


def refine(img, labels, t=10, n_labels=21, gt_prob=0.7):
    rows, columns = img.shape[:2]
    model = dcrf.DenseCRF2D(columns, rows, n_labels)
    model.setUnaryEnergy(unary_from_labels(labels, n_labels, gt_prob=gt_prob, zero_unsure=False))
    model.addPairwiseGaussian(sxy=3, compat=3)
    model.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(np.copy(img)), compat=10)
    return np.argmax(np.array(model.inference(t)).reshape(n_labels, rows, columns), axis=0)


def main(photos, coarse):
    found = []
    for photo, logits in zip(photos, coarse, strict=True):
        activation = enlarged(logits, photo.shape[:2])[1:]
        activation /= activation.max(axis=(1, 2), keepdims=True)
        maps = [np.pad(activation, ((1, 0), (0, 0), (0, 0)), constant_values=level) for level in (0.30, 0.05)]
        foreground, background = (refine(photo, one.argmax(axis=0), n_labels=len(one)) for one in maps)
        labels = foreground.copy()
        labels[foreground == 0] = 255
        labels[(foreground == 0) & (background == 0)] = 0
        found.append(labels)
    return found

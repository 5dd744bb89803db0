"""In the style of ToCo and SeCo: an object with the parameters, called on saved logits by joblib's workers."""

import joblib
import numpy as np
import pydensecrf.densecrf as dcrf
import pydensecrf.utils as utils
import torch
import torch.nn.functional as F


class Refine:
    def __init__(self, iter_max, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std):
        self.steps, self.smooth, self.bilateral = iter_max, (pos_xy_std, pos_w), (bi_xy_std, bi_rgb_std, bi_w)

    def __call__(self, image, probmap):
        count, rows, columns = probmap.shape
        model = dcrf.DenseCRF2D(columns, rows, count)
        model.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(probmap)))
        model.addPairwiseGaussian(*self.smooth)
        model.addPairwiseBilateral(self.bilateral[0], self.bilateral[1], np.ascontiguousarray(image), self.bilateral[2])
        return np.array(model.inference(self.steps)).reshape(probmap.shape)


refine = Refine


def main(photos, coarse):
    process = refine(iter_max=10, pos_w=1, pos_xy_std=1, bi_w=4, bi_xy_std=121, bi_rgb_std=5)

    def one(photo, logits):
        logits = F.interpolate(torch.from_numpy(logits)[None], photo.shape[:2], mode="bilinear", align_corners=False)
        return process(photo, F.softmax(logits, dim=1)[0].numpy()).argmax(axis=0)

    return joblib.Parallel(n_jobs=2, prefer="threads")(map(joblib.delayed(one), photos, coarse))

"""In the style of CutLER's MaskCut: one coarse binary mask at a time, softmax of 0 and 1."""

import numpy as np
import pydensecrf.densecrf as dcrf
import pydensecrf.utils as utils
import torch
import torch.nn.functional as F
from PIL import Image
from shared import enlarged


class Refine:
    def __init__(self, iter_max, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std):
        self.numbers = iter_max, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std

    def __call__(self, image, probmap):
        steps, pos_w, pos_xy, bi_w, bi_xy, bi_rgb = self.numbers
        model = dcrf.DenseCRF2D(image.shape[1], image.shape[0], len(probmap))
        model.setUnaryEnergy(np.ascontiguousarray(utils.unary_from_softmax(probmap)))
        model.addPairwiseGaussian(sxy=pos_xy, compat=pos_w)
        model.addPairwiseBilateral(sxy=bi_xy, srgb=bi_rgb, rgbim=image, compat=bi_w)
        return np.array(model.inference(steps)).reshape(probmap.shape)


refine = Refine


def main(photos, coarse):
    process = refine(10, 7, 3, 10, 50, 5)
    found = []
    for photo, logits in zip(photos, coarse, strict=True):
        image = np.ascontiguousarray(np.array(Image.fromarray(photo)))
        for one in enlarged(logits, photo.shape[:2])[1:]:
            mask = torch.from_numpy(one > np.quantile(one, 0.7)).float()
            both = F.softmax(torch.stack([1 - mask, mask]), dim=0).numpy()
            found.append(process(image, both).argmax(axis=0))
    return found

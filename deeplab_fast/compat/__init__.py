"""Other projects' functions around pydensecrf, by their names and signatures: change an import, keep the script.

| module | what it has | as in |
|---|---|---|
| `stego` | `dense_crf(image_tensor, logits)`, `batched_crf(pool, images, logits)` | STEGO, HP, EAGLE, CAUSE, PriMaPs |
| `toco` | `DenseCRF(iter_max, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std)` | ToCo, SeCo, DuPL, afa |
| `irn` | `crf_inference_label`, `crf_inference`, `crf_inference_inf` | IRN, psa, MCTformer |

Written from what these compute; the labels are theirs. Importing this imports no torch; `toco` and `irn` never need it.
For new code, `deeplab_fast.crf` has `refine` and `batched_crf`.
"""

from deeplab_fast.compat import irn, stego, toco

__all__ = ["irn", "stego", "toco"]

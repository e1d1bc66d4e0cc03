"""The datasets that can be prepared: a settings class and a reader each.

To add one, write `datasets/NAME.py` with a settings class whose `name` is NAME and `read(config, progress=None)` that
returns a Manifest, put both here, and give `tests/data_pipelines/test_datasets.py` a tiny tree in its layout.
"""

from collections.abc import Callable

from pydantic import BaseModel

from mien.data_pipelines.datasets import (
    annotations,
    cremad,
    dfew,
    enterface05,
    ferv39k,
    gaze360,
    mafw,
    ravdess,
    videos,
    voxceleb2,
)
from mien.data_pipelines.manifest import Manifest

DATASETS: dict[str, tuple[type[BaseModel], Callable[..., Manifest]]] = {
    "annotations": (annotations.AnnotationsConfig, annotations.read),
    "cremad": (cremad.CremadConfig, cremad.read),
    "dfew": (dfew.DfewConfig, dfew.read),
    "enterface05": (enterface05.Enterface05Config, enterface05.read),
    "ferv39k": (ferv39k.Ferv39kConfig, ferv39k.read),
    "gaze360": (gaze360.Gaze360Config, gaze360.read),
    "mafw": (mafw.MafwConfig, mafw.read),
    "ravdess": (ravdess.RavdessConfig, ravdess.read),
    "videos": (videos.VideosConfig, videos.read),
    "voxceleb2": (voxceleb2.Voxceleb2Config, voxceleb2.read),
}

"""Phantoms: images whose truth is known exactly, because both are computed from the same bodies. No torch.

`qa` the commissioning phantom; `chest` a CT with lung nodules, imaged by a `scanner` or by a shifted one; `frozen` says
which generators and seeds a training must find unchanged. Everything follows from a seed.
"""

from model_build.phantoms.qa import (
    Orientation,
    Phantom,
    PhantomObject,
    StudyFiles,
    make_phantom,
    object_occupancy,
    write_study,
)

__all__ = ["Orientation", "Phantom", "PhantomObject", "StudyFiles", "make_phantom", "object_occupancy", "write_study"]

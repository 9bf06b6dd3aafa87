"""Structure of interleaved samples as frozen teachers see it, and the loss that teaches it to the model."""

from .alignment import calibrated_cosine, gak_matrix, log_gak, soft_alignment
from .config import StructureLossConfig
from .encoder_teacher import EncoderTeacher
from .labels import (
    TEACHER_COLUMNS,
    SliceFeatures,
    features_from_columns,
    label_matrix,
    label_statistics,
    triple_distance,
)
from .loss import softmax_temperature, structure_loss
from .pair_labels import PairLabels
from .slice_teacher import Teacher
from .teacher_columns import block_means, check_cache
from .teachers import TripleTeacher

__all__ = [
    "TEACHER_COLUMNS",
    "EncoderTeacher",
    "PairLabels",
    "SliceFeatures",
    "StructureLossConfig",
    "Teacher",
    "TripleTeacher",
    "block_means",
    "calibrated_cosine",
    "check_cache",
    "features_from_columns",
    "gak_matrix",
    "label_matrix",
    "label_statistics",
    "log_gak",
    "soft_alignment",
    "softmax_temperature",
    "structure_loss",
    "triple_distance",
]

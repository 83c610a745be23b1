"""Annotations: other people's data, or a teacher's answers, as rows in the prompts and steps of this package."""

from .convert import AnnotationConfig, annotate, write_annotations
from .reading import READERS, Reading
from .records import Record, Records
from .teacher import TeacherConfig, annotate_with_teacher
from .turns import Unusable


__all__ = [
    "READERS",
    "AnnotationConfig",
    "Reading",
    "Record",
    "Records",
    "TeacherConfig",
    "Unusable",
    "annotate",
    "annotate_with_teacher",
    "write_annotations",
]

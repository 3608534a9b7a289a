"""What a study refuses."""


class StudyError(ValueError):
    """A study's folder or storage cannot be used, or holds something else."""

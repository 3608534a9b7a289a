"""The promise of hard routing, which every evaluation checks."""


class TooManyExpertsError(RuntimeError):
    """Hard routing used more experts than it promises."""

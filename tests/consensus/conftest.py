"""Property tests here are about correctness: on a busy machine an example may take its time."""

from hypothesis import settings

settings.register_profile("consensus", deadline=None)
settings.load_profile("consensus")
